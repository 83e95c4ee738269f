"""The vision tower of the Qwen families, run faster than it is written and to the same numbers."""

from __future__ import annotations

from itertools import groupby, pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

PACKED_TOWERS = frozenset({"qwen2_vl", "qwen2_5_vl", "qwen3_vl"})  # families whose tower takes images end to end
LONGEST_PRODUCT = 1024  # patches of an image whose whole attention matrix is kept
SLOPE = 1.702  # of QuickGELU: x * sigmoid(SLOPE x), which is silu(SLOPE x) / SLOPE


class PatchProjection(nn.Conv3d):
    """A convolution over patches that are as large as its kernel, which is a matrix product: three times as fast."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # nn.Conv3d's name
        if input.shape[2:] != self.weight.shape[2:]:
            return super().forward(input)
        found = nn.functional.linear(input.flatten(1), self.weight.flatten(1), self.bias)
        return found[..., None, None, None]


class QuickGELU(nn.Module):
    """As transformers' activation of that name, in two passes over memory where that takes six, and keeping its input
    alone for the backward."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as transformers has it
        return cast("Tensor", cast("Any", _QuickGELU.apply)(input))


class _QuickGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: Tensor) -> Tensor:
        ctx.save_for_backward(given)
        return nn.functional.silu(given * SLOPE, inplace=True).mul_(1 / SLOPE)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (given,) = ctx.saved_tensors
        return cast("Tensor", torch.ops.aten.silu_backward(grads[0], given * SLOPE))


def quicken(model: Any) -> None:
    """Make every 3-D convolution of `model` a PatchProjection, and QuickGELU ours. The weights stay where they are."""
    from transformers.activations import QuickGELUActivation

    for module in model.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = PatchProjection
        elif type(module) is QuickGELUActivation:
            module.__class__ = cast("Any", QuickGELU)


def attend_tower(
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
    """A layer: (1, H, S, D) of pictures, or windows, one after the other, each over itself -> ((1, S, H, D), None)."""
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
    """(images, H, L, D). In bfloat16 a CPU multiplies matrices three times as fast as its attention kernel does."""
    if query.is_cuda or query.dtype == torch.float32 or query.shape[2] > LONGEST_PRODUCT:
        return nn.functional.scaled_dot_product_attention(query, key, value, scale=scale)
    centred = key - key.mean(2, keepdim=True)  # the softmax does not change, its rounded scores are smaller
    return ((query * scale) @ centred.transpose(-1, -2)).softmax(-1) @ value


def _split(rows: Tensor, count: int) -> Tensor:
    """(H, count * L, D) -> (count, H, L, D)."""
    heads, size, width = rows.shape
    return rows.view(heads, count, size // count, width).transpose(0, 1)
