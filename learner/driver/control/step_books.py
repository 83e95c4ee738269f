"""What became of every group of a step, as a row of the run's books."""

from __future__ import annotations

import time
from array import array
from collections.abc import Mapping, Sequence

from common.checksum import checksum
from common.errors import clip
from common.types import ScoredGroup
from learner.driver.control.step_batch import StepBatch
from learner.tracking.books import LOST, TRAINED, GroupEntry, Loaded, Published, StepBooks
from rollout.fleet.member import Load

LONGEST = 100  # characters of a reason; events.jsonl has all of it


def make_step_books(
    step: int,
    batch: StepBatch,
    *,
    skipped: bool,
    attempt: int,
    counts: Mapping[str, int],
    reasons: Mapping[str, str],
    pending: Sequence[int],
    published: Sequence[Published],
    loads: Sequence[Load],
    recalled: bool,
) -> StepBooks:
    """Make the row of a step that has just ended.

    Args:
        skipped: the step was left out; see `Run.skip`.
        counts: of the ledger, after the step.
        reasons: why groups of the step have failed, by prompt id.
        pending: groups of each step that was asked ahead, the oldest first.
        published, loads: since the row before.
        recalled: its answers come from a checkpoint or a journal.
    """
    fates = {prompt: f"failed: {clip(reason, LONGEST)}" for prompt, reason in reasons.items()}
    fates |= {one.prompt.id: "filtered" for one in batch.left_out}
    fates |= {one.prompt.id: "skipped" if skipped else TRAINED for one in batch.groups}
    scored = {one.prompt.id: one for one in batch.scored}
    entries = [
        _make_entry(prompt, epoch, fates.get(prompt, LOST), scored.get(prompt)) for prompt, epoch in batch.drawn.items()
    ]
    return StepBooks(
        step=step,
        skipped=skipped,
        attempt=attempt,
        monotonic=round(time.monotonic(), 3),
        dispatched=counts["dispatched"],
        trained=counts["trained"],
        dropped=counts["dropped"],
        pending=tuple(pending),
        published=tuple(published),
        loads=tuple(Loaded(*one) for one in loads),
        recalled=recalled,
        groups=tuple(entries),
    )


def _make_entry(prompt: str, epoch: int, fate: str, scored: ScoredGroup | None) -> GroupEntry:
    if scored is None:
        unknown = dict.fromkeys(("origin", "engine", "version", "newest", "tokens", "logprobs", "rewards"))
        return GroupEntry(prompt=prompt, epoch=epoch, fate=fate, size=0, **unknown)
    group, completions = scored.group, scored.group.completions
    return GroupEntry(
        prompt=prompt,
        epoch=epoch,
        fate=fate,
        origin=group.origin,
        engine=group.engine_id,
        version=group.weights_version,
        newest=group.newest_version,
        size=len(completions),
        tokens=_digest("q", [one.token_ids for one in completions]),
        logprobs=_digest("d", [one.logprobs for one in completions]),
        rewards=_digest("d", [scored.rewards]),
    )


def _digest(kind: str, rows: Sequence[Sequence[float]]) -> str:
    """Return a checksum of numbers, and of where each row of them ends.

    Args:
        kind: array's code of the numbers: "q" integers, "d" floats.
    """
    ends = array("q", [len(row) for row in rows])
    return f"{checksum([ends, *(array(kind, row) for row in rows)]):016x}"
