"""Every mode and kind of row trains through the real engine, with the tiny model made for them."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config.schema import OBJECT_QUESTION
from common.data.formats.digits import LABELS, digits
from common.labels.answers import Mode
from common.labels.candidates import with_candidates
from tests.helpers import jobs
from tests.helpers.makers import parquet

pytestmark = pytest.mark.engine

LISTED = with_candidates(OBJECT_QUESTION, LABELS)
OPEN = "What digit is in the photo?"
CHOICE = "Which digit is in the photo?\n(A) an even one\n(B) an odd one"  # as SAT and CVBench ask
KINDS = ("listed", "open-ended", "text-only", "multiple choice")
STEPS = 4
SETTINGS = (
    "--config",
    str(jobs.ROOT / "deploy/recipes/digits.yaml"),
    f"steps={STEPS}",
    "learner.warmup_steps=1",
    "checkpoint.every=2",
    "data.split=train",
    "data.eval_fraction=0.25",
    "data.max_prompt_tokens=300",
    "rollout.max_completion_tokens=12",
    "rollout.group_size=8",
)


def kind_of(row: dict[str, Any]) -> str:
    if row["image"] is None:
        return "text-only"
    return {LISTED: "listed", OPEN: "open-ended", CHOICE: "multiple choice"}[row["problem"]]


def write_rows(path: Path, kinds: tuple[str, ...]) -> str:
    """Sixteen rows of each kind."""
    rows, table = [], digits("test").rows
    for number in range(16 * len(kinds)):
        kind, row = kinds[number % len(kinds)], dict(table[number])
        buffer = BytesIO()
        row["image"].save(buffer, "PNG")
        row["image"] = {"bytes": buffer.getvalue(), "path": None}
        label = row["solution"]
        if kind == "text-only":
            row |= {"image": None, "problem": with_candidates(f"Which word is '{label}'?", LABELS)}
        elif kind == "open-ended":
            row["problem"] = OPEN
        elif kind == "multiple choice":
            row |= {"problem": CHOICE, "solution": "(A)" if LABELS.index(label) % 2 == 0 else "(B)"}
        rows.append(row)
    return parquet(path, rows)


def assert_learnt_from(run_dir: Path, mode: Mode, kinds: tuple[str, ...]) -> None:
    """Engine and learner agree, every step moves the weights, and completions of each kind earn more and less."""
    metrics = jobs.rows(run_dir, "metrics.jsonl")
    assert len(metrics) == STEPS
    for row in metrics:
        assert row["logprob_gap_max"] < 1e-4 and row["grad_norm"] > 0
        assert 0.3 < row["rewards/format"] <= 1 and 0 < row["rewards/accuracy"] < 1
        assert row["groups_dropped"] == 0
        assert ("thinking/share" in row) == (mode != "no_think")
    earned: dict[str, set[float]] = {kind: set() for kind in kinds}
    for row in jobs.rows(run_dir, "samples.jsonl"):
        earned[kind_of(row)].update(completion["reward"] for completion in row["completions"])
    assert all(len(rewards) > 1 for rewards in earned.values()), earned


@pytest.mark.parametrize("mode", ["no_think", "think_after_answer", "adaptive"])
def test_a_mode_trains_on_rows_of_every_kind(mode: Mode, tmp_path: Path) -> None:
    place = write_rows(tmp_path / "rows.parquet", KINDS)
    words = [*SETTINGS, f"data.path={place}", f"data.mode={mode}", "reward.functions={accuracy: 1, format: 1}"]
    run_dir = jobs.complete(tmp_path / mode, *words)
    assert_learnt_from(run_dir, mode, KINDS)


def test_thinking_with_the_answer_marginalised_resumes_to_the_same_weights(tmp_path: Path) -> None:
    """And with every other reward, each normalised on its own."""
    kinds = ("listed", "text-only", "multiple choice")
    place = write_rows(tmp_path / "rows.parquet", kinds)
    tree = {**dict.fromkeys(LABELS[::2], "even"), **dict.fromkeys(LABELS[1::2], "odd"), "(A)": "even", "(B)": "odd"}
    functions = ["accuracy", "format", "marginal", "confidence", "consistency", "length", "repetition", "taxonomy"]
    words = [*SETTINGS, f"data.path={place}", "data.mode=think", f"data.taxonomy={tree}", "reward.normalise=each"]
    words += ["reward.length_target=6", f"reward.functions={dict.fromkeys(functions, 1)}"]
    run_dir = jobs.complete(tmp_path / "think", *words)
    assert_learnt_from(run_dir, "think", kinds)
    for row in jobs.rows(run_dir, "metrics.jsonl"):
        assert 0 < row["rewards/marginal"] < 1 and -1 < row["rewards/confidence"] < 1
        assert row["rewards/accuracy"] <= row["rewards/taxonomy"] < 1
        assert 0 < row["rewards/length"] < 1 and -1 < row["rewards/repetition"] <= 0
        assert row["rewards/consistency"] == pytest.approx(row["thinking/share"] * row.get("thinking/consistency", 0))

    whole, metrics = jobs.weights(run_dir), jobs.rows(run_dir, "metrics.jsonl")
    jobs.complete(run_dir, *words, f"resume={run_dir}/checkpoints/step-000002")
    assert "from step" in jobs.console(run_dir)
    again = jobs.weights(run_dir)
    assert [name for name in whole if not torch.equal(whole[name], again[name])] == []
    for name in ("reward", "rewards/marginal", "loss", "grad_norm"):
        assert [row[name] for row in jobs.rows(run_dir, "metrics.jsonl")] == [row[name] for row in metrics]
