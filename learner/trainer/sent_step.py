"""A step as the driver sends it to the ranks: range by range, each as packs that depend on its groups alone.

The loss is a mean over all groups of the step, and the later ones are still being sampled. So each range divides by
what is planned, P groups of G completions, and the gradient of all is put right before the optimizer step. Of 32
planned groups one was dropped: the others were divided by 32, and the gradient is taken 32 / 31 times. A mean over
tokens is planned with completions of the largest length, and put right likewise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from statistics import fmean

from common.config.schema import Config
from common.types import ScoredGroup, StepResult
from learner.objective.advantages import compare_groups
from learner.objective.records import Coefficients, StepCounts
from learner.trainer.loss_terms import LossTerm, count_step, find_measure, leave_out_dead, split_by_loss
from learner.trainer.microbatches import Microbatch, deal_groups, divide
from learner.trainer.rank_pack import RankPack, pack_groups
from learner.trainer.stats import RankStats, combine

Compared = Mapping[str, tuple[float, ...]]  # (G,) advantages by prompt id
TokenValues = Mapping[str, Sequence[tuple[float, ...]]]  # by prompt id, of every token of each completion


@dataclass(slots=True, kw_only=True)
class SentStep:
    """The groups of a step that the ranks were given so far."""

    config: Config
    coefficients: Coefficients
    groups: list[ScoredGroup] = field(default_factory=list)
    read: dict[str, ScoredGroup] = field(default_factory=dict)  # of these, by prompt id: dead ones may be left out
    compared: dict[str, tuple[float, ...]] = field(default_factory=dict)
    kl: list[float] = field(default_factory=list)  # of every token, where it is taken off the rewards

    @property
    def planned(self) -> StepCounts | None:
        """What the ranges divide by; None where all groups come at once, and are counted."""
        if self.config.ranges == 1:
            return None
        completions, longest = self.config.completions, self.config.rollout.max_completion_tokens
        return StepCounts(sequences=completions, groups=self.config.sampled_prompts, tokens=completions * longest)

    def add(
        self, groups: Sequence[ScoredGroup], *, last: bool, kl: TokenValues | None = None
    ) -> list[list[list[RankPack]]]:
        """Take the groups of the next range, and return the packs of each rank, by minibatch.

        Args:
            last: no range follows. Then every rank gets a pack, even if all groups are dead or were dropped.
            kl: where it is taken off the rewards.
        """
        self.groups += groups
        self.kl += chain.from_iterable(chain.from_iterable((kl or {}).values()))
        weighted = {name: [self.coefficients.beta * sum(row) for row in rows] for name, rows in (kl or {}).items()}
        self.compared |= compare_groups(groups, self.config, weighted or None) if groups else {}
        if self.planned is None:
            batches = divide(groups, self.config.objective.minibatches)
            return [self._pack(self._choose(batch)) for batch in batches]
        packs = self._pack(self._choose(groups))
        if last and self.groups and not packs[0]:
            packs = self._pack_one()
        return [packs]

    def correct(self) -> float:
        """Return what puts the gradient right once all groups are known; exactly 1 where all came that were planned."""
        return self._compare_with_plan(self.groups)

    def describe(self, stats: Sequence[RankStats]) -> StepResult:
        """Return the figures of the step from those of its ranks, as means over the groups that came."""
        result = combine(stats)
        return replace(
            result,
            loss=result.loss * self.correct(),
            kl=fmean(self.kl) if self.kl else result.kl * self._compare_with_plan([*self.read.values()]),
            left_out=len(self.groups) - len(self.read),
        )

    def _compare_with_plan(self, groups: Sequence[ScoredGroup]) -> float:
        """Return how many times as much was planned as these groups are: of tokens or completions; 1 without a plan."""
        if self.planned is None:
            return 1.0
        objective = self.config.objective
        return find_measure(self.planned, objective) / find_measure(count_step(groups, objective), objective)

    def _choose(self, groups: Sequence[ScoredGroup]) -> list[tuple[LossTerm, list[ScoredGroup]]]:
        """Return the losses and the groups that are read for each."""
        found = []
        for term, own in split_by_loss(groups, self.config.loss, self.config.objective, self.planned):
            found += leave_out_dead(term, own, self.compared, self.config, more=self.planned is not None)
        return found

    def _pack(self, chosen: Sequence[tuple[LossTerm, Sequence[ScoredGroup]]]) -> list[list[RankPack]]:
        """Return the packs of each rank."""
        packs: list[list[RankPack]] = [[] for _ in range(self.config.learner.ranks)]
        for term, own in chosen:
            self.read |= {one.prompt.id: one for one in own}
            for rank, dealt in enumerate(pack_groups(own, deal_groups(own, self.config.learner), term, self.compared)):
                packs[rank] += dealt
        return packs

    def _pack_one(self) -> list[list[RankPack]]:
        """Return a pack of weight 0 for each rank, by which it learns that no other follows.

        Where no group was read before, its figures are those of the step.
        """
        one, first = self.groups[0], not self.read
        ((term, own),) = split_by_loss([one], self.config.loss, self.config.objective, self.planned)
        self.read.setdefault(one.prompt.id, one)
        ranks = range(self.config.learner.ranks)
        dealt = [[Microbatch(groups=(0,), real=first and rank == 0)] for rank in ranks]
        return pack_groups(own, dealt, replace(term, taught=False), self.compared)
