"""Records refuse what cannot be; the history remembers the run."""

from __future__ import annotations

import math

import pytest

from learner.tracking.records import STAGES, History
from tests.helpers.fake_run import record


def test_a_record_flattens_to_numbers_by_name() -> None:
    row = record(3).flat()
    assert row["step"] == 3 and row["rewards/accuracy"] == record(3).rewards["accuracy"]
    assert math.isclose(sum(row[f"share/{stage}"] for stage in STAGES), 1.0)
    assert all(isinstance(value, int | float) for value in row.values())


@pytest.mark.parametrize("changes", [{"seconds": {"learn": 1.0}}, {"groups_trained": 32, "groups_dropped": 1}])
def test_a_record_checks_itself(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"seconds are of|dropped >"):
        record(0, **changes)


def test_a_nan_gap_stays_in_the_history() -> None:
    history = History()
    for gap in (1e-6, math.nan, 1e-5):
        history.add_step(record(0, logprob_gap_max=gap).flat())
    assert math.isnan(history.max_logprob_gap)


def test_best_is_the_first_that_none_surpassed() -> None:
    history = History(accuracies={0: 0.2, 50: 0.9, 100: 0.9, 150: 0.7})
    assert (history.before, history.now, history.last_step, history.best) == (0.2, 0.7, 150, (50, 0.9))
    assert History().best is None
