"""Adaptive G: the sizes of groups against every way to deal out a budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config.schema import Config
from learner.driver.control.group_sizes import choose_group_sizes, deal_completions, find_gain, find_value
from learner.driver.control.solve_rates import SolveRates

rates = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))


def list_sizes(prompts: int, budget: int, most: int) -> Iterator[tuple[int, ...]]:
    return (sizes for sizes in product(range(2, most + 1), repeat=prompts) if sum(sizes) == budget)


@given(st.lists(rates, min_size=2, max_size=4), st.integers(2, 4), st.integers(1, 4))
def test_no_other_sizes_of_the_same_sum_are_worth_more(found: list[float], each: int, more: int) -> None:
    budget, most = each * len(found), each + more
    sizes = deal_completions(found, budget, most=most)
    assert sum(sizes) == budget
    assert all(2 <= size <= most for size in sizes)

    def add_up(tried: Sequence[int]) -> float:
        return sum(find_value(rate, size) for rate, size in zip(found, tried, strict=True))

    best = max(map(add_up, list_sizes(len(found), budget, most)))
    assert add_up(sizes) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize(("rate", "size"), [(0.5, 2), (0.1, 5), (0.9, 3), (0.0, 4), (1.0, 4)])
def test_a_group_is_worth_the_chance_that_it_teaches_times_how_much(rate: float, size: int) -> None:
    """Count the groups with a right and a wrong completion among all that may come."""
    chance = sum(
        np.prod([rate if right else 1 - rate for right in group])
        for group in product((True, False), repeat=size)
        if 0 < sum(group) < size
    )
    assert find_value(rate, size) == pytest.approx(chance * rate * (1 - rate) ** 2)
    assert find_gain(rate, size) == pytest.approx(find_value(rate, size + 1) - find_value(rate, size), abs=1e-15)


@given(rates, st.integers(2, 9), st.integers(2, 16))
def test_alike_rows_get_alike(rate: float, prompts: int, each: int) -> None:
    assert deal_completions([rate] * prompts, prompts * each, most=4 * each) == [each] * prompts


def test_hard_rows_get_most_and_solved_rows_least() -> None:
    easy, half, hard = deal_completions([0.98, 0.5, 0.05], 48, most=40)
    assert easy == 2 < half < hard < 40


@given(st.lists(rates, min_size=1, max_size=40), st.integers(2, 64))
def test_the_cap_holds_and_the_budget_is_spent_even_so(found: list[float], each: int) -> None:
    sizes = deal_completions(found, each * len(found), most=each + 1)
    assert sum(sizes) == each * len(found)
    assert max(sizes) <= each + 1 and min(sizes) >= 2


def test_without_the_option_each_row_gets_g() -> None:
    for most, expected in ((None, [4, 4]), (6, [6, 2])):
        config = Config.model_validate({"signal": {"max_group_size": most}})
        table = SolveRates(config)
        table.restore({"a": [4, 8, 0, 0], "b": [8, 8, 3, 0]})
        assert choose_group_sizes(table, ["a", "b"], config) == expected
