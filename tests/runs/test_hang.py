"""A real run of which a reward worker, an engine and a rank are stopped in turn: one line names each, and it goes on.

Nothing is killed here. The stopped process cannot answer, so Linux has to say what became of it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import jobs

pytestmark = pytest.mark.engine
HANG_S, WITHIN_S = 3.0, 5.0
WORDS = (
    *("steps=2000", "evaluation.every=0", "tracking.samples_every=0", "checkpoint.every=0", "checkpoint.export=false"),
    *("learner.ranks=2", "learner.cpus_per_rank=0.25", "learner.heartbeat_s=12", "reward.workers=2"),
    *("reward.timeout_s=5", "rollout.step_timeout_s=10", f"cluster.hang_s={HANG_S}"),
)
# Event that says where it runs, who it is, what the driver then waits for, the event after which the run goes on.
ACTORS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "reward-0": ("reward_worker_up", {"worker": "reward-0"}, "rewards", "reward_worker_lost"),
    "engine-0": ("engine_up", {"engine": "engine-0"}, "groups", "engine_lost"),
    "rank-1": ("rank_up", {"rank": 1}, "a learner step", "learner_rebuilt"),
}


def list_events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in jobs.rows(run_dir, "events.jsonl") if row["kind"] == kind]


def wait_for_steps(run_dir: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Until so many more steps are done than there are now."""
    done = len(jobs.rows(run_dir, "metrics.jsonl"))
    jobs.wait_for("more steps", lambda: len(jobs.rows(run_dir, "metrics.jsonl")) >= done + count, process)


def test_each_stopped_actor_is_named_in_time_and_the_run_goes_on(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = jobs.start(run_dir, *WORDS, warm_workers=True)
    wait_for_steps(run_dir, 3, process)
    assert not list_events(run_dir, "hang"), "a healthy run"
    for name, (up, whose, what, healed) in ACTORS.items():
        (pid,) = (row["pid"] for row in list_events(run_dir, up) if whose.items() <= row.items())
        stopped = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        hang = jobs.wait_for(f"word of {name}", lambda: find_hang(run_dir, stopped), process)  # noqa: B023
        assert hang["monotonic"] - stopped < HANG_S + WITHIN_S
        line = rf"driver waits for {what}: {name} \(pid {pid} on [\d.]+\) is stopped and does not answer"
        assert re.fullmatch(line, hang["why"].partition(";")[0]), hang["why"]
        said = f"warning: nothing got on for {hang['seconds']} s: {hang['why']}; all stacks: {run_dir / 'stacks.txt'}"
        assert said in jobs.console(run_dir).splitlines(), jobs.console(run_dir)
        check_stacks(run_dir / "stacks.txt", name)
        jobs.wait_for(f"another in place of {name}", lambda: list_events(run_dir, healed), process)  # noqa: B023
        wait_for_steps(run_dir, 2, process)

    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM, jobs.console(run_dir)
    assert "Traceback" not in jobs.console(run_dir)


def find_hang(run_dir: Path, since: float) -> dict[str, Any] | None:
    """The first hang that was told after a time on the monotonic clock."""
    return next((row for row in list_events(run_dir, "hang") if row["monotonic"] > since), None)


def check_stacks(file: Path, stopped: str) -> None:
    """The newest look holds a stack of the driver and of every actor but the one that is stopped."""
    driver, *actors = file.read_text().rpartition("==== ")[2].split("\n== ")[1:]
    assert driver.startswith("driver\n") and "thread MainThread" in driver and "in train\n" in driver
    assert sorted(text.partition("-")[0] for text in actors) == ["engine", "rank", "rank", "reward", "reward"]
    for text in actors:
        mute = text.startswith(f"{stopped} ")
        assert ("no stacks: it is stopped" in text) is mute, text
        assert ("thread MainThread" in text) is not mute, text
