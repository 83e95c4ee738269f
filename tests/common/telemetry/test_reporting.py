"""The thread that reports: it goes on whatever its reader does, and reports a last time when it is closed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from common.telemetry import reporting
from common.telemetry.catalogue import METRICS
from common.telemetry.reporting import Figure, Reporter, Reporting


class Gauges:
    """Stands in the place of `ray.util.metrics.Gauge`, and remembers what was set."""

    def __init__(self) -> None:
        self.made: dict[str, tuple[str, ...]] = {}
        self.set_to: list[tuple[str, float, dict[str, str]]] = []

    def make(self, name: str, description: str, tag_keys: tuple[str, ...]) -> Any:
        assert description
        assert name not in self.made, "made twice"
        self.made[name] = tag_keys
        gauge = type("Gauge", (), {})()
        gauge.set = lambda value, tags: self.set_to.append((name, value, tags))
        return gauge


@pytest.fixture
def gauges(monkeypatch: pytest.MonkeyPatch) -> Gauges:
    gauges = Gauges()
    monkeypatch.setattr("ray.util.metrics.Gauge", gauges.make)
    monkeypatch.setattr(reporting, "REPORT_S", 0.01)
    return gauges


def test_it_reports_again_and_again_and_once_more_at_the_end(gauges: Gauges) -> None:
    value, seen = 0.0, threading.Event()

    def read() -> Iterator[Figure]:
        nonlocal value
        value += 1
        if value == 3:
            seen.set()
        yield Figure("weights_lag", value, {"actor": "engine-0"})

    reporter = Reporter("a-run", read)
    assert seen.wait(30)
    reporter.close()
    assert gauges.made == {"rollcall_weights_lag": ("run", "actor")}
    assert gauges.set_to[-1] == ("rollcall_weights_lag", value, {"run": "a-run", "actor": "engine-0"})
    assert [one[1] for one in gauges.set_to] == list(range(1, len(gauges.set_to) + 1))
    assert not any(thread.name == "telemetry" for thread in threading.enumerate())


def test_a_reader_that_fails_is_asked_again_and_says_so_once(gauges: Gauges, caplog: pytest.LogCaptureFixture) -> None:
    asked, well = 0, threading.Event()

    def read() -> Iterator[Figure]:
        nonlocal asked
        asked += 1
        if asked < 4:
            raise KeyError("the fleet is closed")
        well.set()
        yield Figure("steps", 1.0)

    with caplog.at_level(logging.WARNING, "rollcall"):
        reporter = Reporter("a-run", read)
        assert well.wait(30)
        reporter.close()
    assert [record.message for record in caplog.records] == ["figures could not be read"]
    assert gauges.set_to[-1] == ("rollcall_steps", 1.0, {"run": "a-run"})


def test_without_an_agent_nothing_is_started() -> None:
    assert Reporting(run="a", agent=False).begin(lambda: [Figure("steps", 1.0)]) is None


def test_names_are_as_prometheus_wants_them() -> None:
    for name, metric in METRICS.items():
        assert name == name.lower()
        assert not name.endswith("_total"), "no metric is a counter to Ray"
        assert metric.help
        assert not {"run", "job", "instance"} & set(metric.labels)
