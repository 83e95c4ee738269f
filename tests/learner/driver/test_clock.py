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
