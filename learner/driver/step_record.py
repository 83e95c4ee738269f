"""One step's groups and results -> the record that is written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from operator import mul
from statistics import fmean, stdev

from common.config.schema import Config, DataConfig
from common.labels.consistency import consistency
from common.types import ScoredGroup, StepResult
from learner.driver.clock import StepClock
from learner.driver.ledger import Ledger
from learner.objective import is_zero_std
from learner.tracking.records import STAGES, StepRecord


def step_record(
    step: int,
    scored: Sequence[ScoredGroup],
    result: StepResult,
    *,
    clock: StepClock,
    ledger: Ledger,
    epoch: float,
    dropped: int,
    weights_version: int,
    checkpoint_failures: int,
    engine_restarts: int,
    config: Config,
) -> StepRecord:
    """Everything there is to know of a step that has just ended.

    `reward` and `reward_std` are means over groups of mean and deviation inside the group: of sampled completions their
    mean and, as the seed logs it, their unbiased deviation; of written ones what the policy would earn by saying them,
    each weighted with its probability, and nothing by saying anything else.
    """
    weights = [result.probabilities.get(item.prompt.id) for item in scored]
    completions = [one for item in scored for one in item.group.completions]
    return StepRecord(
        step=step,
        epoch=epoch,
        completion_length=fmean(len(one.token_ids) for one in completions),
        truncated_share=fmean(one.finish_reason == "length" for one in completions),
        rewards=_means_by_name(scored, weights),
        reward=fmean(_expected(item.rewards, own) for item, own in zip(scored, weights, strict=True)),
        reward_std=fmean(_deviation(item.rewards, own) for item, own in zip(scored, weights, strict=True)),
        zero_std_share=fmean(is_zero_std(item, config.reward) for item in scored),
        thinking=_thinking(scored, config.data),
        loss=result.loss,
        kl=result.kl,
        entropy=result.entropy,
        grad_norm=result.grad_norm,
        lr=result.lr,
        clip_share=result.clip_share,
        logprob_gap_mean=result.logprob_gap_mean,
        logprob_gap_max=result.logprob_gap_max,
        weights_version=weights_version,
        seconds=clock.split(stage for stage in STAGES if stage != "idle"),
        step_seconds=clock.elapsed,
        completions_per_second=len(completions) / clock.elapsed,
        dropped=dropped,
        groups_dispatched=ledger.dispatched,
        groups_trained=ledger.trained,
        groups_dropped=ledger.dropped,
        checkpoint_failures=checkpoint_failures,
        engine_restarts=engine_restarts,
    )


Weights = Sequence[float] | None  # of the completions of a group; None: they were sampled, and count alike


def _means_by_name(scored: Sequence[ScoredGroup], weights: Sequence[Weights]) -> Mapping[str, float]:
    names = scored[0].rewards_by_name.keys()
    return {
        name: fmean(_expected(item.rewards_by_name[name], own) for item, own in zip(scored, weights, strict=True))
        for name in names
    }


def _expected(values: Sequence[float], weights: Weights) -> float:
    return fmean(values) if weights is None else sum(map(mul, values, weights))


def _deviation(values: Sequence[float], weights: Weights) -> float:
    if weights is None:
        return stdev(values) if len(values) > 1 else 0.0
    squares = [value**2 for value in values]
    return sqrt(max(0.0, _expected(squares, weights) - _expected(values, weights) ** 2))


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
