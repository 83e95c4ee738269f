"""Law 5 where engines sample ahead of the learner: kill an engine or the run, end it by a signal, and the same weights
come out.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.helpers import jobs

pytestmark = pytest.mark.engine
WORDS = ("rollout.max_lag=1",)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jobs.complete(tmp_path_factory.mktemp("runs") / "undisturbed", *WORDS)


def assert_same(one: Path, other: Path) -> None:
    jobs.assert_same_weights(one, other)
    decisive = ("step", "epoch", "reward", "loss", "kl", "grad_norm", "effective_share", "groups_dispatched")
    rows = [[[row[key] for key in decisive] for row in jobs.rows(run, "metrics.jsonl")] for run in (one, other)]
    assert rows[0] == rows[1]


def test_each_batch_is_sampled_one_step_ahead_and_corrected_for(undisturbed: Path) -> None:
    metrics = jobs.rows(undisturbed, "metrics.jsonl")
    assert [row["groups_dispatched"] for row in metrics] == [min(8 * (step + 2), 80) for step in range(10)]
    assert [row["groups_trained"] for row in metrics] == [8 * (step + 1) for step in range(10)]
    for row in metrics:
        lag = min(1, row["step"])
        assert f"lag/{lag}/engine_kl" in row and f"lag/{1 - lag}/engine_kl" not in row
    assert max(row["logprob_gap_max"] for row in metrics[1:]) > 1e-3, "the weights were the learner's own"


def test_a_killed_run_resumes_with_what_was_sampled_ahead(undisturbed: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "killed"
    jobs.kill_and_resume(run_dir, *WORDS)
    assert_same(undisturbed, run_dir)


def test_a_signal_saves_what_is_on_its_way(undisturbed: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "ended"
    process = jobs.start(run_dir, *WORDS, "checkpoint.every=9")
    jobs.wait_for("step 4", lambda: len(jobs.rows(run_dir, "metrics.jsonl")) >= 4, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    done = len(jobs.rows(run_dir, "metrics.jsonl"))
    jobs.complete(run_dir, *WORDS, "checkpoint.every=9", "resume=auto")
    assert f"from step {done}" in jobs.console(run_dir)
    assert_same(undisturbed, run_dir)


def test_an_engine_of_two_is_lost_and_nothing_else_is(undisturbed: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "pair"
    words = (*WORDS, "rollout.engines=2", "rollout.cpus_per_engine=0.25")
    process = jobs.start(run_dir, *words)
    killed = jobs.kill_an_engine(run_dir, process)
    assert process.wait(300) == 0, jobs.console(run_dir)
    events = jobs.rows(run_dir, "events.jsonl")
    assert [row["engine"] for row in events if row["kind"] == "engine_lost"] == [killed]
    assert_same(undisturbed, run_dir)
