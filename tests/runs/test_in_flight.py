"""Weights that come amid a batch: each token says which sampled it, and a journal repeats the run to the same bits
(law 5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.types import Group
from learner.audit.compare import find_parting
from learner.audit.run_record import read_record
from learner.driver.control.journal import Journal
from tests.helpers import jobs

pytestmark = pytest.mark.engine
WORDS = (
    "--config",
    "deploy/recipes/digits-think.yaml",
    "rollout.update=in_flight",
    "rollout.max_lag=2",
    "rollout.max_completion_tokens=24",
    "rollout.group_size=8",
    "rollout.max_sequences=2",
)
PAIR = ("rollout.engines=2", "rollout.cpus_per_engine=0.25")
DECISIVE = ("step", "epoch", "reward", "loss", "kl", "grad_norm", "effective_share", "groups_dispatched")


def list_decisive(run_dir: Path) -> list[list[Any]]:
    return [[row[key] for key in DECISIVE] for row in jobs.rows(run_dir, "metrics.jsonl")]


@pytest.fixture(scope="module")
def hurt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which an engine is killed, and then the driver, some steps beyond its last checkpoint."""
    run_dir = tmp_path_factory.mktemp("runs") / "hurt"
    process = jobs.start(run_dir, *WORDS, *PAIR, warm_workers=True)
    jobs.kill_an_engine(run_dir, process)
    jobs.wait_for("step 8", lambda: len(jobs.rows(run_dir, "metrics.jsonl")) >= 8, process)
    process.kill()
    process.wait(30)
    before = list_decisive(run_dir)
    jobs.complete(run_dir, *WORDS, *PAIR, "resume=auto")
    assert "from step 6" in jobs.console(run_dir)
    assert list_decisive(run_dir)[: len(before)] == before, "steps 6 and 7 come from the journal"
    return run_dir


def test_tokens_of_a_completion_are_of_several_versions_and_none_is_older_than_allowed(hurt: Path) -> None:
    journal = Journal(hurt)
    assert journal.steps == 10
    mixed = 0
    for row in jobs.rows(hurt, "books.jsonl"):
        drawn = list(zip(row["groups"]["prompt"], [0] * 8, strict=True))
        answers = journal.find(row["step"], drawn)
        assert answers is not None and len(answers) == 8
        for group in answers.values():
            assert isinstance(group, Group)
            versions = [span.version for one in group.completions for span in one.spans] or [group.weights_version]
            assert max(0, row["step"] - 2) <= min(versions) == group.weights_version
            assert max(versions) == group.newest_version <= row["step"]
            mixed += any(len(one.spans) > 1 for one in group.completions)
    assert mixed, "no weights came amid a completion: this test could not fail"
    metrics = jobs.rows(hurt, "metrics.jsonl")
    lags = {key for row in metrics for key in row if key.startswith("lag/") and key.endswith("/engine_kl")}
    assert lags <= {f"lag/{lag}/engine_kl" for lag in (0, 1, 2)} and len(lags) > 1
    fresh = [row["lag/0/gap_max"] for row in metrics if "lag/0/gap_max" in row]
    assert max(fresh) < 1e-4, "law 1 holds for tokens of the learner's own weights, whatever sampled those before"


def test_one_engine_repeats_the_run_to_the_same_bits(hurt: Path, tmp_path: Path) -> None:
    again = jobs.complete(tmp_path / "again", *WORDS, f"rollout.replay={hurt}")
    jobs.assert_same_weights(hurt, again)
    assert list_decisive(hurt) == list_decisive(again)
    assert find_parting(read_record(hurt), read_record(again)) is None
    assert all(row["recalled"] for row in jobs.rows(again, "books.jsonl"))
    assert (again / "journal.jsonl").read_bytes().count(b"\n") == 11, "it can be repeated in its turn"


def test_where_the_journal_ends_engines_go_on(hurt: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.mkdir()
    (short / "config.yaml").write_bytes((hurt / "config.yaml").read_bytes())
    lines = (hurt / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (short / "journal.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:40])
    again = jobs.complete(tmp_path / "again", *WORDS, f"rollout.replay={short}")
    assert list_decisive(hurt)[:4] == list_decisive(again)[:4]
    assert [row["recalled"] for row in jobs.rows(again, "books.jsonl")] == [True] * 4 + [False] * 6
    events = jobs.rows(again, "events.jsonl")
    assert [row["step"] for row in events if row["kind"] == "replay_ended"] == [4]


def test_the_door_refuses_another_run(hurt: Path, tmp_path: Path) -> None:
    process = jobs.start(tmp_path / "refused", *WORDS, f"rollout.replay={hurt}", "seed=6", "--dry-run", warm=True)
    assert process.wait(120) == 2
    assert "seed: 5 there, 6 here" in jobs.console(tmp_path / "refused")
