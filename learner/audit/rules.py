"""What must hold of every run. Each rule yields one line for each violation of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

from learner.audit.process_rules import check_end, check_pace, check_survivors
from learner.audit.run_record import RunRecord
from learner.audit.weight_rules import check_weights
from learner.tracking.books import LOST, TRAINED, GroupEntry, StepBooks

Rule = Callable[[RunRecord], Iterator[str]]


def check_steps(record: RunRecord) -> Iterator[str]:
    """Every step is there once, in order; one that was left out is taken again."""
    due = 0
    for row in record.books:
        if row.step != due:
            yield f"step {row.step}: its row comes where that of step {due} is due"
        due = row.step + (not row.skipped)
    logged = [int(row["step"]) for row in record.metrics]
    if logged != list(range(len(logged))):
        yield f"metrics.jsonl holds steps {_shorten(logged)}, not one row for each"
    taken = len(record.steps)
    if len(logged) not in (taken, taken - (not record.finished)):  # a kill may fall between the two
        yield f"the books hold {taken} steps, metrics.jsonl {len(logged)}"
    if record.summary and not record.running and record.summary["steps"] not in (taken, len(logged)):
        yield f"summary.json says {record.summary['steps']} steps, the books {taken}"
    if record.finished and taken != record.config.steps:
        yield f"the run has finished after {taken} of {record.config.steps} steps"


def check_starts(record: RunRecord) -> Iterator[str]:
    """A resumed run goes on at a checkpoint, and keeps nothing of what came after it."""
    if not record.starts:
        yield "events.jsonl names no start"
    for number, events in enumerate(record.attempts):
        first = int(events[0]["first_step"])
        for row in record.books:
            if row.attempt == number and row.step < first:
                yield f"step {row.step}: start {number} took it, which began with step {first}"
            if row.attempt < number and row.step >= first + row.skipped:
                yield f"step {row.step}: start {row.attempt} took it, and start {number} goes on from step {first}"
    for one, other in pairwise(record.books):
        if other.attempt < one.attempt:
            yield f"step {other.step}: start {other.attempt} took it, after start {one.attempt}"
    if record.books and record.books[-1].attempt >= len(record.starts):
        yield f"start {record.books[-1].attempt} took a step, and events.jsonl names {len(record.starts)} starts"


def check_ledger(record: RunRecord) -> Iterator[str]:
    """Law 6: dispatched = trained + dropped + pending, after every step and by counting groups."""
    trained = dropped = 0
    ahead: tuple[int, ...] = ()
    for row in record.books:
        trained += sum(group.fate == TRAINED for group in row.groups)
        dropped += sum(group.fate != TRAINED for group in row.groups)
        if (row.trained, row.dropped) != (trained, dropped):
            yield (
                f"step {row.step}: {trained} groups trained and {dropped} dropped by then, "
                f"where the run counts {row.trained} and {row.dropped}"
            )
        if row.dispatched != row.trained + row.dropped + sum(row.pending):
            yield (
                f"step {row.step}: {row.dispatched} groups dispatched, {row.trained} trained, {row.dropped} dropped, "
                f"{sum(row.pending)} pending"
            )
        if row.pending[: len(ahead[1:])] != ahead[1:] or (ahead and len(row.groups) < ahead[0]):
            yield f"step {row.step}: of steps of {list(ahead)} groups asked ahead, {list(row.pending)} are left"
        ahead = row.pending
    if record.finished and ahead:
        yield f"the run has finished with {sum(ahead)} groups pending"
    for row, logged in zip(record.steps, record.metrics, strict=False):
        counts = [int(logged[f"groups_{name}"]) for name in ("dispatched", "trained", "dropped")]
        if counts != [row.dispatched, row.trained, row.dropped]:
            yield f"step {row.step}: metrics.jsonl counts {counts} groups dispatched, trained and dropped"


def check_groups(record: RunRecord) -> Iterator[str]:
    """Each group once, with a reason where it was dropped; none sampled by weights older than `rollout.max_lag`."""
    seen: dict[tuple[str, int], int] = {}
    for row in record.books:
        for group in row.groups:
            where = f"step {row.step}: group {group.prompt} of epoch {group.epoch}"
            before = seen.setdefault((group.prompt, group.epoch), row.step)
            if seen[group.prompt, group.epoch] != row.step or sum(one.prompt == group.prompt for one in row.groups) > 1:
                yield f"{where} is in step {before} too"
            if fault := _find_fault(row, group, record.config.rollout.max_lag):
                yield f"{where} {fault}"


def _find_fault(row: StepBooks, group: GroupEntry, max_lag: int) -> str | None:
    """Say what is wrong with a group by itself."""
    kinds = {TRAINED, "filtered", "skipped"}
    if group.fate == LOST or (group.fate not in kinds and not group.fate.startswith("failed: ")):
        return f"is neither trained nor dropped with a reason, but {group.fate!r}"
    if row.skipped is (group.fate == TRAINED) and group.fate in (TRAINED, "skipped"):
        return f"is {group.fate} in a step that was {'left out' if row.skipped else 'taken'}"
    found = (group.origin, group.version, group.tokens, group.logprobs, group.rewards)
    if group.fate not in kinds:
        return "has failed, and has completions" if group.size or group.engine or set(found) != {None} else None
    if not group.size or None in found:
        return f"is {group.fate}, and has no completions"
    if group.origin == "given":
        return "is given, and has an engine" if group.engine is not None or group.version else None
    if group.origin != "sampled" or group.engine is None:
        return f"is {group.origin} by {group.engine}"
    for version in (group.version or 0, group.newest or 0):
        if not 0 <= (lag := row.step - version) <= max_lag:
            return f"was sampled with weights {version}, {lag} steps old, where rollout.max_lag is {max_lag}"
    return None


def _shorten(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")


RULES: tuple[Rule, ...] = (
    check_steps,
    check_starts,
    check_ledger,
    check_groups,
    check_weights,
    check_pace,
    check_end,
    check_survivors,
)


def find_violations(record: RunRecord) -> list[str]:
    """Return one line for each violation of a rule; none of a run that kept them all."""
    return [line for rule in RULES for line in rule(record)]
