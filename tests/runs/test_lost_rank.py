"""A run whose ranks are killed or stopped goes on by itself, and ends with the weights of a run left alone (law 5).

Ranks and engines are two processes each, and engines sample ahead of the learner.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers import jobs

pytestmark = pytest.mark.engine
WORDS = ("rollout.max_lag=1", "learner.ranks=2", "learner.cpus_per_rank=0.25", "learner.zero_stage=3")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jobs.complete(tmp_path_factory.mktemp("runs") / "undisturbed", *WORDS)


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[str]) -> None:
    jobs.wait_for(f"step {step}", lambda: len(jobs.rows(run_dir, "metrics.jsonl")) >= step, process)


def find_learning_rank(process: subprocess.Popen[str]) -> psutil.Process | None:
    """A rank that is within forward and backward now, if there is one."""
    for one in jobs.descendants(process):
        try:
            if one.cmdline()[:1] == ["ray::LearnerRank.learn"]:
                return one
        except psutil.NoSuchProcess:
            continue
    return None


def list_events(run_dir: Path, *kinds: str) -> list[dict[str, Any]]:
    return [row for row in jobs.rows(run_dir, "events.jsonl") if row["kind"] in kinds]


def assert_went_on(run_dir: Path, undisturbed: Path) -> None:
    """Engines stayed up, no step is missing or there twice, and every figure but the clock's is the same."""
    assert len(list_events(run_dir, "engine_up")) == 1 and len(list_events(run_dir, "start")) == 1
    decisive = ("step", "epoch", "reward", "loss", "kl", "grad_norm", "groups_dispatched", "groups_trained")
    rows = [
        [[row[key] for key in decisive] for row in jobs.rows(run, "metrics.jsonl")] for run in (undisturbed, run_dir)
    ]
    assert rows[0] == rows[1]
    jobs.assert_same_weights(undisturbed, run_dir)


def test_ranks_killed_in_backward_and_stopped_cost_no_step(undisturbed: Path, tmp_path: Path) -> None:
    """From memory: no step older than the last whole one is taken again, nor is anything sampled again."""
    run_dir = tmp_path / "run"
    process = jobs.start(run_dir, *WORDS, "learner.heartbeat_s=6")
    wait_for_step(run_dir, 3, process)
    killed = jobs.wait_for("a rank that learns", lambda: find_learning_rank(process), process)
    killed.kill()
    jobs.wait_for("recovery", lambda: list_events(run_dir, "learner_rebuilt"), process)
    done = len(jobs.rows(run_dir, "metrics.jsonl"))
    wait_for_step(run_dir, done + 2, process)
    stopped = jobs.wait_for("a rank that learns", lambda: find_learning_rank(process), process)
    os.kill(stopped.pid, signal.SIGSTOP)
    assert jobs.finish(process, run_dir) == 0, jobs.console(run_dir)

    events = list_events(run_dir, "rank_lost", "learner_rebuilt")
    assert [row["kind"] for row in events] == ["rank_lost", "learner_rebuilt"] * 2
    first, again, second, _ = events
    assert first["actor"] == f"LearnerRank (pid {killed.pid})" and first["rank"] in (0, 1) and "died" in first["why"]
    assert again["source"] == "memory" and again["step"] == first["step"] == done
    assert second["actor"] == f"LearnerRank (pid {stopped.pid})" and second["why"] == "gave no sign of life for 6 s"
    assert "Traceback" not in jobs.console(run_dir)
    assert json.loads((run_dir / "summary.json").read_text())["outcome"] == "finished"
    assert_went_on(run_dir, undisturbed)


def test_without_a_copy_in_memory_the_run_goes_back_to_its_checkpoint(undisturbed: Path, tmp_path: Path) -> None:
    """First to the start, as there is none yet; then to that of step 3 or 6."""
    run_dir = tmp_path / "run"
    process = jobs.start(run_dir, *WORDS, "learner.keep_every=0")
    for number, step in enumerate((2, 5), 1):
        wait_for_step(run_dir, step, process)
        jobs.wait_for("a rank that learns", lambda: find_learning_rank(process), process).kill()
        jobs.wait_for("recovery", lambda: len(list_events(run_dir, "learner_rebuilt")) == number, process)  # noqa: B023
    assert jobs.finish(process, run_dir) == 0, jobs.console(run_dir)
    sources = [(row["source"], row["step"]) for row in list_events(run_dir, "learner_rebuilt")]
    saved = [row["step"] for row in list_events(run_dir, "checkpoint")]
    assert sources[0] in (("start", 0), ("checkpoint", 3)) and sources[1] in (("checkpoint", 3), ("checkpoint", 6))
    assert set(saved) == {3, 6, 9, 10}
    assert_went_on(run_dir, undisturbed)
