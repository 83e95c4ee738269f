"""The figures of a step: of a pack, of a rank, of all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from statistics import fmean

import torch
from torch import Tensor

from common.types import GroupGap, ScoredGroup, StepResult
from learner.model.logprobs import Scores
from learner.objective.corrections import correct
from learner.objective.records import LossInputs

CLIP_RANGE = (0.8, 1.2)  # of the ratio learner to engine; counted, not applied


@dataclass(frozen=True, slots=True, kw_only=True)
class PackStats:
    """The figures of one forward and backward, left on the device."""

    sums: Tensor  # (11,) float64: loss to corrected of RankStats, in its order
    gap: Tensor  # (N,) float32: |learner - engine log-prob| of each token, 0 where it is given
    sizes: Mapping[str, int]  # tokens of each group by prompt id, in the order of `gap`; of none that is given
    probabilities: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStats:
    """The figures of one rank in a step: sums over its tokens, and its shares of loss and KL."""

    loss: float
    kl: float
    entropy: float
    gap: float  # |learner - engine log-prob|, over sampled tokens
    clipped: float  # sampled tokens whose ratio is outside the clip
    tokens: float
    sampled: float  # tokens that engines sampled
    weight: float  # exp(learner - engine log-prob), over sampled tokens
    squared_weight: float
    engine_kl: float  # of engine to learner, over sampled tokens
    corrected: float  # sampled tokens whose weight was truncated or masked
    gap_max: float
    gaps: Mapping[str, GroupGap]  # of its sampled groups, by prompt id
    grad_norm: float  # of all ranks
    updates: int  # optimizer steps taken; 0 where loss or gradient was no finite number
    lr: float
    probabilities: Mapping[str, tuple[float, ...]]  # of its given answers, by prompt id


SUMS = [field.name for field in fields(RankStats)][:11]


def measure_pack(
    inputs: LossInputs,
    scores: Scores,
    loss: Tensor,
    kl: Tensor,
    *,
    groups: Sequence[ScoredGroup],
    given: bool,
    counts: bool,
) -> PackStats:
    """Return the figures of a pack from its log-probs and its shares of loss and KL.

    Args:
        groups: what it was built of.
        given: their completions are given answers; else engines sampled them.
        counts: False for a filler: all its figures are 0.
    """
    sampled = float(not given)
    difference = (inputs.anchor - inputs.engine_logp) * sampled
    weight, gap = difference.exp(), difference.abs()
    tokens = torch.tensor([len(gap), len(gap) * sampled], device=gap.device)
    sums = [loss, kl, scores.entropy.detach().sum(), gap.sum(), _find_clipped(inputs, weight).sum() * sampled, *tokens]
    sums += [weight.sum() * sampled, weight.square().sum() * sampled, (weight - difference - 1).sum()]
    sums += [_find_corrected(inputs).sum() * sampled]
    return PackStats(
        sums=torch.stack([value.double() for value in sums]) * counts,
        gap=gap * counts,
        sizes={scored.prompt.id: _count_tokens(scored) for scored in groups} if counts and not given else {},
        probabilities=_completion_probabilities(inputs, groups) if counts and given else {},
    )


def _find_clipped(inputs: LossInputs, weight: Tensor) -> Tensor:
    """Find the (N,) tokens whose ratio to the policy before the step, or else to the engine, is outside the clip."""
    if inputs.old_logp is None:
        return (weight < CLIP_RANGE[0]) | (weight > CLIP_RANGE[1])
    ratio, objective = (inputs.logp.detach() - inputs.old_logp).exp(), inputs.objective
    return (ratio < 1 - objective.clip_low) | (ratio > 1 + objective.clip_high)


def _find_corrected(inputs: LossInputs) -> Tensor:
    """Find the (N,) tokens whose weight the correction truncates or masks."""
    if inputs.objective.correction in ("truncate", "mask"):
        return correct(inputs).touched
    return torch.zeros_like(inputs.row)


def add_up(packs: Sequence[PackStats], *, grad_norm: float, lr: float, applied: bool) -> RankStats:
    """Return the figures of a rank from those of its packs."""
    sums = torch.stack([pack.sums for pack in packs]).sum(0).tolist()
    return RankStats(
        **dict(zip(SUMS, sums, strict=True)),
        gap_max=max(pack.gap.max().item() for pack in packs),
        gaps={name: gap for pack in packs for name, gap in _split_gap(pack).items()},
        grad_norm=grad_norm,
        updates=int(applied),
        lr=lr,
        probabilities={name: shares for pack in packs for name, shares in pack.probabilities.items()},
    )


def average_updates(updates: Sequence[RankStats]) -> RankStats:
    """Return the figures of a rank in a step from those of its optimizer steps.

    Loss, KL and norm are means over them, all that is counted in tokens adds up.
    """
    if len(updates) == 1:
        return updates[0]
    sums = {name: sum(getattr(one, name) for one in updates) for name in SUMS}
    return RankStats(
        **sums | {name: sums[name] / len(updates) for name in ("loss", "kl")},
        gap_max=max(one.gap_max for one in updates),
        gaps={name: gap for one in updates for name, gap in one.gaps.items()},
        grad_norm=fmean(one.grad_norm for one in updates),
        updates=sum(one.updates for one in updates),
        lr=updates[0].lr,
        probabilities={name: shares for one in reversed(updates) for name, shares in one.probabilities.items()},
    )


def combine(stats: Sequence[RankStats]) -> StepResult:
    """Return the figures of a step from those of its ranks.

    Shares of loss and KL add up. The entropy is a mean over all tokens, what compares learner and engine over all
    sampled ones.
    """
    total = {name: sum(getattr(rank, name) for rank in stats) for name in SUMS}
    sampled = max(1.0, total["sampled"])
    return StepResult(
        loss=total["loss"],
        kl=total["kl"],
        entropy=total["entropy"] / total["tokens"],
        grad_norm=stats[0].grad_norm,
        updates=stats[0].updates,
        lr=stats[0].lr,
        clip_share=total["clipped"] / sampled,
        logprob_gap_mean=total["gap"] / sampled,
        logprob_gap_max=max(rank.gap_max for rank in stats),
        gaps={name: gap for rank in stats for name, gap in rank.gaps.items()},
        engine_kl=total["engine_kl"] / sampled,
        effective_share=_effective_share(total["weight"], total["squared_weight"], sampled),
        corrected_share=total["corrected"] / sampled,
        tokens=int(total["tokens"]),
        probabilities={name: shares for rank in stats for name, shares in rank.probabilities.items()},
    )


def _count_tokens(scored: ScoredGroup) -> int:
    return sum(len(completion.token_ids) for completion in scored.group.completions)


def _split_gap(pack: PackStats) -> dict[str, GroupGap]:
    """Return the gaps of the sampled groups of a pack, by prompt id."""
    if not pack.sizes:
        return {}
    parts = pack.gap.double().cpu().split(list(pack.sizes.values()))
    return {
        name: GroupGap(total=part.sum().item(), largest=part.max().item(), tokens=len(part))
        for name, part in zip(pack.sizes, parts, strict=True)
    }


def _effective_share(weight: float, squared: float, count: float) -> float:
    """Return the effective sample size of weights as a share of their count: 1 where all are equal (Kong 1992)."""
    return weight**2 / (count * squared) if squared else 1.0


def _completion_probabilities(inputs: LossInputs, groups: Sequence[ScoredGroup]) -> dict[str, tuple[float, ...]]:
    """Return the probability of each given answer under the policy, by prompt."""
    shares = iter(inputs.sum_rows(inputs.logp.detach()).exp().tolist())
    return {scored.prompt.id: tuple(islice(shares, len(scored.group.completions))) for scored in groups}
