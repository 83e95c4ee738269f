"""Fleets of modelled engines on a real Ray, how often each fault is tried, and a table of what was measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import pytest

from rollout.fleet.fleet import RolloutFleet
from tests.faults.fleets import Events
from tests.helpers.modelled import Model, ModelledEngine, make_config


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--times", type=int, default=1, help="how often each test of tests/faults is run")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test as often as the option says."""
    if (times := metafunc.config.getoption("--times", 1)) > 1:
        metafunc.fixturenames.append("repetition")
        metafunc.parametrize("repetition", range(times), indirect=True)


@pytest.fixture
def repetition(request: pytest.FixtureRequest) -> int:
    return int(getattr(request, "param", 0))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the figures of all tests that measured something, in whichever process."""
    measured: dict[str, list[float]] = defaultdict(list)
    for report in terminalreporter.stats.get("passed", ()):
        for what, seconds in report.user_properties:
            measured[what].append(seconds)
    for what, seconds in sorted(measured.items()):
        figures = f"median {median(seconds):.2f} s, most {max(seconds):.2f} s of {len(seconds)}"
        terminalreporter.write_line(f"{what}: {figures}")


@pytest.fixture
def measure(record_property: Callable[[str, object], None]) -> Callable[[str, float], None]:
    """Note seconds under a name, for the table at the end."""
    return record_property


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def start(events: Events) -> Iterator[Callable[..., RolloutFleet]]:
    """Start a fleet of modelled engines; all are closed at the end."""
    fleets = []

    def begin(engines: int, model: Model, **rollout: Any) -> RolloutFleet:
        spec: Any = model
        fleets.append(RolloutFleet(make_config(engines, **rollout), spec, on_event=events, kind=ModelledEngine))
        return fleets[-1]

    yield begin
    for fleet in fleets:
        fleet.close()
