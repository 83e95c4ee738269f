"""Counts of groups (law 6): dispatched = trained + dropped + pending, at every moment; every drop has its reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from common.errors import CheckpointError, DataError
from common.types import FailedGroup, ScoredGroup

_COUNTS = ("dispatched", "trained", "dropped", "failed", "filtered")
_SETTLED = 20  # groups; a share of fewer says nothing


@dataclass(slots=True)
class Ledger:
    """Counts groups over the whole run, and stops it when too many are dropped."""

    on_event: Callable[..., None]
    max_drop_share: float
    dispatched: int = 0
    trained: int = 0
    dropped: int = 0
    failed: int = 0  # of those dropped: refused by an engine, or not scored
    filtered: int = 0  # of those dropped: without signal, and replaced
    _reasons: dict[str, str] = field(default_factory=dict)  # of those that failed since `take_reasons`, by prompt id

    @property
    def pending(self) -> int:
        return self.dispatched - self.trained - self.dropped

    def counts(self) -> dict[str, int]:
        """Return the counts, for a checkpoint."""
        return {name: getattr(self, name) for name in _COUNTS}

    def restore(self, counts: Mapping[str, int]) -> None:
        """Go on with the counts of a checkpoint. Raises CheckpointError for some that no run wrote."""
        found = [counts[name] for name in _COUNTS]
        if any(type(count) is not int or count < 0 for count in found) or found[1] + found[2] > found[0]:
            raise CheckpointError(
                "the counts of groups in the checkpoint cannot be used",
                got=dict(zip(_COUNTS, found, strict=True)),
                remedy="resume from a checkpoint as a run wrote it",
            )
        for name, count in zip(_COUNTS, found, strict=True):
            setattr(self, name, count)

    def drop(self, lost: FailedGroup) -> None:
        """Count a group that failed as dropped, and log its prompt and reason.

        Raises:
            DataError: more than `max_drop_share` of what was dispatched has failed.
        """
        self.dropped += 1
        self.failed += 1
        self._reasons[lost.prompt_id] = lost.reason
        self.on_event("dropped", prompt=lost.prompt_id, reason=lost.reason)
        if self.dispatched >= _SETTLED and self.failed > self.max_drop_share * self.dispatched:
            raise DataError(
                "too many groups were dropped to go on",
                got=f"{self.failed} of {self.dispatched}; the last: {lost.prompt_id}: {lost.reason}",
                remedy="see events.jsonl for each; mend them, or raise reward.max_drop_share",
            )

    def take_reasons(self) -> dict[str, str]:
        """Return why groups have failed since the last call, by prompt id."""
        reasons, self._reasons = self._reasons, {}
        return reasons

    def skip(self, groups: int) -> None:
        """Count the groups of a step that was left out as dropped. Not they but the steps in a row stop a run."""
        self.dropped += groups

    def filter(self, groups: Sequence[ScoredGroup], *, step: int) -> None:
        """Count groups without signal, which a step does not train on, as dropped. No number of them stops a run."""
        if groups:
            self.dropped += len(groups)
            self.filtered += len(groups)
            prompts = [one.prompt.id for one in groups]
            self.on_event("filtered", step=step, reason="all rewards of the group are equal", prompts=prompts)
