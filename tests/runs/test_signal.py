"""Laws 5 and 6 where steps ask further prompts: real engines and ranks, killed, resumed, and one engine or two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import jobs

pytestmark = pytest.mark.engine
WORDS = (
    "signal.max_prompts=4",
    "signal.skip_solved=1",
    "signal.curriculum=learnability",
    "signal.max_group_size=12",
    "data.eval_fraction=0.97",  # few rows, so that epochs end and rows come again
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jobs.complete(tmp_path_factory.mktemp("runs") / "undisturbed", *WORDS)


def test_a_step_trains_on_groups_that_teach_and_its_books_balance(undisturbed: Path) -> None:
    metrics, events = jobs.rows(undisturbed, "metrics.jsonl"), jobs.rows(undisturbed, "events.jsonl")
    assert metrics[-1]["epoch"] > 2
    for row in metrics:
        assert row["groups_dispatched"] == row["groups_trained"] + row["groups_dropped"]
        assert row["groups_trained"] == 8 * (row["step"] + 1)
        assert row["asked_share"] == 1 + row["dropped"] / 8
    filtered = [row for row in events if row["kind"] == "filtered"]
    assert sum(len(row["prompts"]) for row in filtered) == metrics[-1]["groups_filtered"] > 0
    samples = jobs.rows(undisturbed, "samples.jsonl")
    sizes = [len(row["completions"]) for row in samples]
    assert min(sizes) >= 2 and max(sizes) > 4, "a row that is hard gets more than G"
    state = json.loads((undisturbed / "checkpoints" / "step-000010" / "state.json").read_text())
    assert len(state["control"]["solve_rates"]) > 20


def test_a_killed_run_resumes_to_the_same_weights(undisturbed: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "killed"
    jobs.kill_and_resume(run_dir, *WORDS)
    jobs.assert_same_weights(undisturbed, run_dir)
    decisive = ("step", "epoch", "reward", "loss", "kl", "grad_norm", "asked_share", "groups_filtered")
    one, other = (jobs.rows(run, "metrics.jsonl") for run in (undisturbed, run_dir))
    assert [[row[key] for key in decisive] for row in one] == [[row[key] for key in decisive] for row in other]


def test_two_engines_are_asked_the_same_prompts(undisturbed: Path, tmp_path: Path) -> None:
    """Which of them is first differs from run to run; what is sampled and trained does not."""
    pair = jobs.complete(tmp_path / "pair", *WORDS, "rollout.engines=2", "rollout.cpus_per_engine=0.25")
    jobs.assert_same_weights(undisturbed, pair)
    one, other = (jobs.rows(run, "samples.jsonl") for run in (undisturbed, pair))
    assert [row["completions"] for row in one] == [row["completions"] for row in other]
