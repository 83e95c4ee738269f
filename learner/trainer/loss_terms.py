"""Split the groups of a step by the loss they train: sampled ones by GRPO, given ones by the loss of the method.

Of 16 groups, 12 given and 4 sampled, the loss of the step is 0.75 of the mean over the first and 0.25 of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.types import ScoredGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerm:
    """One loss and the groups it is a mean over. The loss of a step is the sum of its terms, each times its share."""

    loss: str  # of `learner.objective.LOSSES`
    sequences: int  # completions of these groups, over all packs of all ranks
    groups: int  # over all packs of all ranks
    share: float  # of all groups of the step

    @property
    def sampled(self) -> bool:
        """Say whether engines sampled these completions and gave their log-probs."""
        return self.loss == "grpo"


def split_by_loss(scored: Sequence[ScoredGroup], own_loss: str) -> list[tuple[LossTerm, list[ScoredGroup]]]:
    """Return one term or two, each with its groups in prompt order, none without groups.

    Args:
        own_loss: the loss of given groups.
    """
    found = []
    for loss, origin in ((own_loss, "given"), ("grpo", "sampled")):
        if own := [group for group in scored if group.group.origin == origin]:
            sequences = sum(len(group.group.completions) for group in own)
            term = LossTerm(loss=loss, sequences=sequences, groups=len(own), share=len(own) / len(scored))
            found.append((term, own))
    return found
