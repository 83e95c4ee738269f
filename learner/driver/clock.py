"""A stopwatch that splits the seconds of a step by stage."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class StepClock:
    """The seconds of one step, by stage.

    Stages may not nest, except that `iterate` may be consumed inside a stage: its waits are then counted as its own.
    """

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the seconds of the block, less those that `iterate` counted inside it."""
        started, inside = time.perf_counter(), sum(self._seconds.values())
        try:
            yield
        finally:
            nested = sum(self._seconds.values()) - inside
            self._add(name, time.perf_counter() - started - nested)

    def iterate(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Pass the items on, and count the seconds spent waiting for each."""
        iterator = iter(items)
        while True:
            started = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self._add(name, time.perf_counter() - started)
            yield item

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    @property
    def elapsed(self) -> float:
        """Return the seconds since the step began."""
        return time.perf_counter() - self._started

    def split(self, stages: Iterable[str]) -> dict[str, float]:
        """Return the seconds of each named stage, and those of no stage as `idle`."""
        seconds = {name: self._seconds.get(name, 0.0) for name in stages}
        return seconds | {"idle": max(0.0, self.elapsed - sum(seconds.values()))}
