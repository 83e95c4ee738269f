"""How long an actor has worked."""

from __future__ import annotations

import time
from types import TracebackType


class BusyClock:
    """Adds up the seconds of the blocks it guards: `with busy: work()`. A block may be inside another one.

    One thread works, and any other may read `seconds`.
    """

    def __init__(self) -> None:
        self._done, self._since, self._depth = 0.0, 0.0, 0

    def __enter__(self) -> None:
        if self._depth == 0:
            self._since = time.perf_counter()
        self._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._done += time.perf_counter() - self._since

    @property
    def seconds(self) -> float:
        """Return the seconds so far, those of a block that goes on included."""
        done, since = self._done, self._since
        return done + time.perf_counter() - since if self._depth else done
