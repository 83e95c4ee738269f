"""Where a step's seconds go."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class StepClock:
    """Seconds by stage, of one step. Stages do not nest but through `iterate`, which counts only its own waits."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time of the block, less what `iterate` counted inside it."""
        started, inside = time.perf_counter(), sum(self._seconds.values())
        try:
            yield
        finally:
            nested = sum(self._seconds.values()) - inside
            self._add(name, time.perf_counter() - started - nested)

    def iterate(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Pass items on, counting the time spent waiting for the next one."""
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
        """Seconds since the step began."""
        return time.perf_counter() - self._started

    def split(self, stages: Iterable[str]) -> dict[str, float]:
        """Seconds of each named stage, and what none of them accounts for as `idle`."""
        seconds = {name: self._seconds.get(name, 0.0) for name in stages}
        return seconds | {"idle": max(0.0, self.elapsed - sum(seconds.values()))}
