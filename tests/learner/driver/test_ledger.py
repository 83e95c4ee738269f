"""Law 6: dispatched = trained + dropped + pending."""

from __future__ import annotations

from typing import Any

import pytest

from common.errors import CheckpointError, DataError
from common.types import FailedGroup
from learner.driver.ledger import Ledger


@pytest.fixture
def events() -> list[tuple[str, dict[str, Any]]]:
    return []


@pytest.fixture
def ledger(events: list[tuple[str, dict[str, Any]]]) -> Ledger:
    return Ledger(on_event=lambda kind, **fields: events.append((kind, fields)), max_drop_share=0.1)


def lost(number: int) -> FailedGroup:
    return FailedGroup(prompt_id=f"train/{number}", reason="engine refused it")


def test_a_failed_group_is_counted_and_named(ledger: Ledger, events: list[tuple[str, dict[str, Any]]]) -> None:
    ledger.dispatched = 3
    ledger.drop(FailedGroup(prompt_id="train/2", reason="too long"))
    assert (ledger.dropped, ledger.pending) == (1, 2)
    assert events == [("dropped", {"prompt": "train/2", "reason": "too long"})]


def test_too_large_a_share_of_drops_stops_the_run_but_not_before_it_means_something(ledger: Ledger) -> None:
    ledger.dispatched = 19
    for number in range(2):
        ledger.drop(lost(number))
    ledger.dispatched = 20
    with pytest.raises(DataError, match=r"too many groups(.|\n)*3 of 20; the last: train/2: engine refused it"):
        ledger.drop(lost(2))


def test_books_survive_a_checkpoint(ledger: Ledger) -> None:
    ledger.dispatched, ledger.trained, ledger.dropped = 7, 5, 1
    other = Ledger(on_event=lambda kind, **fields: None, max_drop_share=1.0)
    other.restore(ledger.counts())
    assert (other.dispatched, other.trained, other.dropped, other.pending) == (7, 5, 1, 1)


@pytest.mark.parametrize("planted", [{"trained": -1}, {"dropped": 1.5}, {"failed": "1"}, {"dispatched": 4}])
def test_counts_that_no_run_wrote_are_refused(ledger: Ledger, planted: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="the counts of groups in the checkpoint"):
        ledger.restore({"dispatched": 5, "trained": 3, "dropped": 2, "failed": 1, "filtered": 0} | planted)
