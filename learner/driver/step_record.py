"""The groups and results of one step as the record that is logged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from math import sqrt
from operator import mul
from statistics import fmean, stdev

from common.config.schema import Config, DataConfig
from common.labels.consistency import consistency
from common.types import LagFigures, ScoredGroup, StepResult
from learner.driver.clock import StepClock
from learner.driver.ledger import Ledger
from learner.objective.advantages import is_zero_std
from learner.tracking.records import STAGES, StepRecord


def make_step_record(
    step: int,
    scored: Sequence[ScoredGroup],
    result: StepResult,
    *,
    clock: StepClock,
    ledger: Ledger,
    epoch: float,
    asked: int,
    trained: int,
    data_seconds: float,
    solve_rates: Mapping[str, float],
    weights_version: int,
    checkpoint_failures: int,
    engine_restarts: int,
    config: Config,
) -> StepRecord:
    """Make the record of a step that has just ended.

    Args:
        scored: all groups that came back, also those that the step did not train on.
        asked: prompts of the step.
        trained: groups it trained on.
        data_seconds: that it waited for rows.
        solve_rates: see `SolveRates.describe`.

    `reward` and `reward_std` are means over groups of the mean and the deviation within a group. Sampled completions
    count alike, and their deviation is the unbiased one, as CLS-RL logs it. Given answers count by their probability
    under the policy, and anything else it might say earns 0: answers of reward 1 and 0 that have probabilities 0.6 and
    0.3 give a reward of 0.6.

    Of method exact `listed_mass` is what the listed answers of a given group have together: 0.9 there. What is left
    goes to answers outside the list.

    `zero_std_share` and `truncated_share` are of what engines sampled, as the log-prob gaps are: of 12 given groups and
    4 sampled ones, of which one has equal rewards, the zero-std share is 0.25. Without samples both are 0.
    """
    weights = [result.probabilities.get(item.prompt.id) for item in scored]
    completions = [one for item in scored for one in item.group.completions]
    sampled = [item for item in scored if item.group.origin == "sampled"]
    return StepRecord(
        step=step,
        epoch=epoch,
        completion_length=fmean(len(one.token_ids) for one in completions),
        truncated_share=_share(one.finish_reason == "length" for item in sampled for one in item.group.completions),
        rewards=_mean_by_name(scored, weights),
        reward=fmean(_weighted_mean(item.rewards, own) for item, own in zip(scored, weights, strict=True)),
        reward_std=fmean(_deviation(item.rewards, own) for item, own in zip(scored, weights, strict=True)),
        listed_mass=_measure_listed_mass(weights) if config.method == "exact" else 0.0,
        zero_std_share=_share(is_zero_std(item, config.reward) for item in sampled),
        thinking=_thinking(scored, config.data),
        loss=result.loss,
        kl=result.kl,
        entropy=result.entropy,
        grad_norm=result.grad_norm,
        lr=result.lr,
        clip_share=result.clip_share,
        logprob_gap_mean=result.logprob_gap_mean,
        logprob_gap_max=result.logprob_gap_max,
        engine_kl=result.engine_kl,
        effective_share=result.effective_share,
        corrected_share=result.corrected_share,
        lag={f"{lag}/{name}": value for lag, own in result.by_lag.items() for name, value in _list_scalars(own)},
        gap_counts={str(lag): own.gap_counts for lag, own in result.by_lag.items()},
        left_out_share=result.left_out / max(1, len(sampled)),
        weights_version=weights_version,
        seconds=clock.split(stage for stage in STAGES if stage != "idle"),
        learner_seconds=result.learner_seconds,
        data_seconds=data_seconds,
        step_seconds=clock.elapsed,
        completions_per_second=len(completions) / clock.elapsed,
        solve_rates=solve_rates,
        asked_share=asked / trained,
        dropped=asked - trained,
        groups_dispatched=ledger.dispatched,
        groups_trained=ledger.trained,
        groups_dropped=ledger.dropped,
        groups_filtered=ledger.filtered,
        checkpoint_failures=checkpoint_failures,
        engine_restarts=engine_restarts,
    )


def _list_scalars(figures: LagFigures) -> list[tuple[str, float]]:
    """List the figures of a lag by name, all but the counts of its histogram."""
    names = [item.name for item in fields(figures) if item.name != "gap_counts"]
    return [(name, getattr(figures, name)) for name in names]


Weights = Sequence[float] | None  # probabilities of the given answers of a group; None: sampled, and alike


def _share(found: Iterable[bool]) -> float:
    """Return the share of True, 0 of nothing."""
    return fmean([*found] or [False])


def _measure_listed_mass(weights: Sequence[Weights]) -> float:
    """Return the mean over given groups of the probability of all their answers together, 0 without such groups."""
    return fmean([sum(own) for own in weights if own is not None] or [0.0])


def _mean_by_name(scored: Sequence[ScoredGroup], weights: Sequence[Weights]) -> Mapping[str, float]:
    names = scored[0].rewards_by_name.keys()
    return {
        name: fmean(_weighted_mean(item.rewards_by_name[name], own) for item, own in zip(scored, weights, strict=True))
        for name in names
    }


def _weighted_mean(values: Sequence[float], weights: Weights) -> float:
    return fmean(values) if weights is None else sum(map(mul, values, weights))


def _deviation(values: Sequence[float], weights: Weights) -> float:
    if weights is None:
        return stdev(values) if len(values) > 1 else 0.0
    squares = [value**2 for value in values]
    return sqrt(max(0.0, _weighted_mean(squares, weights) - _weighted_mean(values, weights) ** 2))


def _thinking(scored: Sequence[ScoredGroup], data: DataConfig) -> Mapping[str, float]:
    if data.mode == "no_think":
        return {}
    measured = [
        consistency(one.text, item.prompt.example.problem, mode=data.mode, aliases=data.aliases)
        for item in scored
        for one in item.group.completions
    ]
    thoughts = [value for value in measured if value is not None]
    share = {"share": len(thoughts) / len(measured)}
    return share | {"consistency": fmean(thoughts)} if thoughts else share
