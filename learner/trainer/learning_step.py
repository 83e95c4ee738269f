"""One step of learning on one rank: forward and backward of its packs, and the optimizer steps of the objective.

A step has `objective.minibatches` batches and goes over them `objective.updates` times; each time an optimizer step.
The first look at a pack leaves the log-probs of the policy before the first update, and of the reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from common.config.schema import Config
from common.models.families import family_of
from common.types import ScoredGroup
from learner.model.head import ScoringSpec
from learner.model.logprobs import packed_logprobs
from learner.model.lora import switch_off_adapters
from learner.model.pack import Pack, build_pack
from learner.model.rows import build_rows
from learner.objective.corrections import settle
from learner.objective.kl import KL
from learner.objective.losses import LOSSES
from learner.objective.records import Coefficients
from learner.trainer.loss_terms import LossTerm
from learner.trainer.rank_pack import RankPack
from learner.trainer.rng import explain_irreproducible
from learner.trainer.schedule import learning_rate
from learner.trainer.stats import PackStats, RankStats, add_up, average_updates, measure_pack


@dataclass(slots=True)
class FirstLook:
    """What the first forward of a pack leaves for later updates of the same step; None before it."""

    old_logp: Tensor | None = None  # (N,)
    ref_logp: Tensor | None = None  # (N,)
    kept: Tensor | None = None  # (N, V) bool: the support that top-k and top-p left


@dataclass(slots=True)
class Count:
    """How often something was done. Another thread may read it."""

    count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningStep:
    """The models of one rank, and how it learns."""

    config: Config
    engine: Any  # DeepSpeed's, around the policy
    reference: Any | None  # None: no KL. The engine itself, whose adapters are off, where it has some
    adapters: Mapping[str, Any]
    spec: ScoringSpec  # the distribution that engines sample from
    steps: int  # of the whole run
    tower_runs: bool  # prompts come with pixels
    packs: Count  # that were built
    open_images: Callable[[Sequence[ScoredGroup]], Sequence[ScoredGroup]]  # a pack at a time: features are large

    def measure_kl(self, packs: Sequence[RankPack]) -> list[list[float]]:
        """Return the KL of every completion token to the reference, one flat list a pack."""
        found = []
        for rank_pack in packs:
            pack = self.build(rank_pack)
            with torch.no_grad():
                scores = packed_logprobs(self.engine, pack, self.spec)
                with switch_off_adapters(self.adapters):
                    ref_logp = packed_logprobs(self.reference, pack, self.spec, kept=scores.kept).logp
            found.append(KL[self.config.objective.kl](scores.logp, ref_logp).tolist())
        return found

    def build(self, pack: RankPack) -> Pack:
        """Return the tensors of a pack: prompts shared where the family allows it."""
        self.packs.count += 1
        model = self.engine.module
        build = build_pack if family_of(model.config).shared_prefix else build_rows
        return build(
            self.open_images(pack.groups),
            model,
            banned=self.spec.banned,
            tower_runs=self.tower_runs,
            advantages=pack.advantages,
        )

    def look_ahead(self, packs: Sequence[tuple[RankPack, FirstLook]]) -> None:
        """Note the log-probs of the policy as the step begins."""
        with torch.no_grad():
            for rank_pack, look in packs:
                assert rank_pack.term is not None, "a pack to learn from has a loss"
                scores = packed_logprobs(self.engine, self.build(rank_pack), self._spec_of(rank_pack.term))
                look.old_logp, look.kept = scores.logp, scores.kept

    def forward_backward(
        self,
        rank_pack: RankPack,
        look: FirstLook,
        coefficients: Coefficients,
        losses: list[Tensor],
        *,
        at: int,
        last: bool,
    ) -> PackStats:
        """Add the gradient of a pack and return its figures, all 0 where it is a filler.

        Args:
            losses: of the packs before it; its own is added.
            at: steps of the run so far, the version of the weights that learn.
            last: before an optimizer step. If a loss on any rank is no finite number, the gradient is made none on all
                of them: the optimizer of any ZeRO stage then leaves out the step, and forgets the gradient.
        """
        pack, term, learner = self.build(rank_pack), rank_pack.term, self.config.learner
        assert term is not None, "a pack to learn from has a loss"

        # Log-probs of policy and reference, on one support.
        spec, old_logp = self._spec_of(term), look.old_logp
        scores = packed_logprobs(self.engine, pack, spec, kept=look.kept)
        if look.ref_logp is None and self.reference is not None and self.config.objective.kl_in == "loss":
            with torch.no_grad(), switch_off_adapters(self.adapters):
                look.ref_logp = packed_logprobs(self.reference, pack, spec, kept=scores.kept).logp
        if old_logp is None:
            look.old_logp, look.kept = scores.logp.detach(), scores.kept

        # This pack's share of the loss of the step.
        lags = [scored.group.count_lag(at) for scored in rank_pack.groups]
        objective, acts = settle(self.config, lags)
        inputs = pack.inputs(
            scores.logp,
            look.ref_logp,
            old_logp=old_logp,
            entropy=scores.entropy if coefficients.entropy_bonus and term.sampled else None,
            step=term.counts,
            coefficients=coefficients,
            objective=objective,
            longest=self.config.rollout.max_completion_tokens,
            corrected=torch.tensor(acts, device=pack.group.device)[pack.group],
        )
        outputs = LOSSES[term.loss](inputs)
        loss, kl = outputs.loss * (term.share * term.taught), outputs.kl * (term.share / term.read)
        losses.append(loss.detach())
        if last and not _are_finite(losses):
            loss = loss * torch.nan

        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * (learner.ranks * rank_pack.real))  # DeepSpeed takes the mean
        if not last:
            self.engine.step()  # only counts

        return measure_pack(
            inputs,
            scores,
            loss.detach(),
            kl,
            groups=rank_pack.groups,
            at=at,
            given=not term.sampled,
            counts=rank_pack.real,
        )

    def _spec_of(self, term: LossTerm) -> ScoringSpec:
        """Return the distribution that a loss is about.

        Given answers are never cut. A likelihood (sft) is the model's own, whatever the temperature of sampling.
        """
        if term.sampled:
            return self.spec
        uncut = self.spec.uncut()
        return replace(uncut, temperature=1.0) if term.loss == "sft" else uncut


class OpenStep:
    """A step that has begun.

    An optimizer step whose loss or gradient is no finite number is skipped on all ranks alike, and counted.
    """

    def __init__(self, learning: LearningStep, coefficients: Coefficients, *, at: int) -> None:
        """Begin a step.

        Args:
            at: steps of the run so far, which say the learning rate.
        """
        self._learning, self._coefficients, self.at = learning, coefficients, at
        objective = learning.config.objective
        self._updates, self._whole = objective.updates, objective.minibatches == 1
        self._batches: list[list[tuple[RankPack, FirstLook]]] = [[]] if self._whole else []
        self._losses: list[Tensor] = []  # of the packs since the last optimizer step
        self._measured: list[PackStats] = []  # likewise
        self._seconds = 0.0  # that were spent on all this

    def learn(self, packs: Sequence[RankPack], *, last: bool) -> None:
        """Add the gradient of packs. Of a minibatch only the log-probs are noted: later ones meet a changed policy.

        Args:
            last: no other pack of this step follows.

        Raises ModelError when torch cannot compute the gradient alike at every run.
        """
        own = [(pack, FirstLook()) for pack in packs]
        with self._work():
            if not self._whole:
                self._learning.look_ahead(own)
                self._batches.append(own)
                return
            self._add_gradient(own, last=last)
        if self._updates > 1:
            self._batches[0] += own

    def finish(self, correction: float) -> RankStats:
        """Take the optimizer steps and return the figures of this rank.

        Args:
            correction: what the gradient of a pass over all packs is multiplied with.
        """
        done = []
        with self._work():
            for number in range(self._updates):
                for batch in self._batches:
                    if number or not self._whole:
                        self._add_gradient(batch, last=True)
                    done.append(self._update(correction))
        return replace(average_updates(done), seconds=self._seconds)

    @contextmanager
    def _work(self) -> Iterator[None]:
        """Count the seconds of the block."""
        started = perf_counter()
        with explain_irreproducible():
            yield
        self._seconds += perf_counter() - started

    def _add_gradient(self, packs: Sequence[tuple[RankPack, FirstLook]], *, last: bool) -> None:
        for number, (pack, look) in enumerate(packs, 1):
            stats = self._learning.forward_backward(
                pack, look, self._coefficients, self._losses, at=self.at, last=last and number == len(packs)
            )
            self._measured.append(stats)

    def _update(self, correction: float) -> RankStats:
        """Take one optimizer step with the gradient so far."""
        from learner.trainer import zero

        learner = self._learning.config.learner
        lr = learning_rate(
            self.at,
            peak=learner.lr,
            steps=self._learning.steps,
            warmup_steps=learner.warmup_steps,
            schedule=learner.schedule,
        )
        norm = zero.optimizer_step(self._learning.engine, lr=lr, clip=learner.grad_clip, correction=correction)
        measured, self._measured, self._losses = self._measured, [], []
        return add_up(measured, grad_norm=norm, lr=lr, applied=math.isfinite(norm))


def _are_finite(losses: Sequence[Tensor]) -> bool:
    """Whether the losses of all packs are finite numbers, on every rank. A collective."""
    faults = (~torch.stack(list(losses)).isfinite()).any().to(torch.int32)
    torch.distributed.all_reduce(faults, op=torch.distributed.ReduceOp.MAX)
    return not faults
