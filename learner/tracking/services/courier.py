"""Takes what a run tells to trackers. No step waits for one, none can end the run, and what fails is counted."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from queue import SimpleQueue

from common.storage.bucket import hide_keys
from learner.tracking.services.service import RunFacts, SentSample, Service

SERVICES = {"wandb": "WandbRun", "mlflow": "MlflowRun", "trackio": "TrackioRun"}  # module here -> its class
MOST_WAITING = 10_000  # calls behind a tracker that is slow; more are lost
LAST_S = 8.0  # for all that still waits when the run ends, which may be at a signal
SECRET_NAMES = ("KEY", "TOKEN", "SECRET", "PASSWORD")  # in the name of a variable of the environment
SHORTEST = 6  # characters of a secret: a shorter one would blot out words

Work = Callable[[Service], None]


class Courier:
    """One tracker, called by a thread of its own that no exit of the process waits for."""

    def __init__(self, name: str, facts: RunFacts, *, on_failure: Callable[[str, str], None]) -> None:
        """Begin to open the run there.

        Args:
            on_failure: is told the tracker and why, at the first of its failures.
        """
        self.name, self.failures = name, 0
        self._facts, self._on_failure = facts, on_failure
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def send(self, work: Work) -> None:
        """Let the tracker be told something, soon."""
        if self._queue.qsize() < MOST_WAITING:
            self._queue.put(work)
        else:
            self._fail("it is too slow: what is new is not sent")

    def close(self, until: float) -> None:
        """Wait until all was sent, or until that moment of the monotonic clock."""
        self._queue.put(None)
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._fail(f"it did not take all within {LAST_S:g} s of the end")

    def _run(self) -> None:
        service: Service | None = None
        while (work := self._queue.get()) is not None:
            try:
                service = service or _open(self.name, self._facts)
                work(service)
            except Exception as error:  # noqa: BLE001  # the client is others', and so is the network
                self._fail(f"{type(error).__name__}: {error}")

    def _fail(self, why: str) -> None:
        self.failures += 1
        if self.failures == 1:
            self._on_failure(self.name, hide_secrets(why))


class Couriers:
    """All trackers of a run; there may be none."""

    def __init__(self, names: Iterable[str], facts: RunFacts, *, on_failure: Callable[[str, str], None]) -> None:
        self._all = [Courier(name, facts, on_failure=on_failure) for name in names]

    def __bool__(self) -> bool:
        return bool(self._all)

    @property
    def failures(self) -> int:
        """What could not be sent so far."""
        return sum(one.failures for one in self._all)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Send numbers to all."""
        kept = dict(scalars)
        self._send(lambda service: service.log(step, kept))

    def log_samples(self, step: int, samples: Sequence[SentSample]) -> None:
        """Send samples to all."""
        self._send(lambda service: service.log_samples(step, samples))

    def close(self, outcome: str) -> None:
        """End the run there, and wait for what is still to be sent, for `LAST_S` at most."""
        self._send(lambda service: service.finish(outcome))
        until = time.monotonic() + LAST_S
        for one in self._all:
            one.close(until)

    def _send(self, work: Work) -> None:
        for one in self._all:
            one.send(work)


def hide_secrets(text: str) -> str:
    """Return a text in one line, without passwords of URLs and without any secret of the environment."""
    hidden = " ".join(hide_keys(text).split())
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and any(part in name.upper() for part in SECRET_NAMES):
            hidden = hidden.replace(value, "***")
    return hidden


def _open(name: str, facts: RunFacts) -> Service:
    made: Service = getattr(import_module(f"learner.tracking.services.{name}"), SERVICES[name])(facts)
    return made
