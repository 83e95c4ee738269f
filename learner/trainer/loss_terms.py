"""A step's groups by the loss they teach: what engines sampled by GRPO, what was written down by the method's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.types import ScoredGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerm:
    """The groups of a step that one loss is a mean over; the step's loss is the mean of these by their shares."""

    loss: str  # of `learner.objective.LOSSES`
    sequences: int  # over all packs of all ranks, as groups
    groups: int
    share: float  # of all groups of the step

    @property
    def sampled(self) -> bool:
        """Engines sampled the completions, and gave their log-probs."""
        return self.loss == "grpo"


def split_by_loss(scored: Sequence[ScoredGroup], own_loss: str) -> list[tuple[LossTerm, list[ScoredGroup]]]:
    """One or two, none of them empty; groups stay in prompt order.

    Args:
        own_loss: of the written groups.
    """
    found = []
    for loss, origin in ((own_loss, "given"), ("grpo", "sampled")):
        if own := [group for group in scored if group.group.origin == origin]:
            sequences = sum(len(group.group.completions) for group in own)
            portion = LossTerm(loss=loss, sequences=sequences, groups=len(own), share=len(own) / len(scored))
            found.append((portion, own))
    return found
