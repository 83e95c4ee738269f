"""Split the groups of a step by the loss they train: sampled ones by the objective, given ones by the method's own.

Of 16 groups, 12 given and 4 sampled, the loss of the step is 0.75 of the mean over the first and 0.25 of the other.

A dead group is a sampled one that changes no weight, as its advantages are all 0. It is not read: its part of the loss
and of the gradient is 0, and the means are over as many completions as before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from common.config.objective import ObjectiveConfig, reaches_dead_groups
from common.config.schema import Config
from common.types import ScoredGroup
from learner.objective.records import StepCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerm:
    """One loss and the groups it is a mean over. The loss of a step is the sum of its terms, each times its share."""

    loss: str  # of `learner.objective.losses.LOSSES`
    sampled: bool  # engines sampled these completions and gave their log-probs
    counts: StepCounts  # of these groups
    share: float  # of all groups of the step
    read: float = 1.0  # the part of what it is a mean over that is read; the rest is in dead groups
    taught: bool = True  # False: all groups are dead, and one is read for its figures alone


def split_by_loss(
    scored: Sequence[ScoredGroup], own_loss: str, objective: ObjectiveConfig, planned: StepCounts | None = None
) -> list[tuple[LossTerm, list[ScoredGroup]]]:
    """Return one term or two, each with its groups in prompt order, none without groups.

    Args:
        own_loss: the loss of given groups.
        objective: of sampled ones.
        planned: what the loss divides by where these are the groups of a range; None: they are counted.
    """
    found = []
    for loss, origin in ((own_loss, "given"), (objective.loss, "sampled")):
        if own := [group for group in scored if group.group.origin == origin]:
            counts = planned or count_step(own, objective)
            term = LossTerm(loss=loss, sampled=origin == "sampled", counts=counts, share=len(own) / len(scored))
            found.append((term, own))
    return found


def leave_out_dead(
    term: LossTerm,
    groups: Sequence[ScoredGroup],
    compared: Mapping[str, tuple[float, ...]],
    config: Config,
    *,
    more: bool = False,
) -> list[tuple[LossTerm, list[ScoredGroup]]]:
    """Return the term with the groups that are read, as `objective.dead_groups` says.

    A step needs a backward even if all its groups are dead, since Adam goes on under a gradient of 0, and its figures
    must be of something: then the first group is read, with weight 0. Dead groups that are kept are packed by
    themselves. So live ones are packed, and summed up, alike whether or not dead ones are kept.

    Args:
        compared: advantages of sampled groups by prompt id.
        more: these are the groups of a range, and others of the step are read too: of dead ones none is.
    """
    if not term.sampled:
        return [(term, list(groups))]
    objective, how = config.objective, config.objective.dead_groups
    others = how != "drop" and reaches_dead_groups(objective, beta=config.learner.beta)
    live: list[ScoredGroup] = []
    dead: list[ScoredGroup] = []
    for one in groups:
        teaches = has_gradient(one, compared[one.prompt.id], objective, others=others)
        (live if teaches else dead).append(one)

    if how == "keep":
        return [(term, part) for part in (live, dead) if part]
    if more:
        return [(term, live)] if live else []
    read = live or dead[:1]
    share = find_measure(count_step(read, objective), objective) / find_measure(term.counts, objective)
    return [(replace(term, read=share, taught=bool(live)), read)]


def has_gradient(scored: ScoredGroup, advantages: Sequence[float], objective: ObjectiveConfig, *, others: bool) -> bool:
    """Say whether a sampled group can change a weight: whether one of its completions counts and is taught anything.

    Args:
        advantages: (G,).
        others: a term of the loss beside the advantages, as the KL, teaches every completion that counts.
    """
    cut = [objective.mask_truncated and one.finish_reason == "length" for one in scored.group.completions]
    return any(not masked and (others or value != 0) for masked, value in zip(cut, advantages, strict=True))


def find_measure(counts: StepCounts, objective: ObjectiveConfig) -> int:
    """Return how many tokens, or completions, the loss of sampled groups is a mean over."""
    return counts.tokens if objective.aggregation == "token" else counts.sequences


def count_step(groups: Sequence[ScoredGroup], objective: ObjectiveConfig) -> StepCounts:
    """Count what a loss is a mean over."""
    said = [one for group in groups for one in group.group.completions]
    masked = objective.mask_truncated
    tokens = sum(len(one.token_ids) for one in said if not (masked and one.finish_reason == "length"))
    return StepCounts(sequences=len(said), groups=len(groups), tokens=max(1, tokens))
