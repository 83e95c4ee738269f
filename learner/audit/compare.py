"""Where two runs part: the first step, and the first group in it, that are not the same in both."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

from learner.audit.run_record import RunRecord
from learner.tracking.books import GroupEntry, StepBooks

# What two runs have in common that are the same (law 5); who sampled a group, and when, is not.
SAME = ("prompt", "epoch", "fate", "origin", "size", "version", "newest", "tokens", "logprobs", "rewards")
WORDS = {"prompt": "prompts", "logprobs": "log-probs", "version": "version of the weights that sampled it"}


def find_parting(one: RunRecord, other: RunRecord) -> str | None:
    """Say in one line where two runs part; None where they do not."""
    comparable = one.config.weights.bucket_mb == other.config.weights.bucket_mb
    for left, right in zip(one.books, other.books, strict=False):
        if found := next(_find_differences(left, right, weights=comparable), None):
            return found
    if len(one.books) == len(other.books):
        return None
    shorter = min((one, other), key=lambda record: len(record.books))
    return f"the same for {len(shorter.steps)} steps, where {shorter.folder} ends"


def _find_differences(left: StepBooks, right: StepBooks, *, weights: bool) -> Iterator[str]:
    """Yield in what two rows differ, the cause before what follows from it."""
    where = f"step {left.step}"
    if (left.step, left.skipped) != (right.step, right.skipped):
        yield f"{where}: it is {_name(left)} in one, step {right.step} is {_name(right)} in the other"
    for mine, theirs in zip_longest(left.groups, right.groups):
        if mine is None or theirs is None:
            yield f"{where}: {len(left.groups)} groups in one, {len(right.groups)} in the other"
        elif differing := [name for name in SAME if getattr(mine, name) != getattr(theirs, name)]:
            yield f"{where}, group {mine.prompt} of epoch {mine.epoch}: {_describe(differing[0], mine, theirs)}"
    if weights:
        yield from _compare_weights(left, right)


def _describe(name: str, mine: GroupEntry, theirs: GroupEntry) -> str:
    return f"other {WORDS.get(name, name)}, {getattr(mine, name)} in one, {getattr(theirs, name)} in the other"


def _compare_weights(left: StepBooks, right: StepBooks) -> Iterator[str]:
    """Yield the versions whose bytes differ, where both were published as bytes."""
    theirs = dict(right.published)
    for version, checksum in left.published:
        if None not in (checksum, theirs.get(version)) and checksum != theirs[version]:
            yield f"step {left.step}: other weights {version}, {checksum} in one, {theirs[version]} in the other"


def _name(row: StepBooks) -> str:
    return "left out" if row.skipped else "taken"
