"""A look at every rank twice a second, whatever it is at: who dies is known at once, and who stands still in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from common.errors import DeadlineError, LearnerLostError, RollcallError
from common.placement import find_cause, wait
from common.process import CONTROL
from common.types import BucketKind

BEAT_S = 0.5  # between two looks
NOTICE_S = 5.0  # within which the death of a rank is known after another has failed of it
MUTE_S = 3.0  # without an answer after which a rank is to blame for a deadline that has passed
OF_CONNECTIONS = ("gloo", "NCCL", "DistBackendError", "DistNetworkError")  # in what torch says of a peer that is gone


@dataclass(frozen=True, slots=True, kw_only=True)
class RankInfo:
    """Where a rank runs, and what it publishes."""

    pid: int
    address: str
    node: str  # Ray's id of it
    buckets: tuple[BucketKind, ...]  # of weights, in order
    vision_unchanged: bool  # see WeightManifest


@dataclass(frozen=True, slots=True, kw_only=True)
class RankLoss:
    """Which rank is lost, and why."""

    rank: int
    why: str


class RankWatch:
    """Watches the ranks in a thread of its own, until it is closed or one of them is lost."""

    def __init__(
        self, ranks: Sequence[Any], *, silence_s: float, on_loss: Callable[[RankLoss], None], beat_s: float = BEAT_S
    ) -> None:
        """Begin.

        Args:
            ranks: the actors.
            silence_s: seconds without an answer after which a rank that is up is lost. It is killed then, so that
                nobody waits for it.
            on_loss: is told of the first loss, by the thread.
        """
        self._ranks, self._silence_s, self._on_loss, self._beat_s = ranks, silence_s, on_loss, beat_s
        self._silent = [0.0] * len(ranks)  # seconds
        self.packs = [0] * len(ranks)  # that each had built when it last answered
        self._loss: RankLoss | None = None
        self._lock = threading.Lock()
        self._known, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="learner watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(NOTICE_S)

    def explain(self, error: Exception, unfinished: Callable[[], Sequence[int]]) -> RankLoss | None:
        """Return the loss that an error of a call came of; None where no rank is lost.

        Args:
            unfinished: lists the ranks that have not answered all calls, the one with the fewest answers first.
        """
        if isinstance(error, LearnerLostError):
            return None  # it is told already
        if self._known.wait(self._allow(error)):
            return self._loss
        if isinstance(error, DeadlineError):
            mute = [rank for rank, seconds in enumerate(self._silent) if seconds >= MUTE_S] or list(unfinished())
            return self._note(RankLoss(rank=mute[0], why=f"hangs: {error.got}")) if mute else None
        if any(word in str(error) for word in OF_CONNECTIONS):
            return self._note(RankLoss(rank=0, why=f"the ranks lost each other: {find_cause(error)}"))
        return None

    def _allow(self, error: Exception) -> float:
        """Return the seconds within which a loss is known that an error may have come of."""
        if isinstance(error, DeadlineError):
            return 0.0
        if isinstance(error, RollcallError):  # a rank raised it, perhaps since another was gone
            return 3 * self._beat_s if len(self._ranks) > 1 else 0.0
        return NOTICE_S

    def _note(self, loss: RankLoss) -> RankLoss:
        with self._lock:
            if self._loss is None:
                self._loss = loss
                self._on_loss(loss)
                self._known.set()
            return self._loss

    def _watch(self) -> None:
        import ray

        asked = [self._ask(rank) for rank in self._ranks]
        up = [False] * len(asked)  # it may take long to start
        while not (self._closing.wait(self._beat_s) or self._known.is_set()):
            began = time.monotonic()
            answered = wait(asked, timeout_s=0)
            for rank, call in enumerate(asked):
                if call in answered:
                    try:
                        self.packs[rank] = ray.get(call, timeout=NOTICE_S)
                    except ray.exceptions.RayError as error:
                        if not self._closing.is_set():
                            self._note(RankLoss(rank=rank, why=_explain(error)))
                        return
                    up[rank], self._silent[rank], asked[rank] = True, 0.0, self._ask(self._ranks[rank])
                elif up[rank]:  # what this process slept is not the rank's fault
                    self._silent[rank] += min(self._beat_s + time.monotonic() - began, 2 * self._beat_s)
                if self._silent[rank] > self._silence_s:
                    self._note(RankLoss(rank=rank, why=f"gave no sign of life for {self._silence_s:g} s"))
                    with suppress(ray.exceptions.RayError):
                        ray.kill(self._ranks[rank])
                    return

    def _ask(self, rank: Any) -> Any:
        return rank.beat.options(concurrency_group=CONTROL).remote()


def _explain(error: Exception) -> str:
    """Return why Ray says that an actor is lost, without its advice."""
    return find_cause(error).partition(" Some common causes include")[0]
