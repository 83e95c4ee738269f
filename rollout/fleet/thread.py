"""A thread with an asyncio loop, and a way to call it from another one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import TimeoutError as NotInTime
from typing import Any, TypeVar

from common.errors import DeadlineError, EngineError

T = TypeVar("T")
LOOK_S = 1.0  # between two looks whether the thread is still there


class LoopThread:
    """Runs coroutines, one at a time, in a thread that no exit of the process waits for."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T], *, what: str, timeout_s: float) -> T:
        """Return what a coroutine returns. Raises what it raises, or DeadlineError naming `what`."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout_s)
        except NotInTime as error:
            if future.done() and not future.cancelled():
                raise  # the coroutine's own
            raise DeadlineError(
                f"waited too long for {what}",
                got=f"nothing after {timeout_s:g} s",
                remedy="look at Ray's logs, or raise the timeout in its section of the configuration",
            ) from error
        finally:
            future.cancel()

    def check(self) -> None:
        """Raise EngineError when the thread is gone."""
        if not self._thread.is_alive():
            raise EngineError(
                f"the thread of the {self._name} ended",
                got="no loop runs",
                remedy="this is a bug in Rollcall: report it",
            )

    def close(self) -> None:
        """End the loop."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        if not self._thread.is_alive():
            self._loop.close()
