"""Waits with a deadline that counts what the awaited side had, not what this process slept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")
TICK_S = 1.0  # a pause of this process longer than that counts as one second


class LostError(Exception):
    """An engine is silent, hangs, or answers what it was not asked."""


async def wait_for(awaited: Awaitable[T], seconds: float, what: str) -> T:
    """Return the value. Raises LostError where it does not come in that many seconds, naming what did not."""
    task = asyncio.ensure_future(awaited)
    left = seconds
    try:
        while left > 0:
            began = time.monotonic()
            done, _ = await asyncio.wait({task}, timeout=min(left, TICK_S))
            if done:
                return task.result()
            left -= min(time.monotonic() - began, TICK_S)
    finally:
        task.cancel()
    raise LostError(f"{what} for {seconds:g} s")
