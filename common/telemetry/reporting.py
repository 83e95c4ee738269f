"""Who of a run reports, and the thread that does: it hands figures to Ray, whose agent Prometheus scrapes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from common.telemetry.catalogue import METRICS, PREFIX
from common.telemetry.json_log import ActorLog, open_log

if TYPE_CHECKING:
    from ray.util.metrics import Gauge

REPORT_S = 2.0  # between two reports; Ray sends them on every 10 s


class Figure(NamedTuple):
    """A value of one metric."""

    name: str  # in METRICS
    value: float
    labels: Mapping[str, str] = {}  # beside `run`


Read = Callable[[], Iterable[Figure]]


class Reporter:
    """Sets Ray's gauges from what `read` yields, at once, every REPORT_S and when it closes, in a thread of its own.

    Whoever works is never waited for, and does not wait. A reader that fails says so in the log, and is asked again.
    """

    def __init__(self, run: str, read: Read) -> None:
        self._run, self._read = run, read
        self._gauges: dict[str, Gauge] = {}
        self._closed = threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._go_on, name="telemetry", daemon=True)
        self._thread.start()

    def _go_on(self) -> None:
        self._report()
        while not self._closed.wait(REPORT_S):
            self._report()

    def _report(self) -> None:
        try:
            for figure in self._read():
                self._find_gauge(figure.name).set(figure.value, {"run": self._run, **figure.labels})
        except Exception:
            if not self._failed:  # a monitor is no reason to end what it looks at
                logging.getLogger("rollcall").warning("figures could not be read", exc_info=True)
            self._failed = True
        else:
            self._failed = False

    def _find_gauge(self, name: str) -> Gauge:
        from ray.util.metrics import Gauge

        if name not in self._gauges:
            metric = METRICS[name]
            self._gauges[name] = Gauge(PREFIX + name, description=metric.help, tag_keys=("run", *metric.labels))
        return self._gauges[name]

    def close(self) -> None:
        """Report a last time, and no more. Waits for a report that is under way."""
        self._closed.set()
        self._thread.join(REPORT_S)
        if not self._thread.is_alive():
            self._report()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporting:
    """What an actor must know to report; plain values, so that they travel to it."""

    run: str  # the name of the run folder
    agent: bool  # Ray has an agent for metrics; without one nobody would ever read them

    def open_log(self, actor: str) -> ActorLog:
        """Return the log of an actor, whose process has no other one."""
        return open_log(self.run, actor)

    def begin(self, read: Read) -> Reporter | None:
        """Begin to report what `read` yields; None where nobody takes it."""
        return Reporter(self.run, read) if self.agent else None


def has_metrics_agent() -> bool:
    """Say whether a node of the cluster has an agent that Prometheus can scrape. A cluster of one run has none."""
    import ray

    return any(node["Alive"] and node.get("MetricsExportPort", -1) > 0 for node in ray.nodes())
