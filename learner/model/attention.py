"""How a pack attends: one interface over four ways, each exact, chosen by device and measurement.

    sdpa     torch's attention under a dense mask: runs everything
    sparse   `learner.model.sparse_attention`: CPUs
    flash    flash attention over sequences of different lengths: GPUs in bfloat16
    flex     flex attention, compiled for the blocks that are not empty: GPUs

`install` sets the way of a model. `make_pack_inputs` makes the keywords of its forward that describe the layout of a
pack. They go down to every layer, so a checkpointed layer has them again when it is recomputed. Without them everything
attends as transformers' sdpa does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from common.errors import ModelError
from common.models.families import family_of
from learner.model.last_layer import shorten
from learner.model.layout import PROMPT, Layout, index_tokens, make_block_mask
from learner.model.sparse_attention import build_sparse_attention
from learner.model.vision_tower import PACKED_TOWERS, attend_pictures, speed_up_vision_tower

TEXT = "rollcall_{}"  # + way: names in transformers' registry of attention functions
VISION = "rollcall_flash_vision"  # with "flash" in its name it is handed all pictures at once: see `patches`
KEYWORD = "packed_attention"  # of the model's forward


def install(model: Any, way: str, *, cuda: bool = False) -> None:
    """Make `model`, loaded with sdpa, attend in `way`: auto, sdpa, sparse, flash or flex.

    Where prompts are shared its last layer is shortened too (`learner.model.last_layer`).

    Args:
        cuda: whether it will run on a GPU.

    Raises ModelError where the way cannot describe the model's attention or is not there on its device.
    """
    text = model.config.get_text_config()
    chosen = _choose_way(way, model, cuda=cuda, sliding=_has_sliding_layers(text))
    if family_of(model.config).shared_prefix:
        shorten(model)
    if chosen == "sdpa":
        return
    _register()
    keys = [key for key in model.config.sub_configs if getattr(model.config, key) is text]
    ways = {key: TEXT.format(chosen) for key in keys or [""]}  # "": the model is a language model itself
    if model.config.model_type in PACKED_TOWERS:
        ways["vision_config"] = VISION
        speed_up_vision_tower(model)
    model.set_attn_implementation(ways)


def find_way(model: Any) -> str:
    """Return how `model` attends: sdpa, sparse, flash or flex."""
    name: str = model.config.get_text_config()._attn_implementation  # noqa: SLF001
    return name.removeprefix(TEXT.format(""))


def make_pack_inputs(layout: Layout, model: Any) -> dict[str, Any]:
    """Return the keywords of the model's forward that say which positions each position attends to."""
    text, way = model.config.get_text_config(), find_way(model)
    if way == "sdpa":
        return {"attention_mask": _dense_masks(layout, text, model)}
    width = text.num_attention_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    builders: dict[str, Callable[[], Any]] = {
        "sparse": lambda: build_sparse_attention(layout, width=width),
        "flash": lambda: FlashAttention(layout, model.device),
        "flex": lambda: FlexAttention(layout, model.device),
    }
    placeholder = torch.zeros(1, 1, 1, 1, device=model.device)  # or the model would make a mask of its own
    return {"attention_mask": placeholder, KEYWORD: builders[way]()}


class FlashAttention:
    """Flash attention: every prompt, and every branch after its prompt, is a sequence of its own.

    Keys and values are gathered, a prompt once for each of its branches; queries stay where they are. A branch has
    fewer queries than keys, and causal then means that the last query attends to the last key.

    A prompt at positions 0, 1 with branches at 2 and 3, 4: index = (0 1, 0 1 2, 0 1 3 4), queries end at 0, 2, 3, 5
    and keys at 0, 2, 5, 9.
    """

    def __init__(self, layout: Layout, device: torch.device) -> None:
        queries, index = [0], []
        keys = [0]
        for span in layout.spans:
            prompt = range(span.start, span.fork)
            for own in (slice(0, 0), *span.branches):  # the first stands for the prompt itself
                index += [*prompt, *range(own.start, own.stop)]
                queries.append(own.stop or span.fork)
                keys.append(len(index))
        self.index = torch.tensor(index, device=device)
        self.queries = torch.tensor(queries, dtype=torch.int32, device=device)
        self.keys = torch.tensor(keys, dtype=torch.int32, device=device)
        self.longest = [max(b - a for a, b in pairwise(ends)) for ends in (queries, keys)]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attend with (1, heads, S, D) queries over (1, kv heads, S, D) keys and values: (1, S, heads, D)."""
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        k, v = k.index_select(0, self.index), v.index_select(0, self.index)
        out = varlen_attn(
            q.contiguous(),
            k,
            v,
            self.queries,
            self.keys,
            self.longest[0],
            self.longest[1],
            scale=scale,
            window_size=(-1, 0),
            enable_gqa=True,
        )
        return cast("Tensor", out)[None]


class FlexAttention:
    """Flex attention: a compiled kernel that skips the empty blocks of the S x S scores."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        from torch.nn.attention.flex_attention import create_block_mask

        group, branch, _ = index_tokens(layout, device)

        def attends(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            own = (branch[key] == PROMPT) | (branch[key] == branch[query])
            return (group[key] == group[query]) & own & (query >= key)

        self.mask = create_block_mask(attends, None, None, layout.size, layout.size, device=device)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attend with (1, heads, S, D) queries over (1, kv heads, S, D) keys and values: (1, S, heads, D)."""
        out: Tensor = _flex(query.is_cuda)(query, key, value, block_mask=self.mask, scale=scale, enable_gqa=True)
        return out.transpose(1, 2)


def _flex(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention import flex_attention

    return _compile_flex() if compiled else cast("Callable[..., Any]", flex_attention.flex_attention)


@cache
def _compile_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _has_sliding_layers(text: Any) -> bool:
    return "sliding_attention" in (getattr(text, "layer_types", None) or ())


def _choose_way(way: str, model: Any, *, cuda: bool, sliding: bool) -> str:
    """Return the best way for the device (auto), or the one asked for if it can run; else raise ModelError."""
    half = model.dtype in (torch.bfloat16, torch.float16)
    if way == "auto":
        if sliding:
            return "sdpa"
        if cuda:
            return "flash" if half else "sdpa"
        return "sparse"  # with one dense rectangle where that is cheaper: measured never slower than sdpa's mask
    wrong = {
        "sdpa": False,
        "sparse": cuda or sliding,
        "flash": not cuda or not half or sliding,
        "flex": not cuda or sliding,
    }
    if wrong[way]:
        raise ModelError(
            f"learner.attention = {way} cannot run this model",
            got=f"{'GPU' if cuda else 'CPU'}, {model.dtype}, {'sliding and full' if sliding else 'full'} attention",
            remedy="sparse is for CPUs, flash for GPUs in bfloat16, flex for GPUs, sdpa for all; auto chooses",
        )
    return way


def _dense_masks(layout: Layout, text: Any, model: Any) -> Any:
    """Return the dense mask, or one for each kind of layer where there are several kinds."""
    tokens = index_tokens(layout, model.device)
    full = make_block_mask(tokens, dtype=model.dtype)
    if not _has_sliding_layers(text):
        return full
    sliding = make_block_mask(tokens, dtype=model.dtype, window=text.sliding_window)
    return {"full_attention": full, "sliding_attention": sliding}


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    for name in (*(TEXT.format(way) for way in ("sparse", "flash", "flex")), VISION):
        AttentionInterface.register(name, attend_pictures if name == VISION else _attend_text)
        AttentionMaskInterface.register(name, sdpa_mask)


def _attend_text(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **rest: Any) -> Any:
    """Attend in a layer: (1, heads, S, D) queries, (1, kv heads, S, D) keys -> ((1, S, heads, D), None)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if packed := rest.pop(KEYWORD, None):
        return packed(query, key, value, rest["scaling"]), None
    return sdpa_attention_forward(module, query, key, value, mask, **rest)
