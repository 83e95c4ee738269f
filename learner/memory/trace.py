"""Trace a forward and backward without memory: the real code, on parameters that have shapes only.

Integers and masks are real, so all that depends on them (sizes of pictures, lengths of branches) is as in a run. All
else lives on torch's meta device. So the memory that autograd keeps is counted, not estimated, for any family, way to
attend or adapter.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from common.config.schema import Config
from common.types import Prompt, ScoredGroup
from learner.model.attention import install
from learner.model.head import ScoringSpec
from learner.model.load import freeze_vision_tower
from learner.model.logprobs import packed_logprobs
from learner.model.lora import add_adapters
from learner.model.pack import build_pack
from learner.objective.losses import LOSSES
from learner.objective.records import Coefficients, StepCounts
from learner.trainer.offline_groups import build_unscored_group


def build_weightless_model(model_config: Any, config: Config) -> Any:
    """Build the policy as a rank trains it, its parameters without memory."""
    from accelerate import init_empty_weights  # type: ignore[import-untyped]  # it has none
    from transformers import AutoModelForImageTextToText

    with init_empty_weights(include_buffers=False):
        model = AutoModelForImageTextToText.from_config(
            model_config,
            trust_remote_code=config.model.trust_remote_code,
            dtype=getattr(torch, config.model.dtype),
            attn_implementation="sdpa",
        )
    model.tie_weights()  # parameters without memory were made one by one
    install(model, config.learner.attention, cuda=config.cluster.device == "cuda")
    if config.model.freeze_vision:
        freeze_vision_tower(model)
    if config.model.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.lora.rank:
        with init_empty_weights(include_buffers=False):
            add_adapters(model, config.lora)
    return model.to(model.dtype).train()


def trace_learning_peak(model: Any, groups: Sequence[ScoredGroup], config: Config) -> int:
    """Return the most bytes that one pack of `groups` holds at a time, beside weights and finished gradients.

    Traces policy and reference forward, the loss, and the backward pass.
    """
    memory = _Memory()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: memory.forget(p.grad))
    spec = ScoringSpec.of(config, banned=(0,))
    tower_runs = not any("image_embeds" in group.prompt.features for group in groups)
    with _flash_attention(), memory:
        pack = build_pack(groups, _WithIntegers(model), banned=(), tower_runs=tower_runs)
        scores = packed_logprobs(model, pack, spec)
        reference = None
        if config.learner.beta:
            with torch.no_grad():
                reference = packed_logprobs(model, pack, spec, kept=scores.kept).logp
        counts = StepCounts(sequences=len(pack.reward), groups=len(groups), tokens=len(pack.row))
        inputs = pack.inputs(
            scores.logp,
            reference,
            step=counts,
            coefficients=Coefficients(beta=config.learner.beta),
            objective=config.objective,
        )
        LOSSES[config.loss](inputs).loss.backward()
    model.zero_grad()
    return memory.peak


def make_up_group(prompt: Prompt, *, tokens: int, completions: int, length: int) -> ScoredGroup:
    """Return a group without meaning: `prompt` filled up to `tokens`, and completions of `length` tokens."""
    ids = (*prompt.token_ids, *[prompt.token_ids[-1]] * (tokens - len(prompt.token_ids)))
    return build_unscored_group(replace(prompt, token_ids=ids), [(1,) * length] * completions)


class _WithIntegers:
    """A model whose packs are built on the CPU, where integers have values."""

    device = torch.device("cpu")

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class _Memory(TorchDispatchMode):
    """Counts the bytes of every tensor made inside, from its making to its end."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}  # by storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = {tensor.untyped_storage()._cdata for tensor in given}  # noqa: SLF001
        if any(tensor.is_meta for tensor in given):
            if func is torch.ops.aten.index.Tensor:  # its result's shape follows from the values of a mask
                args = (args[0], [whole for index in args[1] for whole in _as_integers(index)])
            args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        made = func(*args, **kwargs)
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage(), known)
        return made

    def forget(self, tensor: Tensor | None) -> None:
        """Stop counting a finished gradient: the plan counts it as a part of its own."""
        if tensor is not None:
            self._free(tensor.untyped_storage()._cdata)  # noqa: SLF001

    def _count(self, storage: torch.UntypedStorage, known: set[int]) -> None:
        key = storage._cdata  # noqa: SLF001
        if key in self._sizes or key in known:
            return
        self._sizes[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


def _as_integers(index: Tensor | None) -> list[Tensor | None]:
    """Return a mask as one integer index for each of its axes, anything else as it is."""
    if index is None or index.dtype != torch.bool:
        return [index]
    return list(index.nonzero().unbind(1))


class _Flash(torch.autograd.Function):
    """Attention that keeps what every kernel without an S x S matrix does: inputs, output, one number a query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, mask, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


@contextmanager
def _flash_attention() -> Iterator[None]:
    """Replace torch's attention inside, which on the meta device makes an S x S matrix or refuses: see `patches`."""
    from torch.nn.attention import flex_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
        return cast("Tensor", cast("Any", _Flash.apply)(query, key, value, attn_mask))

    places: list[tuple[Any, str]] = [
        (torch.nn.functional, "scaled_dot_product_attention"),
        (flex_attention, "flex_attention"),
    ]
    originals = [getattr(module, name) for module, name in places]
    for module, name in places:
        setattr(module, name, attend)
    try:
        yield
    finally:
        for (module, name), original in zip(places, originals, strict=True):
            setattr(module, name, original)
