"""Laws 5 and 6 for what is written down: whole runs of `method: exact` and `method: sft`, real engines and ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.helpers import jobs

pytestmark = pytest.mark.engine
SHORT = ("steps=6", "checkpoint.every=3", "checkpoint.keep=3")


def test_exact_beside_a_sampled_share_resumes_to_the_same_weights(tmp_path: Path) -> None:
    """Half of every step is sampled. What follows the third step is lost, and made again to the last bit."""
    words = (*SHORT, "method=exact", "exact.sampled_share=0.5")
    whole = jobs.complete(tmp_path / "whole", *words)
    metrics = jobs.rows(whole, "metrics.jsonl")
    assert [row["step"] for row in metrics] == list(range(6))
    for row in metrics:  # law 6
        assert row["groups_dispatched"] == row["groups_trained"] + row["groups_dropped"] == 8 * (row["step"] + 1)
        assert row["weights_version"] == row["step"] + 1
        assert 0 < row["logprob_gap_max"] < 1e-4
        assert 0 < row["reward"] < 1
        assert row["grad_norm"] > 0
    samples = [row for row in jobs.rows(whole, "samples.jsonl") if row["step"] == 0]
    assert sorted(row["origin"] for row in samples) == ["given"] * 4 + ["sampled"] * 4
    for row in samples:
        said = [one["text"] for one in row["completions"]]
        assert len(said) == (10 if row["origin"] == "given" else 4)
        assert [one["reward"] for one in row["completions"]] == [float(text == row["label"]) for text in said]
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step-000006")
    shutil.rmtree(cut / "export")
    jobs.complete(cut, *words, "resume=auto")
    assert "from step 3" in jobs.console(cut)
    jobs.assert_same_weights(whole, cut)


def test_sft_needs_its_engines_only_to_be_evaluated(tmp_path: Path) -> None:
    run = jobs.complete(tmp_path / "run", *SHORT, "method=sft", "learner.beta=0", "evaluation.every=4")
    events, metrics = jobs.rows(run, "events.jsonl"), jobs.rows(run, "metrics.jsonl")
    assert [row["version"] for row in events if row["kind"] == "weights_loaded"] == [0, 4, 6]
    probes = [row for row in events if row["kind"] == "probe"]
    assert [row["version"] for row in probes] == [0, 4]
    assert all(row["gap"] < 1e-4 for row in probes)
    assert [row["weights_version"] for row in metrics] == [0, 0, 0, 4, 4, 6]
    assert [row["step"] for row in jobs.rows(run, "evaluations.jsonl")] == [0, 4, 6]
    for row in metrics:
        assert row["groups_dispatched"] == row["groups_trained"] == 8 * (row["step"] + 1)
        assert row["kl"] == row["zero_std_share"] == row["logprob_gap_max"] == row["seconds/generate"] // 1 == 0
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert metrics[-1]["reward"] > metrics[0]["reward"]
    assert json.loads((run / "summary.json").read_text())["outcome"] == "finished"
    assert "nothing was sampled to learn from" in jobs.console(run)
