"""What a soak does to a run, and what it looks at meanwhile: each a thread of the driver."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import psutil


@dataclass(slots=True)
class Strikes:
    """Strikes a process of the run every few seconds, by a schedule of a random seed, and notes what it did."""

    every_s: float
    events: list[dict[str, Any]]
    done: Counter[str] = field(default_factory=Counter)
    draw: random.Random = field(default_factory=lambda: random.Random(1))
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Strike until it is over."""
        ways: list[tuple[Callable[[], str], int]] = [
            (lambda: self._send("engine", signal.SIGKILL), 9),
            (lambda: self._send("engine", signal.SIGSTOP), 3),
            (lambda: self._slow("engine"), 3),
            (lambda: self._send("worker", signal.SIGKILL), 4),
            (lambda: self._slow("worker"), 1),
        ]
        while not self.over.wait(self.every_s):
            (strike,) = self.draw.choices([way for way, _ in ways], [weight for _, weight in ways])
            with suppress(ProcessLookupError):
                self.done[strike()] += 1

    def wake_all(self) -> None:
        """Let every process go on: one that is stopped outlives Ray, and here no parent process of a run ends it."""
        for one in list(self.events):
            if "pid" in one:
                _wake(one["pid"])

    def _choose(self, kind: str) -> int:
        """Return the process of one of this kind that is up, and was not struck yet."""
        up = "engine_up" if kind == "engine" else "reward_worker_up"
        pids = [one["pid"] for one in list(self.events) if one["kind"] == up]
        alive = [
            pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_STOPPED
        ]
        if not alive:
            raise ProcessLookupError
        return int(self.draw.choice(sorted(alive)))

    def _send(self, kind: str, number: int) -> str:
        os.kill(self._choose(kind), number)
        return f"{kind} {signal.Signals(number).name}"

    def _slow(self, kind: str) -> str:
        """Stop a process for a second."""
        pid = self._choose(kind)
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(1.0, _wake, [pid]).start()
        return f"{kind} slowed"


def _is_at_work(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _wake(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


@dataclass(slots=True)
class Memory:
    """Looks at the memory of this process every second."""

    over: threading.Event = field(default_factory=threading.Event)
    megabytes: list[float] = field(default_factory=list)

    def run(self) -> None:
        """Look until it is over."""
        process = psutil.Process()
        while not self.over.wait(1.0):
            self.megabytes.append(process.memory_info().rss / 1e6)

    def growth(self) -> float:
        """Return by how many MB the last fifth lies above the second one."""
        fifth = max(1, len(self.megabytes) // 5)
        return fmean(self.megabytes[-fifth:]) - fmean(self.megabytes[fifth : 2 * fifth])
