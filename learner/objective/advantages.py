"""Advantages: how much better a completion is than what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from common.config.schema import Config, RewardConfig
from common.errors import RewardError
from common.types import ScoredGroup

SUMMED = RewardConfig()
EPS = 1e-4  # of deviations, as in CLS-RL and TRL
WHITEN_EPS = 1e-8  # of the variance over tokens, as in verl


def all_equal(rewards: Tensor) -> bool:
    """Say whether (G,) rewards have no spread, so that no completion is better than another."""
    return bool(rewards.max() == rewards.min())


def centre(rewards: Tensor) -> Tensor:
    """Return (G,) rewards less their mean; exactly 0 where all are equal.

    By formula they would not be 0: in float32 the mean of 16 rewards of 1.2 is not 1.2. The mean is taken in float64:
    of rewards around 1e8 it would be off by some.
    """
    if all_equal(rewards):
        return torch.zeros_like(rewards)
    wide = rewards.double()
    return (wide - wide.mean()).to(rewards.dtype)


def advantages(rewards: Tensor) -> Tensor:
    """Return the (G,) advantages of one group: (reward - mean) / (std + 1e-4), the std unbiased.

    Rewards (1, 0, 0, 0) have mean 0.25 and std 0.5, so their advantages are (1.5, -0.5, -0.5, -0.5). Equal rewards
    have advantage 0 exactly, and so has a group of one.
    """
    return centre(rewards) if all_equal(rewards) else centre(rewards) / (_measure_std(rewards) + EPS)


def _measure_std(rewards: Tensor) -> Tensor:
    """Return the unbiased deviation, computed in float64 as the mean of `centre` is."""
    return rewards.double().std().to(rewards.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRewards:
    """The rewards of all groups of a step, and the lengths of their completions."""

    rewards: Sequence[Tensor]  # (G,) of each group
    lengths: Sequence[Tensor]  # (G,) tokens of each completion, likewise


def compare_in_group(step: StepRewards) -> list[Tensor]:
    """Compare with mean and deviation of the group (Shao et al. 2024, arXiv:2402.03300, section 4.1.2)."""
    return [advantages(rewards) for rewards in step.rewards]


def compare_by_batch(step: StepRewards) -> list[Tensor]:
    """Compare with the mean of the group and the deviation of all rewards of the step (arXiv:2508.08221)."""
    std = _measure_std(torch.cat(list(step.rewards))) + EPS
    return [centre(rewards) / std for rewards in step.rewards]


def compare_with_mean(step: StepRewards) -> list[Tensor]:
    """Return reward - mean (Dr.GRPO; Liu et al. 2025, arXiv:2503.20783)."""
    return [centre(rewards) for rewards in step.rewards]


def compare_with_others(step: StepRewards) -> list[Tensor]:
    """Compare with the mean of the other completions, G / (G - 1) (reward - mean) (RLOO; arXiv:2402.14740)."""
    return [len(rewards) / max(1, len(rewards) - 1) * centre(rewards) for rewards in step.rewards]


def compare_as_share(step: StepRewards) -> list[Tensor]:
    """Return (reward - mean) / mean, and 0 where the mean is 0 (MaxRL; arXiv:2602.02710).

    Rewards are at least 0: a mean below 0 would turn better into worse. `step_advantages` refuses others.
    """
    means = [rewards.mean() for rewards in step.rewards]
    return [
        centre(rewards) / mean if mean else torch.zeros_like(rewards)
        for rewards, mean in zip(step.rewards, means, strict=True)
    ]


def whiten(step: StepRewards) -> list[Tensor]:
    """Compare with mean and deviation over all tokens of the step (REINFORCE++; Hu 2025, arXiv:2501.03262).

    A completion of 3 tokens counts three times. Groups whose rewards are all equal teach too.
    """
    return _whiten(step.rewards, step.lengths)


def whiten_centred(step: StepRewards) -> list[Tensor]:
    """Do the same with rewards less the mean of their group (REINFORCE++ with baseline, likewise)."""
    return _whiten([centre(rewards) for rewards in step.rewards], step.lengths)


def _whiten(values: Sequence[Tensor], lengths: Sequence[Tensor]) -> list[Tensor]:
    dtype, values = values[0].dtype, [value.double() for value in values]  # squares overflow in float32
    tokens = torch.cat([value.repeat_interleave(length) for value, length in zip(values, lengths, strict=True)])
    if all_equal(tokens):  # by formula not 0: see `centre`
        return [torch.zeros_like(value, dtype=dtype) for value in values]
    scale = torch.rsqrt(tokens.var() + WHITEN_EPS)
    return [((value - tokens.mean()) * scale).to(dtype) for value in values]


COMPARISONS: dict[str, Callable[[StepRewards], list[Tensor]]] = {
    "group": compare_in_group,
    "batch": compare_by_batch,
    "none": compare_with_mean,
    "leave_one_out": compare_with_others,
    "mean": compare_as_share,
    "whitened": whiten,
    "whitened_baseline": whiten_centred,
}


def step_advantages(scored: Sequence[ScoredGroup], how: str = "group", reward: RewardConfig = SUMMED) -> list[Tensor]:
    """Return the (G,) float32 advantages of each group of a step, as `objective.advantage` and `reward.normalise` say.

    `sum` compares the weighted sums. `each` adds up the advantages of each reward function by itself, times its
    weight: two completions that differ in one function differ alike, whatever the others do (Liu et al. 2026,
    arXiv:2601.05242, without its second normalisation over the batch).

    Raises RewardError for a reward below 0 where it would be compared as a share of a mean.
    """
    if how == "mean":
        _refuse_negative(scored, reward)
    lengths = [torch.tensor([len(c.token_ids) for c in one.group.completions]) for one in scored]
    parts = [_select_rewards(one, reward) for one in scored]
    totals = [torch.zeros(len(one.rewards)) for one in scored]
    for function in zip(*parts, strict=True):  # of each group the weight and the rewards of one function
        compared = COMPARISONS[how](StepRewards(rewards=[rewards for _, rewards in function], lengths=lengths))
        weighted = [weight * own for (weight, _), own in zip(function, compared, strict=True)]
        totals = [total + own for total, own in zip(totals, weighted, strict=True)]
    return totals


def _refuse_negative(scored: Sequence[ScoredGroup], reward: RewardConfig) -> None:
    """Raise RewardError naming the first group that has a reward below 0."""
    for one in scored:
        for _, rewards in _select_rewards(one, reward):
            if rewards.min() < 0:
                raise RewardError(
                    "objective.advantage = mean compares a reward with the mean of its group, as a share of it: it "
                    "wants rewards of at least 0",
                    got=f"a reward of {rewards.min():g} in the group of {one.prompt.id}, whose mean is "
                    f"{rewards.mean():g}",
                    remedy="start a new run with objective.advantage=group or none, or mend the reward and resume=auto",
                )


def shape_rewards(scored: ScoredGroup, kl: Sequence[float] | None, *, longest: int, buffer: int) -> ScoredGroup:
    """Return the group with rewards less what is taken off them.

    Args:
        kl: (G,) weighted KL of each completion; None: it counts elsewhere.
        longest, buffer: of `punish_overlong`; a buffer of 0 punishes nothing.
    """
    rewards = torch.tensor(scored.rewards)
    if kl is not None:
        rewards = rewards - torch.tensor(kl)
    if buffer:
        tokens = torch.tensor([len(one.token_ids) for one in scored.group.completions])
        rewards = rewards + punish_overlong(tokens, longest=longest, buffer=buffer)
    return replace(scored, rewards=tuple(rewards.tolist())) if buffer or kl is not None else scored


def compare_groups(
    scored: Sequence[ScoredGroup], config: Config, kl: Mapping[str, Sequence[float]] | None = None
) -> dict[str, tuple[float, ...]]:
    """Return the (G,) advantages of every sampled group of a step by the id of its prompt, as `config` says.

    Args:
        kl: (G,) weighted KL of each completion by the id of its prompt, to be taken off its reward; None: nothing.
    """
    objective, longest = config.objective, config.rollout.max_completion_tokens
    sampled = [one for one in scored if one.group.origin == "sampled"]
    shaped = [
        shape_rewards(one, kl[one.prompt.id] if kl else None, longest=longest, buffer=objective.overlong_buffer)
        for one in sampled
    ]
    compared = step_advantages(shaped, objective.advantage, config.reward)
    return {one.prompt.id: tuple(own.tolist()) for one, own in zip(sampled, compared, strict=True)}


def is_zero_std(scored: ScoredGroup, reward: RewardConfig = SUMMED) -> bool:
    """Say whether a group of two or more teaches nothing: all that is compared in it is equal.

    Reads the same float32 rewards as `step_advantages`, which are then all 0 but where they are whitened.
    """
    return len(scored.rewards) > 1 and all(all_equal(rewards) for _, rewards in _select_rewards(scored, reward))


def punish_overlong(tokens: Tensor, *, longest: int, buffer: int) -> Tensor:
    """Return the (G,) punishments of completions by their tokens: 0 to longest - buffer, then down to -1 in a line.

    Of at most 10 tokens with a buffer of 4: 6 tokens give 0, 7 give -0.25, 10 give -1, and more give -1.

    Source: DAPO, Yu et al. 2025, arXiv:2503.14476, equation 13.
    """
    return ((longest - buffer - tokens) / buffer).clamp(-1, 0)


def _select_rewards(scored: ScoredGroup, reward: RewardConfig) -> list[tuple[float, Tensor]]:
    """List what is compared inside a group: (weight, (G,) float32 rewards) of the sum, or of each function that counts.

    A group that is only read, never trained on, has no rewards by name.
    """
    if reward.normalise == "sum":
        return [(1.0, torch.tensor(scored.rewards, dtype=torch.float32))]
    weighted = [(reward.functions[name], values) for name, values in scored.rewards_by_name.items()]
    return [(weight, torch.tensor(values, dtype=torch.float32)) for weight, values in weighted if weight]
