"""The figures of a step: of a pack, of a rank, of all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from common.types import GroupGap, ScoredGroup, StepResult
from learner.model.logprobs import Scores
from learner.model.pack import Pack
from learner.objective import sequence_logp

CLIP_RANGE = (0.8, 1.2)  # of the ratio learner to engine; counted, not applied


@dataclass(frozen=True, slots=True, kw_only=True)
class PackStats:
    """The figures of one forward and backward, left on the device."""

    sums: Tensor  # (7,) float64: loss to sampled of RankStats, in its order
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
    clipped: float  # sampled tokens whose ratio left CLIP_RANGE
    tokens: float
    sampled: float  # tokens that engines sampled
    gap_max: float
    gaps: Mapping[str, GroupGap]  # of its sampled groups, by prompt id
    grad_norm: float  # of all ranks
    lr: float
    probabilities: Mapping[str, tuple[float, ...]]  # of its given answers, by prompt id


def measure_pack(
    pack: Pack, scores: Scores, loss: Tensor, kl: Tensor, *, groups: Sequence[ScoredGroup], given: bool, counts: bool
) -> PackStats:
    """Return the figures of a pack from its scores and its shares of loss and KL.

    Args:
        groups: what it was built of.
        given: their completions are given answers; else engines sampled them.
        counts: False for a filler: all its figures are 0.
    """
    difference = (scores.logp.detach() - pack.engine_logp) * (not given)
    ratio, gap = difference.exp(), difference.abs()
    clipped = (ratio < CLIP_RANGE[0]) | (ratio > CLIP_RANGE[1])
    tokens = torch.tensor([len(gap), len(gap) * (not given)], device=gap.device)
    sums = [loss, kl, scores.entropy.sum(), gap.sum(), clipped.sum(), *tokens]
    return PackStats(
        sums=torch.stack([value.double() for value in sums]) * counts,
        gap=gap * counts,
        sizes={scored.prompt.id: _count_tokens(scored) for scored in groups} if counts and not given else {},
        probabilities=_completion_probabilities(pack, scores, groups) if counts and given else {},
    )


def add_up(packs: Sequence[PackStats], *, grad_norm: float, lr: float) -> RankStats:
    """Return the figures of a rank from those of its packs."""
    loss, kl, entropy, gap, clipped, tokens, sampled = torch.stack([pack.sums for pack in packs]).sum(0).tolist()
    return RankStats(
        loss=loss,
        kl=kl,
        entropy=entropy,
        gap=gap,
        clipped=clipped,
        tokens=tokens,
        sampled=sampled,
        gap_max=max(pack.gap.max().item() for pack in packs),
        gaps={name: gap for pack in packs for name, gap in _split_gap(pack).items()},
        grad_norm=grad_norm,
        lr=lr,
        probabilities={name: shares for pack in packs for name, shares in pack.probabilities.items()},
    )


def combine(stats: Sequence[RankStats]) -> StepResult:
    """Return the figures of a step from those of its ranks.

    Shares of loss and KL add up. The entropy is a mean over all tokens, gap and clip share over all sampled ones.
    """
    tokens, sampled = sum(rank.tokens for rank in stats), max(1.0, sum(rank.sampled for rank in stats))
    return StepResult(
        loss=sum(rank.loss for rank in stats),
        kl=sum(rank.kl for rank in stats),
        entropy=sum(rank.entropy for rank in stats) / tokens,
        grad_norm=stats[0].grad_norm,
        lr=stats[0].lr,
        clip_share=sum(rank.clipped for rank in stats) / sampled,
        logprob_gap_mean=sum(rank.gap for rank in stats) / sampled,
        logprob_gap_max=max(rank.gap_max for rank in stats),
        gaps={name: gap for rank in stats for name, gap in rank.gaps.items()},
        tokens=int(tokens),
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


def _completion_probabilities(
    pack: Pack, scores: Scores, groups: Sequence[ScoredGroup]
) -> dict[str, tuple[float, ...]]:
    """Return the probability of each given answer under the policy, by prompt."""
    shares = iter(sequence_logp(scores.logp.detach(), pack.row, len(pack.reward)).exp().tolist())
    return {scored.prompt.id: tuple(islice(shares, len(scored.group.completions))) for scored in groups}
