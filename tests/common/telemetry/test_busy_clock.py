"""The seconds an actor has worked."""

from __future__ import annotations

import time

from common.telemetry.busy_clock import BusyClock


def test_blocks_add_up_and_one_inside_another_counts_once() -> None:
    busy, began = BusyClock(), time.perf_counter()
    with busy:
        time.sleep(0.02)
        with busy:
            time.sleep(0.02)
    worked = time.perf_counter() - began
    time.sleep(0.05)
    assert 0.04 <= busy.seconds <= worked


def test_a_block_that_goes_on_counts_already() -> None:
    busy = BusyClock()
    assert busy.seconds == 0
    with busy:
        first = busy.seconds
        time.sleep(0.01)
        assert busy.seconds >= first + 0.01
