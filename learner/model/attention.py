"""How a pack attends: one interface over four ways, each exact, chosen by device and measurement.

The way travels with the model: `install` sets it, `pack_inputs` makes what a forward needs to know of a pack's layout.
That goes down to the layers as a keyword of the model's forward, so a checkpointed layer sees it again when it is
recomputed. Without that keyword everything attends as transformers' sdpa does.
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
from learner.model.layout import PROMPT, Layout, block_mask, tokens
from learner.model.sparse_attention import plan
from learner.model.vision_tower import PACKED_TOWERS, attend_tower, quicken

TEXT = "rollcall_{}"  # + way: names in transformers' registry of attention functions
TOWER = "rollcall_flash_tower"  # transformers hands packed images whole to names with "flash" in them
KEYWORD = "packed_attention"  # of the model's forward


def install(model: Any, way: str, *, cuda: bool = False) -> None:
    """Make `model`, loaded with sdpa, attend in `way`: auto, sdpa, sparse, flash or flex. `cuda`: where it will run.
    Its last layer is shortened (`learner.model.load.last_layer`) where prompts are shared.

    Raises ModelError where the way cannot describe the model's attention or is not there on its device.
    """
    text = model.config.get_text_config()
    chosen = _resolve(way, model, cuda=cuda, sliding="sliding_attention" in (getattr(text, "layer_types", None) or ()))
    if family_of(model.config).shared_prefix:
        shorten(model)
    if chosen == "sdpa":
        return
    _register()
    keys = [key for key in model.config.sub_configs if getattr(model.config, key) is text]
    ways = {key: TEXT.format(chosen) for key in keys or [""]}  # "": the model is a language model itself
    if model.config.model_type in PACKED_TOWERS:
        ways["vision_config"] = TOWER
        quicken(model)
    model.set_attn_implementation(ways)


def way_of(model: Any) -> str:
    """sdpa, sparse, flash or flex."""
    name: str = model.config.get_text_config()._attn_implementation  # noqa: SLF001
    return name.removeprefix(TEXT.format(""))


def pack_inputs(layout: Layout, model: Any) -> dict[str, Any]:
    """Keywords of the model's forward that say who sees whom."""
    text, way = model.config.get_text_config(), way_of(model)
    if way == "sdpa":
        return {"attention_mask": _masks(layout, text, model)}
    width = text.num_attention_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    makers: dict[str, Callable[[], Any]] = {
        "sparse": lambda: plan(layout, width=width),
        "flash": lambda: Segments(layout, model.device),
        "flex": lambda: Blocks(layout, model.device),
    }
    placeholder = torch.zeros(1, 1, 1, 1, device=model.device)  # or the model would make a mask of its own
    return {"attention_mask": placeholder, KEYWORD: makers[way]()}


class Segments:
    """Flash attention: every prompt, and every branch after its prompt, as a sequence of its own.

    Keys and values are gathered, a prompt once for each branch; queries stay where they are. A branch is shorter than
    its keys, and causal then means that the last query sees the last key.
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
        """(1, S, H, D)."""
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


class Blocks:
    """Flex attention: a compiled kernel that skips the blocks nobody sees anything in."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        from torch.nn.attention.flex_attention import create_block_mask

        group, branch, _ = tokens(layout, device)

        def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            own = (branch[key] == PROMPT) | (branch[key] == branch[query])
            return (group[key] == group[query]) & own & (query >= key)

        self.mask = create_block_mask(seen, None, None, layout.size, layout.size, device=device)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """(1, S, H, D)."""
        out: Tensor = _flex(query.is_cuda)(query, key, value, block_mask=self.mask, scale=scale, enable_gqa=True)
        return out.transpose(1, 2)


@cache
def _flex(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return cast("Callable[..., Any]", torch.compile(flex_attention, dynamic=True) if compiled else flex_attention)


def _resolve(way: str, model: Any, *, cuda: bool, sliding: bool) -> str:
    half = model.dtype in (torch.bfloat16, torch.float16)
    if way == "auto":
        if sliding:
            return "sdpa"
        if cuda:
            return "flash" if half else "sdpa"
        return "sparse"  # with one dense tile where that is cheaper: measured never slower than sdpa's mask
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


def _masks(layout: Layout, text: Any, model: Any) -> Any:
    """Dense masks: one, or by kind of layer where there are several kinds."""
    who = tokens(layout, model.device)
    full = block_mask(who, dtype=model.dtype)
    if "sliding_attention" not in (getattr(text, "layer_types", None) or ()):
        return full
    sliding = block_mask(who, dtype=model.dtype, window=text.sliding_window)
    return {"full_attention": full, "sliding_attention": sliding}


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    for name in (*(TEXT.format(way) for way in ("sparse", "flash", "flex")), TOWER):
        AttentionInterface.register(name, attend_tower if name == TOWER else _text)
        AttentionMaskInterface.register(name, sdpa_mask)


def _text(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **rest: Any) -> Any:
    """A language layer: (1, H, S, D) queries over (1, Hkv, S, D) keys and values -> ((1, S, H, D), None)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if packed := rest.pop(KEYWORD, None):
        return packed(query, key, value, rest["scaling"]), None
    return sdpa_attention_forward(module, query, key, value, mask, **rest)
