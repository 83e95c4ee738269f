"""A plateau of a measure: against a search over all places where the last gain may have been."""

from __future__ import annotations

import itertools

import pytest

from learner.driver.control.plateau import find_plateau


@pytest.mark.parametrize(
    ("values", "after", "delta", "best"),
    [
        ([], 1, 0.0, None),
        ([0.5], 1, 0.0, None),
        ([0.5, 0.5], 1, 0.0, 0.5),
        ([0.5, 0.8, 0.8, 0.7], 2, 0.0, 0.8),
        ([0.5, 0.8, 0.7, 0.9], 2, 0.0, None),
        ([0.5, 0.80, 0.81, 0.79], 2, 0.02, 0.80),
        ([0.5, 0.80, 0.81, 0.83], 2, 0.02, None),
        ([0.9, 0.1, 0.2, 0.3], 3, 0.0, 0.9),
    ],
)
def test_by_hand(values: list[float], after: int, delta: float, best: float | None) -> None:
    assert find_plateau(values, stop_after=after, stop_delta=delta) == best


@pytest.mark.parametrize("after", [1, 2, 3])
def test_without_a_delta_it_is_that_the_first_best_lies_so_far_back(after: int) -> None:
    for values in itertools.product((0.1, 0.2, 0.3), repeat=6):
        best = max(values)
        expected = best if len(values) - 1 - values.index(best) >= after else None
        assert find_plateau(values, stop_after=after, stop_delta=0.0) == expected
