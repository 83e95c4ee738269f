"""What an actor of a run tells of itself."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from common.telemetry.busy_clock import BusyClock
from common.telemetry.reporting import Figure, Read, Reporting


def read_nothing() -> Iterable[Figure]:
    """Read no figures."""
    return ()


class ActorTelemetry:
    """The log of an actor, how long it has worked, and the thread that reports it. Without `reporting` it is silent."""

    def __init__(self, reporting: Reporting | None, actor: str, *, read: Read = read_nothing) -> None:
        """Begin to report.

        Args:
            read: yields what the actor knows beside the seconds it has worked.
        """
        self.busy = BusyClock()
        self._actor, self._read = actor, read
        self._log = reporting.open_log(actor) if reporting else None
        if reporting:
            reporting.begin(self._read_all)

    def _read_all(self) -> Iterable[Figure]:
        yield Figure("busy_seconds", self.busy.seconds, {"actor": self._actor})
        for figure in self._read():
            yield figure._replace(labels={"actor": self._actor, **figure.labels})

    def log(self, message: str, *, step: int | None, level: int = logging.INFO, **fields: Any) -> None:
        """Write a line to the log; see `ActorLog.write`."""
        if self._log:
            self._log.write(message, step=step, level=level, **fields)
