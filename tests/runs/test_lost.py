"""Real runs whose driver freezes, or is ended or frozen below Python: their parent process says so within 30 s."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.helpers import jobs

pytestmark = pytest.mark.engine
SHORT = ("steps=2000", "learner.warmup_steps=1", "evaluation.every=0", "tracking.samples_every=0", "checkpoint.every=2")
WITHIN_S = 30.0


def kill_daemon(name: str) -> Callable[[subprocess.Popen[str]], None]:
    def kill(parent: subprocess.Popen[str]) -> None:
        (daemon,) = (one for one in jobs.descendants(parent) if one.name() == name)
        daemon.kill()

    return kill


def stop_driver(parent: subprocess.Popen[str]) -> None:
    jobs.find_driver(parent).suspend()


def kill_driver(parent: subprocess.Popen[str]) -> None:
    jobs.find_driver(parent).kill()


LOSSES: dict[str, tuple[Callable[[subprocess.Popen[str]], None], str]] = {
    "raylet": (
        kill_daemon("raylet"),  # Ray may be first to end the driver
        r"(ended below Python with exit code 1; )?the raylet of the driver's node at \S+ (has died|does not answer).*",
    ),
    "gcs": (kill_daemon("gcs_server"), r"the control store \(GCS\) of Ray at .* has died"),
    "frozen": (stop_driver, r"frozen: no sign of life for (8|9) s"),
    "killed": (kill_driver, r"killed by SIGKILL, perhaps for want of memory"),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_lost_driver_is_one_line_and_a_summary_within_30_s(tmp_path: Path, loss: str) -> None:
    """Non-zero, with ring, actor, node and error; nothing of the run is alive, and no shared memory is left."""
    run_dir, (strike, why) = tmp_path / "run", LOSSES[loss]
    with jobs.nothing_left_in_shared_memory():
        parent = jobs.start(run_dir, *SHORT, *(["cluster.heartbeat_s=8"] if loss == "frozen" else []))
        jobs.wait_for("step 3", lambda: len(jobs.rows(run_dir, "metrics.jsonl")) >= 3, parent)
        driver, family = jobs.find_driver(parent), jobs.descendants(parent)
        assert {"raylet", "gcs_server"} <= {one.name() for one in family}
        struck = time.monotonic()
        strike(parent)
        assert jobs.finish(parent, run_dir, timeout_s=60) == 1, jobs.console(run_dir)
        assert time.monotonic() - struck < WITHIN_S
        assert jobs.gone(family, timeout_s=0) == []
    (line,) = re.findall(r"^error: the run is lost: (.*)$", jobs.console(run_dir), re.MULTILINE)
    host = socket.gethostname()
    named = rf"ring driver, actor driver \(pid {driver.pid}\), node {host}"
    assert re.fullmatch(rf"{named}: {why}; go on with run_dir=\S+ resume=auto", line), line
    assert "Traceback" not in jobs.console(run_dir)
    summary = json.loads((run_dir / "summary.json").read_text())
    steps = len(jobs.rows(run_dir, "metrics.jsonl"))
    assert (summary["outcome"], summary["steps"]) == ("lost", steps)
    assert summary["startup_seconds"] > 1
    (end,) = (row for row in jobs.rows(run_dir, "events.jsonl") if row["kind"] == "end")
    cause = {"ring": "driver", "actor": f"driver (pid {driver.pid})", "node": host, "error": end["error"]}
    assert summary["cause"] == cause == {key: end[key] for key in cause}
    assert re.fullmatch(why, end["error"])


def test_a_rank_that_dies_is_one_error_and_the_run_is_tried_again(tmp_path: Path) -> None:
    """Law 5: killed twice without and with a checkpoint in between, it ends with the weights of a run left alone."""
    run_dir, left_alone = tmp_path / "run", tmp_path / "left-alone"
    words = (
        "steps=8",
        "learner.warmup_steps=1",
        "evaluation.every=0",
        "tracking.samples_every=0",
        "checkpoint.every=2",
    )
    process = jobs.start(run_dir, *words, "retries=1", "learner.max_restarts=0")
    for step in (3, 6):  # a checkpoint lies between, so the count begins anew
        jobs.wait_for(f"step {step}", lambda: len(jobs.rows(run_dir, "metrics.jsonl")) >= step, process)  # noqa: B023
        find_rank(process).kill()
        jobs.wait_for("retry", lambda: jobs.console(run_dir).count("\nretry 1 of 1") == step // 3, process)  # noqa: B023
    assert jobs.finish(process, run_dir) == 0, jobs.console(run_dir)
    console = jobs.console(run_dir)
    assert console.count("\nerror: LearnerRank (pid ") == 2 and "Traceback" not in console
    events = jobs.rows(run_dir, "events.jsonl")
    ends = [row for row in events if row["kind"] == "end"]
    assert [(row["outcome"], row.get("ring")) for row in ends] == [("failed", "learner")] * 2 + [("finished", None)]
    assert all(row["actor"].startswith("LearnerRank (pid ") and "died" in row["error"] for row in ends[:2])
    retries = [row for row in events if row["kind"] == "retry"]
    assert [(row["attempt"], row["of"], row["why"]) for row in retries] == [(1, 1, "the driver failed")] * 2
    assert json.loads((run_dir / "summary.json").read_text())["cause"] is None

    jobs.complete(left_alone, *words)
    jobs.assert_same_weights(left_alone, run_dir)


def test_a_run_without_engines_ends_in_one_error_within_30_s(tmp_path: Path) -> None:
    """The only engine is killed, and then the one that starts in its place."""
    run_dir = tmp_path / "run"
    process = jobs.start(run_dir, *SHORT, "rollout.max_restarts=0")
    first = jobs.kill_an_engine(run_dir, process)
    jobs.wait_for("loss", lambda: first in lost_engines(run_dir), process)
    began = time.monotonic()
    (another, *_) = jobs.wait_for("another engine", lambda: find_engines(process), process)
    another.kill()
    assert jobs.finish(process, run_dir, timeout_s=120) == 1
    assert time.monotonic() - began < WITHIN_S
    console = jobs.console(run_dir)
    assert console.count("\nerror: ") == 1 and "Traceback" not in console
    assert "error: no rollout engine is left" in console
    assert len(lost_engines(run_dir)) == 2
    assert json.loads((run_dir / "summary.json").read_text())["cause"]["ring"] == "engine"
    assert jobs.audit(run_dir) == []


def lost_engines(run_dir: Path) -> list[str]:
    return [row["engine"] for row in jobs.rows(run_dir, "events.jsonl") if row["kind"] == "engine_lost"]


def find_engines(parent: subprocess.Popen[str]) -> list[psutil.Process]:
    """The engines that are alive, also those that start."""
    found = [one for one in jobs.descendants(parent) if one.is_running()]
    return [one for one in found if one.cmdline()[:1] and "RolloutEngine" in one.cmdline()[0]]


def find_rank(parent: subprocess.Popen[str]) -> psutil.Process:
    (rank,) = (one for one in jobs.descendants(parent) if one.cmdline()[:1] and "LearnerRank" in one.cmdline()[0])
    return rank
