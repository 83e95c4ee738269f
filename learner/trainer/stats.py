"""The figures of a step: of a pack, of a rank, of all ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from statistics import fmean

import torch
from torch import Tensor

from common.types import GroupGap, ScoredGroup, StepResult
from learner.model.logprobs import Scores
from learner.objective.corrections import correct
from learner.objective.mismatch import Mismatch
from learner.objective.ratios import find_clipped
from learner.objective.records import LossInputs

Spans = Sequence[tuple[int, int]]  # tokens in a row: steps between the weights that sampled and that learn, how many
CLIP_RANGE = (0.8, 1.2)  # of the ratio learner to engine; counted, not applied


@dataclass(frozen=True, slots=True, kw_only=True)
class PackStats:
    """The figures of one forward and backward, left on the device."""

    sums: Tensor  # (5,) float64: loss to tokens of RankStats, in its order
    difference: Tensor  # (N,) float32: learner - engine log-prob of each token
    corrected: Tensor  # (N,) bool: the weight of the token was truncated or masked
    sampled: Sequence[tuple[str, Spans]]  # of each sampled group, in their order: prompt id, and the ages of its tokens
    probabilities: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStats:
    """The figures of one rank in a step: sums over its tokens, and its shares of loss and KL."""

    loss: float
    kl: float
    entropy: float
    clipped: float  # sampled tokens whose ratio is outside the clip
    tokens: float
    by_lag: Mapping[int, Mismatch]  # of sampled tokens, by steps between the weights that sampled and those that learn
    gaps: Mapping[str, GroupGap]  # of its sampled groups, by prompt id: of the tokens that the newest weights sampled
    grad_norm: float  # of all ranks
    updates: int  # optimizer steps taken
    skipped: int  # those left out, since loss or gradient was no finite number
    lr: float
    probabilities: Mapping[str, tuple[float, ...]]  # of its given answers, by prompt id
    seconds: float = 0.0  # that it learned


SUMS = [field.name for field in fields(RankStats)][:5]


def measure_pack(
    inputs: LossInputs,
    scores: Scores,
    loss: Tensor,
    kl: Tensor,
    *,
    groups: Sequence[ScoredGroup],
    at: int,
    given: bool,
    counts: bool,
) -> PackStats:
    """Return the figures of a pack from its log-probs and its shares of loss and KL.

    Args:
        groups: what it was built of.
        at: version of the weights that learn.
        given: their completions are given answers; else engines sampled them.
        counts: False for a filler: all its figures are 0.
    """
    difference = inputs.before - inputs.engine_logp
    clipped = _find_clipped(inputs, difference.exp()).sum() * (not given)
    sums = [loss, kl, scores.entropy.detach().sum(), clipped, torch.tensor(len(difference), device=loss.device)]
    sampled = [
        (one.prompt.id, [(at - version, tokens) for version, tokens in one.group.list_spans()]) for one in groups
    ]
    return PackStats(
        sums=torch.stack([value.double() for value in sums]) * counts,
        difference=difference,
        corrected=correct(inputs).touched,
        sampled=sampled if counts and not given else (),
        probabilities=_completion_probabilities(inputs, groups) if counts and given else {},
    )


def _find_clipped(inputs: LossInputs, weight: Tensor) -> Tensor:
    """Find the (N,) tokens that the clip of the loss acts on, or whose ratio to the engine is far, before it acts."""
    if inputs.at_anchor:
        return (weight < CLIP_RANGE[0]) | (weight > CLIP_RANGE[1])
    return find_clipped(inputs)


def add_up(packs: Sequence[PackStats], *, grad_norm: float, lr: float, applied: bool) -> RankStats:
    """Return the figures of a rank from those of its packs."""
    sums = torch.stack([pack.sums for pack in packs]).sum(0).tolist()
    found = [(name, lag, own) for pack in packs for name, lag, own in _measure_groups(pack)]
    youngest = sorted(found, key=lambda one: one[1], reverse=True)  # the last of a name stays
    return RankStats(
        **dict(zip(SUMS, sums, strict=True)),
        by_lag=_add_by_lag((lag, own) for _, lag, own in found),
        gaps={name: GroupGap(total=own.gap, largest=own.largest, tokens=own.tokens) for name, _, own in youngest},
        grad_norm=grad_norm,
        updates=int(applied),
        skipped=int(not applied),
        lr=lr,
        probabilities={name: shares for pack in packs for name, shares in pack.probabilities.items()},
    )


def average_updates(updates: Sequence[RankStats]) -> RankStats:
    """Return the figures of a rank in a step from those of its optimizer steps.

    Loss, KL and norm are means over them, all that is counted in tokens adds up. Those left out are not counted, but
    where all of them were.
    """
    if len(updates) == 1:
        return updates[0]
    taken = [one for one in updates if one.updates] or updates
    sums = {name: sum(getattr(one, name) for one in taken) for name in SUMS}
    return RankStats(
        **sums | {name: sums[name] / len(taken) for name in ("loss", "kl")},
        by_lag=_add_by_lag(pair for one in taken for pair in one.by_lag.items()),
        gaps={name: gap for one in updates for name, gap in one.gaps.items()},
        grad_norm=fmean(one.grad_norm for one in taken),
        updates=sum(one.updates for one in updates),
        skipped=sum(one.skipped for one in updates),
        lr=updates[0].lr,
        probabilities={name: shares for one in reversed(updates) for name, shares in one.probabilities.items()},
    )


def combine(stats: Sequence[RankStats]) -> StepResult:
    """Return the figures of a step from those of its ranks.

    Shares of loss and KL add up. The entropy is a mean over all tokens, what compares learner and engine over all
    sampled ones.
    """
    total = {name: sum(getattr(rank, name) for rank in stats) for name in SUMS}
    by_lag = _add_by_lag(pair for rank in stats for pair in rank.by_lag.items())
    whole = Mismatch.add_up(by_lag.values()).average()
    return StepResult(
        loss=total["loss"],
        kl=total["kl"],
        entropy=total["entropy"] / total["tokens"],
        grad_norm=stats[0].grad_norm,
        updates=stats[0].updates,
        skipped=stats[0].skipped,
        lr=stats[0].lr,
        clip_share=total["clipped"] / max(1, whole.tokens),
        logprob_gap_mean=whole.gap_mean,
        logprob_gap_max=whole.gap_max,
        gaps={name: gap for rank in stats for name, gap in rank.gaps.items()},
        engine_kl=whole.engine_kl,
        effective_share=whole.effective_share,
        corrected_share=whole.corrected_share,
        by_lag={lag: own.average() for lag, own in by_lag.items()},
        tokens=int(total["tokens"]),
        probabilities={name: shares for rank in stats for name, shares in rank.probabilities.items()},
        learner_seconds=max(rank.seconds for rank in stats),
    )


def _measure_groups(pack: PackStats) -> Iterator[tuple[str, int, Mismatch]]:
    """Yield how far engine and learner are apart about the tokens of a sampled group that are of one age.

    Comes with the group's prompt id and that age.
    """
    if not pack.sampled:
        return
    sizes = [tokens for _, spans in pack.sampled for _, tokens in spans]
    parts = zip(pack.difference.cpu().split(sizes), pack.corrected.cpu().split(sizes), strict=True)
    for name, spans in pack.sampled:
        by_lag: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for (lag, _), part in zip(spans, islice(parts, len(spans)), strict=True):
            by_lag.setdefault(lag, []).append(part)
        for lag, own in by_lag.items():
            differences, corrected = zip(*own, strict=True)
            yield name, lag, Mismatch.of(torch.cat(differences), torch.cat(corrected))


def _add_by_lag(parts: Iterable[tuple[int, Mismatch]]) -> dict[int, Mismatch]:
    """Return the sums of all parts of a lag, by lag from the smallest."""
    found: dict[int, list[Mismatch]] = {}
    for lag, own in parts:
        found.setdefault(lag, []).append(own)
    return {lag: Mismatch.add_up(found[lag]) for lag in sorted(found)}


def _completion_probabilities(inputs: LossInputs, groups: Sequence[ScoredGroup]) -> dict[str, tuple[float, ...]]:
    """Return the probability of each given answer under the policy, by prompt."""
    shares = iter(inputs.sum_rows(inputs.logp.detach()).exp().tolist())
    return {scored.prompt.id: tuple(islice(shares, len(scored.group.completions))) for scored in groups}
