"""The books of a step as a real run writes them: every group with its fate, and an auditor that finds nothing wrong."""

from __future__ import annotations

import json
from array import array
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import xxhash

from common.config.schema import Config
from common.types import FailedGroup
from learner.audit.rules import check_groups, check_ledger, check_steps
from learner.audit.run_record import RunRecord
from learner.audit.weight_rules import check_weights
from learner.driver.control.step_batch import StepBatch
from learner.driver.run import Run
from learner.storage.files import append_jsonl
from learner.tracking.books import Published, StepBooks, read_books, rewind_books
from rollout.fleet.member import Load
from tests.learner.driver.control.test_step_batch import SETTINGS, P, make_config, make_run, take_step

RULES = (check_steps, check_ledger, check_groups, check_weights)


def keep(run: Run, step: int, batch: StepBatch, *, skipped: bool = False, first: bool = False) -> StepBooks:
    """Let a run write down a step, and return the row as the file gives it back."""
    kept: list[StepBooks] = []
    run.tracker = cast("Any", SimpleNamespace(**(vars(run.tracker) | {"keep_books": kept.append, "attempt": 0})))
    new = [step, step + 1] if first else [] if skipped else [step + 1]
    run.published = [Published(version, f"w{version}") for version in new]
    loads = [Load("engine-0", version, f"w{version}") for version in new]
    cast("Any", run.fleet).take_loads = lambda: loads
    run._keep_books(step, batch, skipped=skipped)  # noqa: SLF001
    (row,) = kept
    assert read_books(json.loads(json.dumps(row.row()))) == row
    return row


def record(config: Config, books: list[StepBooks]) -> RunRecord:
    metrics = [
        {"step": row.step} | {f"groups_{name}": getattr(row, name) for name in ("dispatched", "trained", "dropped")}
        for row in books
        if not row.skipped
    ]
    nothing: Any = None
    return RunRecord(
        folder=nothing, config=config, books=books, metrics=metrics, events=[], summary=None, running=False
    )


@pytest.mark.parametrize("signal", SETTINGS, ids=str)
def test_the_books_of_a_run_keep_every_rule(signal: dict[str, Any]) -> None:
    config = make_config(**signal)
    run = make_run(config, rows=17, refused=frozenset({"train/3"}))
    run.ledger.max_drop_share = 1.0
    books = [keep(run, step, take_step(run), first=step == 0) for step in range(12)]
    found = record(config, books)
    assert [line for rule in RULES for line in rule(found)] == []
    groups = [group for row in books for group in row.groups]
    reasons = [group.fate for group in groups if group.prompt == "train/3"]
    assert reasons and all(reason.startswith("failed: ") for reason in reasons)
    assert ("filtered" in {group.fate for group in groups}) is ("max_prompts" not in signal)
    assert max(row.dispatched for row in books) == run.ledger.dispatched

    old = replace(books[-1], groups=(replace(books[-1].groups[0], version=3),))
    assert list(check_groups(record(config, [*books[:-1], old]))), "the rules see these books"


def test_checksums_are_of_tokens_log_probs_and_rewards() -> None:
    run = make_run(make_config(max_prompts=1.0))
    batch = take_step(run)
    row = keep(run, 0, batch, first=True)
    for one, entry in zip(batch.scored, row.groups, strict=True):
        completions = one.group.completions
        count = len(completions)
        ids = array("q", [1] * count + [token for said in completions for token in said.token_ids])
        assert entry.tokens == xxhash.xxh3_64(ids.tobytes()).hexdigest()
        numbers = array("q", [count]).tobytes() + array("d", one.rewards).tobytes()
        assert entry.rewards == xxhash.xxh3_64(numbers).hexdigest()
        assert (entry.engine, entry.version, entry.size) == ("engine-0", 0, count)
    assert len({entry.logprobs for entry in row.groups}) > 1 or len({entry.size for entry in row.groups}) == 1


def test_a_step_left_out_stays_in_the_books_where_a_checkpoint_counts_it(tmp_path: Path) -> None:
    run = make_run(make_config(max_prompts=1.0))
    batch = take_step(run)
    rows = [keep(run, 0, batch, first=True)]
    for _ in range(2):
        batch = take_step(run)
        run.ledger.trained -= P
        run.ledger.skip(P)
        run.version -= 1
        rows.append(keep(run, 1, batch, skipped=True))
    path = tmp_path / "books.jsonl"
    for dropped, left in ((0, 1), (P, 2), (2 * P, 3)):
        path.unlink(missing_ok=True)
        for row in rows:
            append_jsonl(path, row.row())
        rewind_books(path, first_step=1, dropped=dropped)
        kept = [read_books(json.loads(line)) for line in path.read_text().splitlines()]
        assert kept == rows[:left]


def test_a_group_whose_reason_is_anybodys_text_is_short_in_the_books() -> None:
    run = make_run(make_config(max_prompts=1.0), refused=frozenset({"train/0"}), rows=P)
    run.ledger.max_drop_share = 1.0
    batch = run.begin_batch()
    prompts = run.next_prompts(batch)
    for outcome in run.groups(prompts):
        if isinstance(outcome, FailedGroup):
            run.ledger.drop(replace(outcome, reason="x" * 10_000))
    (failed,) = [one for one in keep(run, 0, batch, first=True).groups if one.fate.startswith("failed")]
    assert failed.prompt == "train/0" and len(failed.fate) < 150
