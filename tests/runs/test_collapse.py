"""Whole runs that collapse and are told so, and one that learns and is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from learner.tracking.watch import SIGNS
from tests.helpers import jobs

pytestmark = pytest.mark.engine
LONG = ("steps=45", "evaluation.every=15", "checkpoint.every=0", "tracking.samples_every=0")


def told(run_dir: Path) -> list[str]:
    """The signs among the events, each of which is a line of the console and of the summary."""
    kinds = [row["kind"] for row in jobs.rows(run_dir, "events.jsonl") if row["kind"] in SIGNS]
    lines = [line for line in jobs.console(run_dir).splitlines() if line.startswith("warning: after ")]
    assert len(lines) == len(kinds)
    assert set(json.loads((run_dir / "summary.json").read_text())["warnings"]) == set(kinds)
    return kinds


def test_a_run_that_learns_is_not_warned_of(tmp_path: Path) -> None:
    run_dir = jobs.complete(tmp_path / "sound", *LONG)
    assert told(run_dir) == []


def test_a_learning_rate_that_is_far_too_high_is_told(tmp_path: Path) -> None:
    """The policy says one thing whatever it is asked: groups have one reward, and no KL holds it back."""
    run_dir = jobs.complete(tmp_path / "hot", *LONG, "learner.lr=0.02", "learner.beta=0")
    assert "zero_std_groups" in told(run_dir)
    assert "learner.lr=0.01" in jobs.console(run_dir)
    assert "learner.beta=0.04" in (run_dir / "report.html").read_text()


def test_a_reward_that_wants_no_answer_is_told(tmp_path: Path) -> None:
    words = ("reward.functions={accuracy: -1.0}", "learner.lr=2e-3")
    run_dir = jobs.complete(tmp_path / "wrong", *LONG, *words)
    assert "invalid_answers" in told(run_dir)
