"""Figures of how far engine and learner are apart, against numpy over all tokens at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.types import GAP_EDGES
from learner.objective.mismatch import Mismatch

DIFFERENCES = st.lists(
    st.lists(st.floats(-30, 30, width=32) | st.floats(-(2**-16), 2**-16, width=32), min_size=1, max_size=9), min_size=1
)


@settings(deadline=None, max_examples=200)
@given(DIFFERENCES)
def test_sums_of_groups_are_those_of_all_tokens(groups: list[list[float]]) -> None:
    parts = [torch.tensor(own, dtype=torch.float32) for own in groups]
    found = Mismatch.add_up(Mismatch.of(own, own > 1) for own in parts).average()

    flat = torch.cat(parts).double().numpy()
    gap, weight = np.abs(flat), np.exp(flat)
    assert found.tokens == len(flat)
    assert found.gap_mean == pytest.approx(gap.mean(), rel=1e-9)
    assert found.gap_max == gap.max()
    assert found.engine_kl == pytest.approx((weight - flat - 1).mean(), rel=1e-9, abs=1e-12)
    assert found.effective_share == pytest.approx(weight.sum() ** 2 / (len(flat) * (weight**2).sum()), rel=1e-9)
    assert found.corrected_share == pytest.approx((flat > 1).mean())
    counts, _ = np.histogram(gap, bins=[0.0, *GAP_EDGES, np.inf])
    assert list(found.gap_counts) == counts.tolist()


def test_no_token_has_no_gap_and_loses_nothing() -> None:
    found = Mismatch.add_up([]).average()
    assert (found.tokens, found.gap_max, found.effective_share, sum(found.gap_counts)) == (0, 0, 1, 0)


def test_the_same_log_probs_have_an_effective_share_of_1() -> None:
    found = Mismatch.of(torch.zeros(7), torch.zeros(7, dtype=torch.bool)).average()
    assert (found.effective_share, found.engine_kl, found.gap_counts[0]) == (1.0, 0.0, 7)


def test_a_gap_that_is_no_number_is_seen() -> None:
    """Whatever group comes before or after it."""
    nothing, some = (Mismatch.of(torch.tensor([value]), torch.tensor([False])) for value in (math.nan, 0.5))
    for order in ([nothing, some], [some, nothing]):
        assert math.isnan(Mismatch.add_up(order).largest)


def test_a_gap_too_large_for_its_weight_stops_no_run() -> None:
    assert Mismatch.of(torch.tensor([800.0, 0.0]), torch.tensor([True, False])).average().gap_max == 800
