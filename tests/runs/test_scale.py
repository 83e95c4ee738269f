"""Engines come and go in mid-run, by command: the weights are those of a run with one engine (law 5)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import jobs
from tests.helpers.gated_reward import GATE, GATED

pytestmark = pytest.mark.engine
WORDS = ("evaluation.limit=8", "checkpoint.every=0")
ENGINES = ("rollout.engines=2", "rollout.cpus_per_engine=0.2")


def scale(run_dir: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rollout.scale", str(run_dir), *words]
    return subprocess.run(command, cwd=jobs.ROOT, capture_output=True, text=True, timeout=300, check=False)


def count_steps(run_dir: Path) -> int:
    return len(jobs.rows(run_dir, "metrics.jsonl"))


def test_two_engines_become_four_and_then_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run stands still in the middle of a step while the number changes."""
    gate, run_dir = tmp_path / "gate", tmp_path / "scaled"
    monkeypatch.setenv(GATE, str(gate))
    process = jobs.start(run_dir, *WORDS, *GATED, *ENGINES)
    for until, count in ((2, "4"), (6, "1")):
        jobs.wait_for(f"step {until}", lambda until=until: count_steps(run_dir) >= until, process)  # type: ignore[misc]
        gate.touch()
        done = scale(run_dir, count)
        assert done.returncode == 0, done.stdout + done.stderr + jobs.console(run_dir)
        assert f"done: engines: {count} serve\n" in done.stdout
        assert count_steps(run_dir) < 10, "it was over before"
        gate.unlink()
    assert jobs.finish(process, run_dir) == 0, jobs.console(run_dir)

    events = jobs.rows(run_dir, "events.jsonl")
    assert [row["engines"] for row in events if row["kind"] == "engines_reached"] == [4, 1]
    assert sum(row["kind"] == "engine_retired" for row in events) == 3
    assert not [row for row in events if row["kind"] in ("engine_lost", "engine_given_up")]
    jobs.assert_same_weights(jobs.complete(tmp_path / "alone", *WORDS), run_dir)

    late = scale(run_dir, "2")
    assert late.returncode == 2
    assert "the run has ended" in late.stderr and "outcome finished" in late.stderr
