"""The figures that a driver gives to Prometheus, out of its steps, events and fleet."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from common.config.schema import Config
from common.telemetry.catalogue import METRICS
from learner.driver.telemetry.run_metrics import RunMetrics
from rollout.command_file import FleetState
from rollout.fleet.board import FleetLoad
from tests.helpers.fake_run import record

COUNTS = {"dispatched": 40, "trained": 30, "dropped": 6, "failed": 2, "filtered": 4}
STATE = FleetState(command="", refused="", wanted=3, serving=2, starting=1, waiting=0, draining=0)
LOAD = FleetLoad(unsent=5, sampling=4, published=7, held={"engine-0": 7, "engine-1": 5})
Figures = dict[tuple[str, ...], float]


@pytest.fixture
def metrics() -> RunMetrics:
    fleet: Any = SimpleNamespace(describe=lambda: STATE, measure_load=lambda: LOAD)
    rewards: Any = SimpleNamespace(count_waiting=lambda: 2)
    limits = {"max": 1e-3, "mean": 1e-4}
    return RunMetrics(
        Config(),
        fleet=fleet,
        rewards=rewards,
        count_answered=lambda: 3,
        gap_limits=limits,
        steps=6,
        counts=COUNTS,
    )


def read(metrics: RunMetrics) -> Figures:
    """Figures by name and values of their labels; each is in the catalogue, and there once."""
    found: Figures = {}
    for one in metrics.read():
        assert set(one.labels) == set(METRICS[one.name].labels)
        key = (one.name, *one.labels.values())
        assert key not in found
        found[key] = one.value
    return found


def step(number: int, *, trained: int, dropped: int, filtered: int) -> Any:
    counts = {"groups_dispatched": 60, "groups_trained": trained, "groups_dropped": dropped}
    return record(number, **counts, groups_filtered=filtered)


def test_fleet_and_queues_are_looked_at_when_read(metrics: RunMetrics) -> None:
    found = read(metrics)
    assert found["run_open",] == 1
    assert found["steps",] == 6
    assert {key[1]: value for key, value in found.items() if key[0] == "queue"} == {
        "engine": 5,
        "sampling": 4,
        "driver": 3,
        "reward": 2,
    }
    assert (found["engines", "serving"], found["engines", "wanted"]) == (2, 3)
    assert (found["weights_version", "learner"], found["weights_version", "engine-1"]) == (7, 5)
    assert (found["weights_lag", "engine-0"], found["weights_lag", "engine-1"]) == (0, 2)


def test_a_step_gives_its_own_figures_and_the_gap_without_lag(metrics: RunMetrics) -> None:
    metrics.step(record(6, lag={"0/gap_max": 2e-6, "0/gap_mean": 1e-7, "1/gap_max": 0.5}, completions_per_second=10.0))
    found = read(metrics)
    assert found["steps",] == 7
    assert (found["logprob_gap", "max"], found["logprob_gap", "mean"]) == (2e-6, 1e-7)
    assert found["logprob_gap_limit", "max"] == 1e-3
    assert found["tokens_per_second",] == pytest.approx(10 * record(6).completion_length)


def test_dropped_are_those_that_failed_not_those_without_signal(metrics: RunMetrics) -> None:
    """Of 10 groups 6 are trained on, 3 had no signal and 1 failed."""
    metrics.step(step(6, trained=36, dropped=10, filtered=7))
    assert read(metrics)["dropped_share",] == pytest.approx(0.1)
    metrics.step(step(7, trained=46, dropped=10, filtered=7))
    assert read(metrics)["dropped_share",] == 0
    metrics.step(step(3, trained=20, dropped=3, filtered=2))  # after a rewind there are fewer than before
    assert read(metrics)["dropped_share",] == 0


def test_losses_and_failures_are_counted_and_a_checkpoint_has_its_time(metrics: RunMetrics) -> None:
    before = read(metrics)
    assert before["losses", "engine"] == before["losses", "rank"] == before["checkpoint_failures",] == 0
    for kind in ("engine_lost", "engine_lost", "rank_lost", "reward_worker_lost", "checkpoint_failed", "probe"):
        metrics.event(kind, {})
    after = read(metrics)
    assert [after["losses", of] for of in ("engine", "rank", "reward")] == [2, 1, 1]
    assert after["checkpoint_failures",] == 1
    assert after["checkpoint_timestamp_seconds",] == before["checkpoint_timestamp_seconds",]
    metrics.event("checkpoint", {"step": 7})
    assert read(metrics)["checkpoint_timestamp_seconds",] > before["checkpoint_timestamp_seconds",]


def test_a_run_that_has_ended_asks_no_fleet(metrics: RunMetrics) -> None:
    metrics.close()
    found = read(metrics)
    assert found["run_open",] == 0
    assert ("engines", "serving") not in found
