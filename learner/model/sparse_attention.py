"""Attention of a pack on a CPU: only those rectangles of the S x S scores that are not empty, by torch's flash kernel.

A branch attends twice, to its prompt and to itself, and the two results are joined by their log-sum-exps, as ring
attention does (Liu et al. 2023, arXiv:2310.01889). The backward pass of the kernel needs only the joint output and
log-sum-exp, so nothing of size S x S is ever kept. The kernel always computes in float32: in bfloat16 it is slower.

A prompt of 300 tokens with two branches of 100, positions 0 to 500, takes four calls of the kernel:

    queries      keys
      0 to 300     0 to 300   causal: the prompt over itself
    300 to 500     0 to 300   both branches over the prompt
    300 to 400   300 to 400   causal, joins the call above: the first branch over itself
    400 to 500   400 to 500   causal, joins it too: the second branch over itself

Together 115,000 pairs of tokens, where the dense mask computes 250,000. A call costs as much as CALL_COST / width
pairs, so small branches share a masked call, and so do small groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from learner.model.layout import Layout, Span, index_tokens, make_block_mask

CALL_COST = 330_000  # of one kernel call, forward and backward, in pairs of tokens times the width of all heads


class Rectangle(NamedTuple):
    """One call of the kernel: queries over keys, all of them, those up to themselves, or those a mask allows."""

    query: slice
    key: slice
    causal: bool = False
    masked: bool = False
    joins: bool = False  # an earlier rectangle has these queries too
    mask: Tensor | None = None  # (1, 1, queries, keys), additive, of a masked rectangle


class SparseAttention:
    """The attention of one pack, ready to be called by every layer."""

    def __init__(self, rectangles: Sequence[Rectangle]) -> None:
        self.rectangles = tuple(rectangles)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attend with (1, heads, S, D) queries over (1, kv heads, S, D) keys and values: (1, S, heads, D)."""
        out: Tensor = cast("Any", _Attention.apply)(query, key, value, self.rectangles, scale)
        return out.transpose(1, 2)


def build_sparse_attention(layout: Layout, *, width: int) -> SparseAttention:
    """Find cheap rectangles for a pack. `width`: of all query heads together."""
    call = CALL_COST / width
    rectangles: list[Rectangle] = []
    run: list[Span] = []  # neighbouring groups so small that one masked rectangle is cheaper than their parts
    for span in layout.spans:
        parts = _split_span(span, call)
        alone = _length([span]) ** 2 + call  # cost of one masked rectangle for this group
        if _cost(parts, call) < alone:
            rectangles += [*_cover_run(run), *parts]
            run = []
        elif run and _length([*run, span]) ** 2 > _length(run) ** 2 + alone:  # cheaper apart than together
            rectangles += _cover_run(run)
            run = [span]
        else:
            run.append(span)
    rectangles += _cover_run(run)

    tokens = index_tokens(layout, torch.device("cpu"))
    for index, own in enumerate(rectangles):
        if own.masked:
            rectangles[index] = own._replace(mask=make_block_mask(tokens.at(own.query), dtype=torch.float32))
    return SparseAttention(rectangles)


def _split_span(span: Span, call: float) -> list[Rectangle]:
    """Return the parts of one group: the prompt over itself, all branches over the prompt, each branch over itself."""
    prompt, forked = slice(span.start, span.fork), slice(span.fork, span.end)
    first = [Rectangle(prompt, prompt, causal=True)]
    if not span.branches:
        return first
    apart = [Rectangle(branch, branch, causal=True, joins=True) for branch in span.branches]
    together = [Rectangle(forked, forked, masked=True, joins=True)]
    return [*first, Rectangle(forked, prompt), *min(apart, together, key=lambda own: _cost(own, call))]


def _cover_run(run: Sequence[Span]) -> list[Rectangle]:
    """Return one masked rectangle over all groups of a run, or none of an empty run."""
    rows = slice(run[0].start, run[-1].end) if run else None
    return [Rectangle(rows, rows, masked=True)] if rows else []


def _cost(rectangles: Sequence[Rectangle], call: float) -> float:
    return sum(_pairs(own) + call for own in rectangles)


def _length(run: Sequence[Span]) -> int:
    return run[-1].end - run[0].start


def _pairs(rectangle: Rectangle) -> float:
    """Count the pairs of a query and a key that are computed."""
    queries, keys = (rows.stop - rows.start for rows in (rectangle.query, rectangle.key))
    return float(queries * keys / 2 if rectangle.causal else queries * keys)


class _Attention(torch.autograd.Function):
    """All rectangles of a pack in one step of autograd, joined by their log-sum-exps."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, rectangles: tuple[Rectangle, ...], scale: float
    ) -> Tensor:
        q, k, v = query.float(), key.float(), value.float()
        batch, heads, size, width = q.shape
        out = q.new_empty(batch, size, heads, width).transpose(1, 2)
        total = q.new_empty(batch, size, heads).transpose(1, 2)  # log-sum-exp
        for own in rectangles:
            at, seen = own.query, own.key
            found, own_total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # noqa: SLF001
                q[:, :, at], k[:, :, seen], v[:, :, seen], is_causal=own.causal, attn_mask=own.mask, scale=scale
            )
            if own.joins:  # both results weigh as much as their share of the joint softmax
                before = total[:, :, at]
                joint = torch.logaddexp(before, own_total)
                kept, added = (before - joint).exp()[..., None], (own_total - joint).exp()[..., None]
                found, own_total = out[:, :, at] * kept + found * added, joint
            out[:, :, at], total[:, :, at] = found, own_total
        ctx.save_for_backward(query, key, value, out, total)
        ctx.rectangles, ctx.scale = rectangles, scale
        return out.to(query.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_out = grads[0].float()
        query, key, value, out, total = ctx.saved_tensors
        q, k, v = query.float(), key.float(), value.float()
        sums = tuple(torch.zeros_like(tensor) for tensor in (q, k, v))
        for own in ctx.rectangles:
            at, seen = own.query, own.key
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(  # noqa: SLF001
                grad_out[:, :, at],
                q[:, :, at],
                k[:, :, seen],
                v[:, :, seen],
                out[:, :, at],
                total[:, :, at],
                0.0,
                own.causal,
                attn_mask=own.mask,
                scale=ctx.scale,
            )
            for whole, rows, part in zip(sums, (at, seen, seen), parts, strict=True):
                whole[:, :, rows] += part
        return *(whole.to(query.dtype) for whole in sums), None, None
