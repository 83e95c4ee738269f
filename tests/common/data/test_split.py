from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from common.data.split import hold_out


@given(st.lists(st.sampled_from("abcd"), max_size=60), st.floats(0, 0.99))
def test_stratified_and_never_a_whole_label(labels: list[str], fraction: float) -> None:
    held_out = hold_out(labels, fraction)
    assert held_out <= set(range(len(labels))) and held_out == hold_out(labels, fraction)
    total, held = Counter(labels), Counter(labels[row] for row in held_out)
    for label, count in total.items():
        assert held[label] < count
        assert abs(held[label] - min(fraction * count, count - 1)) <= 1
