"""A run whose gradients are no numbers any more: it keeps its weights, writes the batch down, and can go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from learner.storage.files import read_jsonl
from tests.helpers import hostile_rewards, jobs

pytestmark = pytest.mark.engine
WORDS = (
    "reward.functions={tests.helpers.hostile_rewards:accuracy_until_told: 1}",
    "objective.advantage=none",
    "objective.loss=sapo",
    "objective.correction=bypass",
    "objective.gate_low=1e-30",  # its loss is 2e30 times the advantage: infinite for one of -1e15
    "checkpoint.every=2",
    "checkpoint.keep=9",
    "learner.max_skipped_steps=2",
)


def test_too_many_skipped_steps_in_a_row_stop_a_run_that_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told"
    monkeypatch.setenv(hostile_rewards.TOLD, str(told))
    run_dir = tmp_path / "run"
    process = jobs.start(run_dir, *WORDS, warm=True)
    jobs.wait_for("step 3", lambda: len(jobs.rows(run_dir, "metrics.jsonl")) >= 3, process)
    told.touch()
    assert jobs.finish(process, run_dir) == 1

    # One line says what, where and what to do; the traceback of no library.
    console = jobs.console(run_dir)
    assert console.count("error:") == 1 and "Traceback" not in console
    assert "loss or gradient is no finite number, 3 times in a row" in console

    # The weights stayed as they were, and nothing of the steps left out was published or recorded.
    events, metrics = jobs.rows(run_dir, "events.jsonl"), jobs.rows(run_dir, "metrics.jsonl")
    skipped = [row["step"] for row in events if row["kind"] == "step_skipped"]
    version = len(metrics)
    assert skipped == [version] * 3 and version >= 3
    assert max(row["version"] for row in events if row["kind"] == "weights_loaded") == version
    assert json.loads((run_dir / "summary.json").read_text())["weights_version"] == version

    # The last batch can be read again: every group, token by token, with the rewards that did it.
    file = run_dir / f"batch-{version:06}.jsonl"
    assert str(file.name) in console
    kept = list(read_jsonl(file))
    assert len(kept) == 8
    assert any(abs(said["reward"]) > 1e14 for row in kept for said in row["completions"])
    for row in kept:
        for said in row["completions"]:
            assert len(said["token_ids"]) == len(said["token_logprobs"]) == said["tokens"]

    # Law 5: it resumes from the last checkpoint, and ends with the weights of a run left alone.
    told.unlink()
    alone = tmp_path / "alone"
    jobs.complete(run_dir, *WORDS, "resume=auto")
    jobs.complete(alone, *WORDS)
    jobs.assert_same_weights(alone, run_dir)
    rows = jobs.rows(run_dir, "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(10))
    for row in rows:  # law 6
        assert row["groups_dispatched"] == row["groups_trained"] + row["groups_dropped"]
    shutil.rmtree(alone)
