"""What a driver tells its parent process: signs of life, where it runs, which wait it is in, what it has lost.

Each message is one line of JSON, over a pipe that only these two hold.
"""

from __future__ import annotations

import json
import os
import select
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from common.command import say
from common.placement import answers
from common.process import find_own_frame

BEAT_S = 1.0
STANDSTILL_S = 300.0  # of the main thread; one that waits for Ray looks up every second
WARN_S = 60.0
TRIES = 2  # connections in a row that must fail
_WAIT = threading.Condition.wait.__code__


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifeline:
    """What a run cannot live without: a port that takes connections as long as it is there."""

    name: str  # "the raylet of this node"
    address: str
    port: int
    returns: bool  # it may come back, as on a cluster whose control store is restarted


@dataclass(slots=True)
class Line:
    """A driver's line to its parent. Without a descriptor there is no parent, and nothing is said."""

    descriptor: int | None = None
    lifelines: Sequence[Lifeline] = ()
    _over: threading.Event = field(default_factory=threading.Event)
    _missed: dict[str, int] = field(default_factory=dict)  # connections in a row that failed, by name

    def hold_on_to(self, lifelines: Sequence[Lifeline]) -> None:
        """Look after these from now on, in place of others; and so can the parent, once this process is gone."""
        self.lifelines = lifelines
        self.tell(lifelines=[(one.name, one.address, one.port) for one in lifelines])

    def tell(self, **facts: Any) -> None:
        """Send facts, in one write. A parent that does not listen stops nobody."""
        if self.descriptor is not None:
            with suppress(OSError):
                os.write(self.descriptor, json.dumps(facts).encode() + b"\n")

    @contextmanager
    def wait(self, what: str, seconds: float) -> Iterator[None]:
        """Have the parent end this process if the block takes longer: for calls that take no deadline of their own."""
        self.tell(wait=what, seconds=seconds)
        try:
            yield
        finally:
            self.tell(wait=None, seconds=0)

    @contextmanager
    def beat(self) -> Iterator[None]:
        """Send a sign of life every second from a thread, and say where the main thread stands still for too long."""
        self.tell(beats=True)
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        try:
            yield
        finally:
            self._over.set()
            self.tell(beats=False)

    def _beat(self) -> None:
        thread = threading.main_thread().ident
        assert thread is not None
        clock, used, still = time.pthread_getcpuclockid(thread), -1.0, 0.0
        while not self._over.wait(BEAT_S):
            now = time.clock_gettime(clock)  # CPU seconds of the main thread
            moves = now != used or has_deadline(thread) or not takes_output()  # a reader may stop it, as Ctrl-S does
            still, used = 0.0 if moves else still + BEAT_S, now
            if WARN_S < still <= WARN_S + BEAT_S:
                say(f"warning: nothing has moved for {still:.0f} s, at {describe_place(thread)}", file=sys.stderr)
            if STANDSTILL_S < still <= STANDSTILL_S + BEAT_S:
                self.tell(lost=f"its main thread stands still for {still:.0f} s at {describe_place(thread)}")
            self.tell(beats=True)
            self._look_around()

    def _look_around(self) -> None:
        """Tell which lifeline is cut."""
        for one in self.lifelines:
            missed = 0 if answers(one.address, one.port) else self._missed.get(one.name, 0) + 1
            self._missed[one.name] = missed
            fault = f"{one.name} at {one.address}:{one.port} has died"
            if one.returns and missed in (0, TRIES):
                self.tell(doubt=fault if missed else None)
            elif missed == TRIES:
                self.tell(lost=fault)


def takes_output(*, wait_s: float = 0.0) -> bool:
    """Return whether standard output and standard error take what is printed, or would fail at once."""
    asked = select.poll()
    for number in (1, 2):
        asked.register(number, select.POLLOUT)
    return len(asked.poll(wait_s * 1000)) == 2


def has_deadline(thread: int) -> bool:
    """Return whether a thread is in a wait of Python's that ends at a deadline: of a queue, an event, a future."""
    frame = sys._current_frames().get(thread)  # noqa: SLF001  # no other way to see another thread
    return frame is not None and frame.f_code is _WAIT and frame.f_locals.get("timeout") is not None


def describe_place(thread: int) -> str:
    """Return where a thread is: the innermost line of ours, or of anybody where none is ours."""
    innermost = sys._current_frames().get(thread)  # noqa: SLF001  # no other way to see another thread
    frame = find_own_frame(innermost) or innermost
    if frame is None:
        return "an unknown place"
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
