"""A stopwatch that splits the seconds of a step by stage."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class StepClock:
    """The seconds of one step, by stage.

    Where one stage is within another its seconds are counted as its own alone. So what is sampled while a range is
    scored counts as sampled.
    """

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the seconds of the block, less those that were counted inside it."""
        started, inside = time.perf_counter(), sum(self._seconds.values())
        try:
            yield
        finally:
            nested = sum(self._seconds.values()) - inside
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - started - nested

    def iterate(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Pass the items on, and count the seconds spent waiting for each."""
        iterator = iter(items)
        while True:
            with self.stage(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    @property
    def elapsed(self) -> float:
        """Return the seconds since the step began."""
        return time.perf_counter() - self._started

    def split(self, stages: Iterable[str]) -> dict[str, float]:
        """Return the seconds of each named stage, and those of no stage as `idle`."""
        seconds = {name: self._seconds.get(name, 0.0) for name in stages}
        return seconds | {"idle": max(0.0, self.elapsed - sum(seconds.values()))}
