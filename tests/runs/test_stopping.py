"""Whole runs that end before their last step, since an evaluation measure no longer rises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.helpers import jobs

pytestmark = pytest.mark.engine
SHORT = ("steps=5", "learner.warmup_steps=1", "evaluation.every=2", "evaluation.stop_delta=0.9")


def test_a_plateau_ends_a_run_as_its_last_step_would(tmp_path: Path) -> None:
    """It is evaluated, saved, exported and reported. Resumed it ends at once; without the key it goes on (law 5)."""
    run_dir, why = tmp_path / "run", "did not rise above 0."
    jobs.complete(run_dir, *SHORT, "evaluation.stop_after=1", "checkpoint.every=100")
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["outcome"], summary["steps"], summary["accuracy_step"]) == ("finished", 2, 2)
    assert why in summary["stopped_early"]
    assert [row["step"] for row in jobs.rows(run_dir, "evaluations.jsonl")] == [0, 2]
    assert [path.name for path in (run_dir / "checkpoints").glob("step-*")] == ["step-000002"]
    (event,) = (row for row in jobs.rows(run_dir, "events.jsonl") if row["kind"] == "stopped_early")
    assert (event["step"], event["why"]) == (2, summary["stopped_early"])
    assert f"finished after 2 of 5 steps: accuracy {why}" in jobs.console(run_dir)
    assert why in (run_dir / "report.html").read_text()
    stopped = jobs.weights(run_dir)

    jobs.complete(run_dir, *SHORT, "evaluation.stop_after=1", "checkpoint.every=100", "resume=auto")
    assert len(jobs.rows(run_dir, "metrics.jsonl")) == 2
    assert all(torch.equal(stopped[name], weight) for name, weight in jobs.weights(run_dir).items())

    left_alone = jobs.complete(tmp_path / "left-alone", *SHORT[:-1])
    jobs.complete(run_dir, *SHORT[:-1], "checkpoint.every=100", "resume=auto")
    assert json.loads((run_dir / "summary.json").read_text())["stopped_early"] is None
    expected = jobs.weights(left_alone)
    assert all(torch.equal(expected[name], weight) for name, weight in jobs.weights(run_dir).items())
