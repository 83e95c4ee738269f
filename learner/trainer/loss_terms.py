"""Split the groups of a step by the loss they train: sampled ones by the objective, given ones by the method's own.

Of 16 groups, 12 given and 4 sampled, the loss of the step is 0.75 of the mean over the first and 0.25 of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.config.objective import ObjectiveConfig
from common.types import ScoredGroup
from learner.objective.records import StepCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerm:
    """One loss and the groups it is a mean over. The loss of a step is the sum of its terms, each times its share."""

    loss: str  # of `learner.objective.losses.LOSSES`
    sampled: bool  # engines sampled these completions and gave their log-probs
    counts: StepCounts  # of these groups
    share: float  # of all groups of the step


def split_by_loss(
    scored: Sequence[ScoredGroup], own_loss: str, objective: ObjectiveConfig
) -> list[tuple[LossTerm, list[ScoredGroup]]]:
    """Return one term or two, each with its groups in prompt order, none without groups.

    Args:
        own_loss: the loss of given groups.
        objective: of sampled ones.
    """
    found = []
    for loss, origin in ((own_loss, "given"), (objective.loss, "sampled")):
        if own := [group for group in scored if group.group.origin == origin]:
            counts = count_step(own, objective)
            term = LossTerm(loss=loss, sampled=origin == "sampled", counts=counts, share=len(own) / len(scored))
            found.append((term, own))
    return found


def count_step(groups: Sequence[ScoredGroup], objective: ObjectiveConfig) -> StepCounts:
    """Count what a loss is a mean over."""
    said = [one for group in groups for one in group.group.completions]
    masked = objective.mask_truncated
    tokens = sum(len(one.token_ids) for one in said if not (masked and one.finish_reason == "length"))
    return StepCounts(sequences=len(said), groups=len(groups), tokens=max(1, tokens))
