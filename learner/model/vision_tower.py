"""Faster forms of parts of the Qwens' vision towers, with the same numbers. `learner.model.patches` lists them."""

from __future__ import annotations

from itertools import groupby, pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

PACKED_TOWERS = frozenset({"qwen2_vl", "qwen2_5_vl", "qwen3_vl"})  # families whose tower takes pictures end to end
LONGEST_PRODUCT = 1024  # most patches of a picture whose whole attention matrix is made
STEEPNESS = 1.702  # of QuickGELU: x * sigmoid(1.702 x), which is silu(1.702 x) / 1.702


class PatchProjection(nn.Conv3d):
    """A convolution over patches as large as its kernel, as the matrix product it is: three times as fast."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # nn.Conv3d's name
        if input.shape[2:] != self.weight.shape[2:]:
            return super().forward(input)
        found = nn.functional.linear(input.flatten(1), self.weight.flatten(1), self.bias)
        return found[..., None, None, None]


class QuickGELU(nn.Module):
    """transformers' QuickGELUActivation in two passes over memory instead of six, keeping only its input."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as transformers has it
        return cast("Tensor", cast("Any", _QuickGELU.apply)(input))


class _QuickGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: Tensor) -> Tensor:
        ctx.save_for_backward(given)
        return nn.functional.silu(given * STEEPNESS, inplace=True).mul_(1 / STEEPNESS)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (given,) = ctx.saved_tensors
        return cast("Tensor", torch.ops.aten.silu_backward(grads[0], given * STEEPNESS))


def speed_up_vision_tower(model: Any) -> None:
    """Make every 3-D convolution of `model` a PatchProjection, and QuickGELU ours. The weights stay where they are."""
    from transformers.activations import QuickGELUActivation

    for module in model.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = PatchProjection
        elif type(module) is QuickGELUActivation:
            module.__class__ = cast("Any", QuickGELU)


def attend_pictures(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    **rest: Any,
) -> Any:
    """Attend in a layer of the vision tower, each picture or window over itself.

    Queries, keys and values are (1, heads, patches, D), picture after picture; `cu_seq_lens_q` says where each begins.
    Returns ((1, patches, heads, D), None).
    """
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
        whole = varlen_attn(q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, scale=scaling)
        return cast("Tensor", whole)[None], None
    outs, at = [], 0
    for length, run in groupby(b - a for a, b in pairwise(cu_seq_lens_q.tolist())):  # neighbours of a size at once
        count = len(list(run))
        q, k, v = (_split(tensor[0, :, at : at + count * length], count) for tensor in (query, key, value))
        outs.append(_attend(q, k, v, scaling).transpose(1, 2).flatten(0, 1))
        at += count * length
    return (outs[0] if len(outs) == 1 else torch.cat(outs))[None], None


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attend within each of some pictures of equal size: (pictures, heads, L, D) -> the same.

    In bfloat16 a CPU multiplies matrices three times as fast as its attention kernel does.
    """
    if query.is_cuda or query.dtype == torch.float32 or query.shape[2] > LONGEST_PRODUCT:
        return nn.functional.scaled_dot_product_attention(query, key, value, scale=scale)
    centred = key - key.mean(2, keepdim=True)  # the softmax does not change, its rounded scores are smaller
    return ((query * scale) @ centred.transpose(-1, -2)).softmax(-1) @ value


def _split(rows: Tensor, count: int) -> Tensor:
    """Split (heads, count * L, D) into (count, heads, L, D)."""
    heads, size, width = rows.shape
    return rows.view(heads, count, size // count, width).transpose(0, 1)
