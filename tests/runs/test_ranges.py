"""Law 5 where a step is learned range by range: real engines and ranks, killed, resumed, one engine or two."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.helpers import jobs

pytestmark = pytest.mark.engine
RANGES = "learner.ranges=4"
ONE_BY_ONE = (RANGES, "rollout.max_sequences=8")  # two of eight groups are sampled at a time, one range
DECISIVE = ("step", "reward", "loss", "kl", "grad_norm", "groups_trained", "groups_dropped")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jobs.complete(tmp_path_factory.mktemp("runs") / "undisturbed", *ONE_BY_ONE)


def decisive(run_dir: Path) -> list[list[float]]:
    return [[row[key] for key in DECISIVE] for row in jobs.rows(run_dir, "metrics.jsonl")]


def test_ranks_learn_while_engines_sample(undisturbed: Path, tmp_path: Path) -> None:
    """And what is learned is the same where all groups come at once, from two engines."""
    metrics = jobs.rows(undisturbed, "metrics.jsonl")
    assert sum(row["learner_seconds"] for row in metrics) > sum(row["seconds/learn"] for row in metrics)
    at_once = jobs.complete(tmp_path / "at_once", RANGES, "rollout.engines=2", "rollout.cpus_per_engine=0.25")
    jobs.assert_same_weights(undisturbed, at_once)
    assert decisive(at_once) == decisive(undisturbed)


def test_a_killed_run_resumes_to_the_same_weights(undisturbed: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "killed"
    jobs.kill_and_resume(run_dir, *ONE_BY_ONE)
    jobs.assert_same_weights(undisturbed, run_dir)
    assert decisive(run_dir) == decisive(undisturbed)


def test_sigterm_between_two_ranges_saves_the_step_before(undisturbed: Path, tmp_path: Path) -> None:
    """What was learned of a step that is not whole is forgotten, and learned again."""
    run_dir = tmp_path / "stopped"
    words = (*ONE_BY_ONE, "checkpoint.every=9")  # the one of the signal is the first
    process = jobs.start(run_dir, *words)
    jobs.wait_for("step 5", lambda: len(jobs.rows(run_dir, "metrics.jsonl")) >= 5, process)
    process.send_signal(signal.SIGTERM)
    assert jobs.finish(process, run_dir) == 143, jobs.console(run_dir)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert 5 <= summary["weights_version"] <= 10
    jobs.complete(run_dir, *words, "resume=auto")
    assert f"from step {summary['weights_version']}" in jobs.console(run_dir)
    jobs.assert_same_weights(undisturbed, run_dir)


def test_a_killed_engine_changes_nothing(undisturbed: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "lost"
    process = jobs.start(run_dir, *ONE_BY_ONE, warm=True)
    killed = jobs.kill_an_engine(run_dir, process)
    assert jobs.finish(process, run_dir) == 0, jobs.console(run_dir)
    events = jobs.rows(run_dir, "events.jsonl")
    assert [row["engine"] for row in events if row["kind"] == "engine_lost"] == [killed]
    jobs.assert_same_weights(undisturbed, run_dir)
    assert decisive(run_dir) == decisive(undisturbed)
