"""Dealing groups to ranks and packs: nothing lost, order kept, ranks in step."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.packing import deal, packed_length
from tests.learner import tiny

LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=40)


@given(lengths=LENGTHS, ranks=st.integers(1, 9), budget=st.integers(1, 150))
def test_every_group_is_in_one_real_pack(lengths: list[int], ranks: int, budget: int) -> None:
    dealt = deal(lengths, ranks=ranks, budget=budget)
    real = [index for share in dealt for micro in share if micro.real for index in micro.groups]
    assert sorted(real) == list(range(len(lengths)))


@given(lengths=LENGTHS, ranks=st.integers(1, 9), budget=st.integers(1, 150))
def test_ranks_run_equally_many_packs(lengths: list[int], ranks: int, budget: int) -> None:
    dealt = deal(lengths, ranks=ranks, budget=budget)
    assert len(dealt) == ranks
    assert len({len(share) for share in dealt}) == 1
    assert all(any(share[at].real for share in dealt) for at in range(len(dealt[0]))), "a pack that nobody needs"
    fillers = {micro.groups for share in dealt for micro in share if not micro.real}
    assert all([lengths[index] for index in groups] == [min(lengths)] for groups in fillers)


@given(lengths=LENGTHS, ranks=st.integers(1, 9), budget=st.integers(1, 150))
def test_packs_keep_the_order_and_the_budget(lengths: list[int], ranks: int, budget: int) -> None:
    for share in deal(lengths, ranks=ranks, budget=budget):
        real = [micro.groups for micro in share if micro.real]
        assert [micro.real for micro in share] == sorted((micro.real for micro in share), reverse=True)
        flat = [index for groups in real for index in groups]
        assert flat == sorted(flat)
        sizes = [[lengths[index] for index in groups] for groups in real]
        assert all(sum(size) <= budget or len(size) == 1 for size in sizes)
        assert all(sum(now) + after[0] > budget for now, after in pairwise(sizes)), "room wasted"


def test_ranks_differ_by_one_group_at_most() -> None:
    dealt = deal([10] * 7, ranks=3, budget=1000)
    assert sorted(sum(len(m.groups) for m in share if m.real) for share in dealt) == [2, 2, 3]


def test_nothing_to_deal() -> None:
    with pytest.raises(ValueError, match="at least one group"):
        deal([], ranks=2, budget=10)


def test_packed_length_counts_the_prompt_once() -> None:
    scored = tiny.group(0, text=6, pictures=[(2, 3)], lengths=[1, 4, 2])
    assert packed_length(scored) == (6 + 2 * 3 + 2) + 0 + 3 + 1
