"""Dealing groups to ranks and packs: nothing lost, order kept, ranks in step."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.trainer.microbatches import count_positions, deal, estimate_cost
from tests.helpers import tiny

LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=40)


@given(lengths=LENGTHS, ranks=st.integers(1, 9), budget=st.integers(1, 150))
def test_every_group_is_in_one_real_pack(lengths: list[int], ranks: int, budget: int) -> None:
    dealt = deal(lengths, lengths, ranks=ranks, budget=budget)
    real = [index for share in dealt for micro in share if micro.real for index in micro.groups]
    assert sorted(real) == list(range(len(lengths)))


@given(lengths=LENGTHS, ranks=st.integers(1, 9), budget=st.integers(1, 150))
def test_ranks_run_equally_many_packs(lengths: list[int], ranks: int, budget: int) -> None:
    dealt = deal(lengths, lengths, ranks=ranks, budget=budget)
    assert len(dealt) == ranks
    assert len({len(share) for share in dealt}) == 1
    assert all(any(share[at].real for share in dealt) for at in range(len(dealt[0]))), "a pack that nobody needs"
    fillers = {micro.groups for share in dealt for micro in share if not micro.real}
    assert all([lengths[index] for index in groups] == [min(lengths)] for groups in fillers)


@given(lengths=LENGTHS, ranks=st.integers(1, 9), budget=st.integers(1, 150))
def test_packs_keep_the_order_and_the_budget(lengths: list[int], ranks: int, budget: int) -> None:
    for share in deal(lengths, lengths, ranks=ranks, budget=budget):
        real = [micro.groups for micro in share if micro.real]
        assert [micro.real for micro in share] == sorted((micro.real for micro in share), reverse=True)
        flat = [index for groups in real for index in groups]
        assert flat == sorted(flat)
        sizes = [[lengths[index] for index in groups] for groups in real]
        assert all(sum(size) <= budget or len(size) == 1 for size in sizes)


@given(lengths=LENGTHS, budget=st.integers(1, 150))
def test_one_rank_wastes_no_room(lengths: list[int], budget: int) -> None:
    (share,) = deal(lengths, lengths, ranks=1, budget=budget)
    sizes = [[lengths[index] for index in micro.groups] for micro in share]
    assert all(sum(now) + after[0] > budget for now, after in pairwise(sizes))


@given(lengths=LENGTHS, ranks=st.integers(1, 9), budget=st.integers(1, 150))
def test_a_rank_repeats_a_group_only_when_its_own_run_out(lengths: list[int], ranks: int, budget: int) -> None:
    for share in deal(lengths, lengths, ranks=ranks, budget=budget):
        real = [micro for micro in share if micro.real]
        assert len(real) == len(share) or all(len(micro.groups) == 1 for micro in real)


def test_ranks_have_equal_work_on_mixed_data() -> None:
    """Prompts of 100 to 1,000 tokens, eight of them a rank: no rank waits for more than a tenth of the step."""
    for seed in range(20):
        lengths = [int(length) for length in np.random.default_rng(seed).uniform(100, 1000, 32)]
        dealt = deal(lengths, lengths, ranks=4, budget=1024)
        work = [sum(lengths[index] for micro in share for index in micro.groups) for share in dealt]
        assert max(work) < 1.1 * sum(lengths) / 4


def test_ranks_differ_by_one_group_at_most_when_all_cost_the_same() -> None:
    dealt = deal([10] * 7, [1.0] * 7, ranks=3, budget=1000)
    assert sorted(sum(len(m.groups) for m in share if m.real) for share in dealt) == [2, 2, 3]


def test_the_worked_example() -> None:
    """Of the module's docstring: the second rank needs two packs, so the first cuts its one."""
    lengths = [20, 15, 10, 10, 10]
    dealt = deal(lengths, lengths, ranks=2, budget=30)
    assert [[micro.groups for micro in share] for share in dealt] == [[(0,), (3,)], [(1, 2), (4,)]]


def test_nothing_to_deal() -> None:
    with pytest.raises(ValueError, match="at least one group"):
        deal([], [], ranks=2, budget=10)


def test_packed_length_counts_the_prompt_once() -> None:
    scored = tiny.group(0, text=6, pictures=[(2, 3)], lengths=[1, 4, 2])
    assert count_positions(scored) == (6 + 2 * 3 + 2) + 0 + 3 + 1


def test_packed_cost_counts_pictures_and_attention() -> None:
    plain = tiny.group(0, text=20, pictures=[], lengths=[1])
    assert estimate_cost(plain) == pytest.approx(20 + 20**2 / 2 / 4000)
    seeing = replace(plain, prompt=replace(plain.prompt, text_ids=plain.prompt.token_ids[:14]))
    assert estimate_cost(seeing) == pytest.approx(estimate_cost(plain) + 6 * 1.5)
    long, wide = (tiny.group(0, text=20, pictures=[], lengths=lengths) for lengths in ([401], [101] * 4))
    assert count_positions(long) == count_positions(wide)
    assert estimate_cost(long) > estimate_cost(wide), "a branch sees all of itself, and nothing of the others"
