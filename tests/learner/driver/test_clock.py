"""Every second of a step is in exactly one stage."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from learner.driver.clock import StepClock


def slow(count: int) -> Iterator[int]:
    for number in range(count):
        time.sleep(0.02)
        yield number


def test_time_waiting_for_an_iterator_is_not_its_consumers() -> None:
    clock = StepClock()
    with clock.stage("reward"):
        for _ in clock.iterate("generate", slow(3)):
            time.sleep(0.01)
    time.sleep(0.03)
    split = clock.split(("generate", "reward", "learn"))
    assert split["generate"] >= 0.06
    assert split["reward"] >= 0.03
    assert split["learn"] == 0
    assert split["idle"] >= 0.03
    assert sum(split.values()) == pytest.approx(clock.elapsed, abs=0.005)


def test_a_stage_within_another_or_within_the_wait_for_an_item_counts_as_its_own_alone() -> None:
    """As in `train`: ranges come out of an iterator that waits for groups, and each is sent to learn."""
    clock = StepClock()

    def ranges() -> Iterator[int]:
        for number in clock.iterate("generate", slow(4)):
            time.sleep(0.01)
            if number % 2:
                yield number

    for _ in clock.iterate("reward", ranges()):
        with clock.stage("learn"):
            time.sleep(0.03)
    split = clock.split(("generate", "reward", "learn"))
    assert split["generate"] >= 0.08 and split["reward"] >= 0.04 and split["learn"] >= 0.06
    assert sum(split.values()) == pytest.approx(clock.elapsed, abs=0.005)
    assert split["idle"] < 0.02
