"""Attention of a pack on a CPU: only the blocks of S x S in which somebody sees something, by torch's own flash kernel.

A branch attends in two tiles, its prompt and itself, and the two are joined by their log-sum-exps, as ring attention
does (Liu et al. 2023, arXiv:2310.01889). The kernel's backward needs the joint output and log-sum-exp only, so nothing
of size S x S is ever kept. It always computes in float32: in bfloat16 the kernel is slower, not faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from learner.model.layout import Layout, Span, block_mask, tokens

CALL_COST = 330_000  # what one kernel call costs, forward and backward, in pairs of tokens x width of all heads


class Tile(NamedTuple):
    """Queries that see keys: all of them, those up to themselves, or what their group and branch allow."""

    query: slice
    key: slice
    causal: bool = False
    blocked: bool = False
    joins: bool = False  # an earlier tile has these queries too
    mask: Tensor | None = None  # (1, 1, queries, keys), additive, of a blocked tile


class Tiles:
    """The attention of one pack: (1, H, S, D) queries over (1, Hkv, S, D) keys and values."""

    def __init__(self, tiles: Sequence[Tile]) -> None:
        self.tiles = tuple(tiles)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """(1, S, H, D)."""
        out: Tensor = cast("Any", _Attention.apply)(query, key, value, self.tiles, scale)
        return out.transpose(1, 2)


def plan(layout: Layout, *, width: int) -> Tiles:
    """The cheapest tiles found. `width`: of all query heads together."""
    call = CALL_COST / width
    tiles: list[Tile] = []
    run: list[Span] = []  # groups so small that one blocked tile is cheaper than their parts
    for span in layout.spans:
        parts = _parts(span, call)
        whole = _length([span]) ** 2 + call
        if _cost(parts, call) < whole:
            tiles += [*_together(run), *parts]
            run = []
        elif run and _length([*run, span]) ** 2 > _length(run) ** 2 + whole:
            tiles += _together(run)
            run = [span]
        else:
            run.append(span)
    who = tokens(layout, torch.device("cpu"))
    return Tiles(
        [
            tile._replace(mask=block_mask(who.at(tile.query), dtype=torch.float32)) if tile.blocked else tile
            for tile in (*tiles, *_together(run))
        ]
    )


def _parts(span: Span, call: float) -> list[Tile]:
    """The prompt over itself, all branches over the prompt, each branch over itself."""
    prompt, forked = slice(span.start, span.fork), slice(span.fork, span.end)
    tiles = [Tile(prompt, prompt, causal=True)]
    if not span.branches:
        return tiles
    apart = [Tile(branch, branch, causal=True, joins=True) for branch in span.branches]
    together = [Tile(forked, forked, blocked=True, joins=True)]
    return [*tiles, Tile(forked, prompt), *min(apart, together, key=lambda own: _cost(own, call))]


def _together(run: Sequence[Span]) -> list[Tile]:
    rows = slice(run[0].start, run[-1].end) if run else None
    return [Tile(rows, rows, blocked=True)] if rows else []


def _cost(tiles: Sequence[Tile], call: float) -> float:
    return sum(_pairs(tile) + call for tile in tiles)


def _length(run: Sequence[Span]) -> int:
    return run[-1].end - run[0].start


def _pairs(tile: Tile) -> float:
    queries, keys = (rows.stop - rows.start for rows in (tile.query, tile.key))
    return float(queries * keys / 2 if tile.causal else queries * keys)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, tiles: tuple[Tile, ...], scale: float) -> Tensor:
        q, k, v = query.float(), key.float(), value.float()
        batch, heads, size, width = q.shape
        out = q.new_empty(batch, size, heads, width).transpose(1, 2)
        total = q.new_empty(batch, size, heads).transpose(1, 2)  # log-sum-exp
        for tile in tiles:
            at, seen = tile.query, tile.key
            found, own = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # noqa: SLF001
                q[:, :, at], k[:, :, seen], v[:, :, seen], is_causal=tile.causal, attn_mask=tile.mask, scale=scale
            )
            if tile.joins:
                before = total[:, :, at]
                joint = torch.logaddexp(before, own)
                found = out[:, :, at] * (before - joint).exp()[..., None] + found * (own - joint).exp()[..., None]
                own = joint
            out[:, :, at], total[:, :, at] = found, own
        ctx.save_for_backward(query, key, value, out, total)
        ctx.tiles, ctx.scale = tiles, scale
        return out.to(query.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        given = grads[0].float()
        query, key, value, out, total = ctx.saved_tensors
        q, k, v = query.float(), key.float(), value.float()
        sums = tuple(torch.zeros_like(tensor) for tensor in (q, k, v))
        for tile in ctx.tiles:
            at, seen = tile.query, tile.key
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(  # noqa: SLF001
                given[:, :, at],
                q[:, :, at],
                k[:, :, seen],
                v[:, :, seen],
                out[:, :, at],
                total[:, :, at],
                0.0,
                tile.causal,
                attn_mask=tile.mask,
                scale=ctx.scale,
            )
            for whole, rows, part in zip(sums, (at, seen, seen), parts, strict=True):
                whole[:, :, rows] += part
        return *(whole.to(query.dtype) for whole in sums), None, None
