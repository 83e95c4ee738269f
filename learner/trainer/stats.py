"""What a step measured: of a pack, of a rank, of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from common.types import StepResult
from learner.model.logprobs import Scores
from learner.model.pack import Pack
from learner.objective import sequence_logp

CLIP_RANGE = (0.8, 1.2)  # of the ratio learner to engine; counted, not applied


@dataclass(frozen=True, slots=True, kw_only=True)
class PackStats:
    """What one forward and backward saw."""

    sums: Tensor  # (7,) float64: the first of RankStats, in its order
    gap_max: Tensor  # ()
    probabilities: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStats:
    """What one rank saw in a step: sums over its tokens, shares of the loss."""

    loss: float
    kl: float
    entropy: float
    gap: float
    clipped: float
    tokens: float
    sampled: float  # of these tokens
    gap_max: float
    grad_norm: float  # of all ranks
    lr: float
    probabilities: Mapping[str, tuple[float, ...]]  # of its written completions, by prompt id


def measure_pack(
    pack: Pack, scores: Scores, loss: Tensor, kl: Tensor, *, written: Sequence[str], counts: bool
) -> PackStats:
    """Of a pack and what a model made of it.

    Args:
        written: prompt ids of its groups, if their completions were written down; none where engines sampled them.
        counts: False for a pack that is not real, of which all is 0.
    """
    difference = (scores.logp.detach() - pack.engine_logp) * (not written)
    ratio, gap = difference.exp(), difference.abs()
    clipped = (ratio < CLIP_RANGE[0]) | (ratio > CLIP_RANGE[1])
    tokens = torch.tensor([len(gap), len(gap) * (not written)], device=gap.device)
    sums = [loss, kl, scores.entropy.sum(), gap.sum(), clipped.sum(), *tokens]
    return PackStats(
        sums=torch.stack([value.double() for value in sums]) * counts,
        gap_max=gap.max() * counts,
        probabilities=_probabilities(pack, scores, written) if counts else {},
    )


def add_up(packs: Sequence[PackStats], *, grad_norm: float, lr: float) -> RankStats:
    """The figures of a rank from its packs'."""
    loss, kl, entropy, gap, clipped, tokens, sampled = torch.stack([pack.sums for pack in packs]).sum(0).tolist()
    return RankStats(
        loss=loss,
        kl=kl,
        entropy=entropy,
        gap=gap,
        clipped=clipped,
        tokens=tokens,
        sampled=sampled,
        gap_max=max(pack.gap_max.item() for pack in packs),
        grad_norm=grad_norm,
        lr=lr,
        probabilities={name: shares for pack in packs for name, shares in pack.probabilities.items()},
    )


def combine(stats: Sequence[RankStats], *, seconds: float) -> StepResult:
    """The step's figures from its ranks': shares add up, means are over all tokens or, of what compares with engines,
    all sampled ones; the gap's maximum is a maximum."""
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
        tokens=int(tokens),
        seconds=seconds,
        probabilities={name: shares for rank in stats for name, shares in rank.probabilities.items()},
    )


def _probabilities(pack: Pack, scores: Scores, written: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Of each completion under the policy, by prompt."""
    shares = iter(sequence_logp(scores.logp.detach(), pack.row, len(pack.reward)).exp().tolist())
    sizes = pack.group.bincount().tolist()
    return {name: tuple(islice(shares, size)) for name, size in zip(written, sizes, strict=True)} if written else {}
