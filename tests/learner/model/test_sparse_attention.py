"""Attention by rectangles is attention under the dense mask, in value and gradient."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.model import sparse_attention
from learner.model.layout import Layout, Span, index_tokens, make_block_mask
from learner.model.sparse_attention import Rectangle, SparseAttention, build_sparse_attention

HEADS, SHARED, WIDTH = 4, 2, 8
GROUPS = st.lists(st.tuples(st.integers(1, 40), st.lists(st.integers(0, 12), max_size=5)), min_size=1, max_size=5)


def layout(groups: Sequence[tuple[int, Sequence[int]]]) -> Layout:
    """Groups of a prompt of so many tokens and branches of so many."""
    spans, at = [], 0
    for prompt, branches in groups:
        fork = at + prompt
        ends = tuple(fork + sum(branches[: index + 1]) for index in range(len(branches)))
        spans.append(Span(start=at, fork=fork, ends=ends))
        at = spans[-1].end
    return Layout(spans=tuple(spans))


def dense(query: Tensor, key: Tensor, value: Tensor, where: Layout, scale: float = 0.3) -> Tensor:
    mask = make_block_mask(index_tokens(where, query.device), dtype=query.dtype)
    wide = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(wide, 1), value.repeat_interleave(wide, 1)
    found = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return found.transpose(1, 2)


def inputs(size: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(size)

    def made(heads: int) -> Tensor:
        return torch.randn(1, size, heads, WIDTH, generator=draw).to(dtype).transpose(1, 2).requires_grad_()

    return made(HEADS), made(SHARED), made(SHARED)


def compare(
    found: SparseAttention, where: Layout, *, dtype: torch.dtype = torch.float32, tolerance: float = 1e-5
) -> None:
    q, k, v = inputs(where.size, dtype)
    outs = [found(q, k, v, 0.3), dense(q, k, v, where)]
    slope = torch.randn(outs[0].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    grads = [torch.autograd.grad(out, (q, k, v), slope) for out in outs]
    for one, other in zip((outs[0], *grads[0]), (outs[1], *grads[1]), strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@settings(max_examples=30, deadline=None)
@given(groups=GROUPS, call=st.sampled_from([0.0, 3e3, 1e6]))
def test_any_plan_is_dense_attention(groups: list[tuple[int, list[int]]], call: float) -> None:
    """Calls that cost nothing, something, everything: all parts apart, some together, one masked rectangle."""
    where = layout(groups)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse_attention, "CALL_COST", call)
        compare(build_sparse_attention(where, width=HEADS * WIDTH), where)


def test_bfloat16_is_close() -> None:
    where = layout([(30, [3, 0, 8]), (7, [1, 1])])
    compare(build_sparse_attention(where, width=10**6), where, dtype=torch.bfloat16, tolerance=3e-2)


def test_long_branches_never_meet() -> None:
    """What rectangles are for: 4 branches of 1,000 over a prompt of 300 compute a seventh of S x S."""
    where = layout([(300, [1000] * 4), (300, [1000] * 4)])
    found = build_sparse_attention(where, width=512).rectangles
    pairs = sum((t.query.stop - t.query.start) * (t.key.stop - t.key.start) / (1 + t.causal) for t in found)
    assert pairs < where.size**2 / 10
    assert not any(own.masked for own in found)


def test_the_worked_example() -> None:
    """Of the module's docstring."""
    found = build_sparse_attention(layout([(300, [100, 100])]), width=512).rectangles
    prompt, first, second = slice(0, 300), slice(300, 400), slice(400, 500)
    assert [(own.query, own.key, own.causal, own.joins) for own in found] == [
        (prompt, prompt, True, False),
        (slice(300, 500), prompt, False, False),
        (first, first, True, True),
        (second, second, True, True),
    ]


def test_tiny_groups_share_a_rectangle() -> None:
    where = layout([(17, [1] * 16)] * 8)
    assert 1 < len(build_sparse_attention(where, width=128).rectangles) < 8
    assert build_sparse_attention(where, width=1).rectangles[0][:2] == (slice(0, where.size), slice(0, where.size))


def test_a_rectangle_too_few_shows() -> None:
    """The comparison above can fail: without a branch over itself the numbers differ."""
    where = layout([(10, [5])])
    found = SparseAttention([own for own in build_sparse_attention(where, width=10**6).rectangles if not own.joins])
    with pytest.raises(AssertionError):
        compare(found, where)
    assert isinstance(found.rectangles[0], Rectangle)
