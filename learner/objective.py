"""The losses, as pure functions of one record, and the advantages they use.

`grpo` learns from sampled completions: group-relative policy optimisation (Shao et al. 2024, arXiv:2402.03300,
equation 3) in the on-policy form of CLS-RL. The other losses learn from given answers: `exact_raw` and
`exact_normalised` from every candidate of a row, so that nothing is estimated, and `sft` from the row's label.

Axis letters, here and in `learner.model`:

    P  prompts of a step or a pack, one group each       T  tokens of a prompt
    G  completions of a group                            C  tokens of a completion
    R  rows: the completions of all groups of a pack     N  completion tokens of a pack, over all rows
    S  positions of a pack, prompts and branches         V  vocabulary
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.config.schema import RewardConfig
from common.types import ScoredGroup

SUMMED = RewardConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """Everything a loss may read of one pack. Tokens lie flat, without padding: token n belongs to row `row[n]`.

    Two completions of 2 tokens and 1 token, both of one group: row = (0, 0, 1), group = (0, 0).
    """

    logp: Tensor  # (N,) under the policy, with its graph
    ref_logp: Tensor | None  # (N,) under the frozen reference; None where beta = 0
    engine_logp: Tensor  # (N,) as sampled
    row: Tensor  # (N,) int64
    group: Tensor  # (R,) int64: the group of each row, counted from 0 in every pack
    reward: Tensor  # (R,)
    advantage: Tensor  # (R,)
    sequences: int  # rows of the whole step, over all packs of all ranks
    groups: int  # of the whole step likewise
    beta: float  # weight of the KL

    @property
    def groups_here(self) -> int:
        """P, the groups of this pack."""
        return int(self.group[-1]) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutputs:
    """The shares of one pack: summed over all packs of all ranks they are the loss and the KL of the step."""

    loss: Tensor  # () with graph
    kl: Tensor  # () without


def all_equal(rewards: Tensor) -> bool:
    """Say whether (G,) rewards have no spread, so that no completion is better than another."""
    return bool(rewards.max() == rewards.min())


def advantages(rewards: Tensor) -> Tensor:
    """Return the (G,) advantages of one group: (reward - mean) / (std + 1e-4), the std unbiased.

    Rewards (1, 0, 0, 0) have mean 0.25 and std 0.5, so their advantages are (1.5, -0.5, -0.5, -0.5). Equal rewards
    have advantage 0 exactly, and so has a group of one.
    """
    if all_equal(rewards):  # by formula they would not be 0: in float32 the mean of 16 rewards of 1.2 is not 1.2
        return torch.zeros_like(rewards)
    return (rewards - rewards.mean()) / (rewards.std() + 1e-4)


def group_advantages(scored: ScoredGroup, reward: RewardConfig = SUMMED) -> Tensor:
    """Return the (G,) float32 advantages of a scored group, as `reward.normalise` says.

    `sum` compares the weighted sums. `each` adds up the advantages of each reward function by itself, times its
    weight: two completions that differ in one function differ alike, whatever the others do (Liu et al. 2026,
    arXiv:2601.05242; without its second normalisation over the batch, which would make packs depend on each other).
    """
    total = torch.zeros(len(scored.rewards))
    for weight, rewards in _select_rewards(scored, reward):
        total += weight * advantages(rewards)
    return total


def is_zero_std(scored: ScoredGroup, reward: RewardConfig = SUMMED) -> bool:
    """Say whether a group of two or more teaches nothing: all that is compared in it is equal.

    Reads the same float32 rewards as `group_advantages`, which are then all 0.
    """
    return len(scored.rewards) > 1 and all(all_equal(rewards) for _, rewards in _select_rewards(scored, reward))


def _select_rewards(scored: ScoredGroup, reward: RewardConfig) -> list[tuple[float, Tensor]]:
    """List what is compared inside a group: (weight, (G,) float32 rewards) of the sum, or of each function that counts.

    A group that is only read, never trained on, has no rewards by name.
    """
    if reward.normalise == "sum":
        return [(1.0, torch.tensor(scored.rewards, dtype=torch.float32))]
    weighted = [(reward.functions[name], values) for name, values in scored.rewards_by_name.items()]
    return [(weight, torch.tensor(values, dtype=torch.float32)) for weight, values in weighted if weight]


def kl_k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Estimate KL(policy || reference) at tokens drawn from the policy: (N,), unbiased and never negative.

    Where policy and reference nearly agree, float32 rounds it by up to 2e-7.

    Source: Schulman, "Approximating KL divergence" (2020), estimator k3.
    """
    log_ratio = ref_logp - logp
    return torch.exp(log_ratio) - log_ratio - 1


def grpo_loss(inputs: LossInputs) -> LossOutputs:
    """Compute -(ratio * A - beta * KL): mean over the tokens of each row, then over the rows of the step.

    The ratio is exp(logp - stopgrad(logp)): 1 in value, so the gradient of a token is A times that of its log-prob.
    """
    ratio = torch.exp(inputs.logp - inputs.logp.detach())
    per_token = -ratio * inputs.advantage[inputs.row]
    if inputs.ref_logp is None:
        return LossOutputs(loss=_mean(per_token, inputs), kl=per_token.new_zeros(()))
    kl = kl_k3(inputs.logp, inputs.ref_logp)
    return LossOutputs(loss=_mean(per_token + inputs.beta * kl, inputs), kl=_mean(kl.detach(), inputs))


def exact_raw_loss(inputs: LossInputs) -> LossOutputs:
    """Compute -(expected reward) + beta * KL of each group, then the mean over the groups of the step.

    The expected reward is the sum of pi(y) r(y) over the rows y of the group, pi(y) the probability of the whole row.
    Anything that is not listed earns 0. `_exact_kl` says what the KL is.

    A row's candidates "cat" (probability 0.5, reward 1) and "dog" (0.3, reward 0): the expected reward is 0.5. Its
    gradient with respect to the log-prob of a row is pi(y) r(y): 0.5 for each token of "cat", 0 for those of "dog".
    """
    return _exact(inputs, sequence_logp(inputs.logp, inputs.row, len(inputs.reward)), inputs.reward)


def exact_normalised_loss(inputs: LossInputs) -> LossOutputs:
    """Compute the same with (reward - mean) / (std + 1e-4) in place of the reward, mean and std under the policy.

    This is the advantage GRPO would have with endless samples. Anything that is not listed earns the least reward of
    the list, so a constant added to all rewards changes nothing, and equal rewards teach nothing.

    "cat" (probability 0.5, reward 1), "dog" (0.3, reward 0) and 0.2 for all else: mean 0.5, std 0.5, so "cat" is worth
    +1 and "dog" -1. The gradient with respect to log-probs is pi(y) worth(y): 0.5 for "cat", -0.3 for "dog".
    """
    logp = sequence_logp(inputs.logp, inputs.row, len(inputs.reward))
    probability = logp.detach().exp()

    # Rewards above the least of their group: exactly 0 where all are equal.
    least = inputs.reward.new_zeros(inputs.groups_here).scatter_reduce(
        0, inputs.group, inputs.reward, "amin", include_self=False
    )
    above = inputs.reward - least[inputs.group]

    # Mean and std over the listed rows and one more answer, which stands for all else and is 0 above the least.
    mean = _sum_by_group(probability * above, inputs)
    squares = (above - mean[inputs.group]).square()
    unlisted = (1 - _sum_by_group(probability, inputs)).clamp(min=0)
    std = (_sum_by_group(probability * squares, inputs) + unlisted * mean.square()).sqrt()
    return _exact(inputs, logp, (above - mean[inputs.group]) / (std[inputs.group] + 1e-4))


def sft_loss(inputs: LossInputs) -> LossOutputs:
    """Compute the negative log-likelihood: mean over the tokens of each row, then over the rows of the step."""
    return LossOutputs(loss=_mean(-inputs.logp, inputs), kl=inputs.logp.new_zeros(()))


LOSSES: dict[str, Callable[[LossInputs], LossOutputs]] = {
    "grpo": grpo_loss,
    "exact_raw": exact_raw_loss,
    "exact_normalised": exact_normalised_loss,
    "sft": sft_loss,
}


def sequence_logp(logp: Tensor, row: Tensor, sequences: int) -> Tensor:
    """Sum the (N,) log-probs of tokens into the (R,) log-probs of whole rows."""
    return logp.new_zeros(sequences).index_add(0, row, logp)


def _exact(inputs: LossInputs, logp: Tensor, worth: Tensor) -> LossOutputs:
    """Compute -(sum of pi(y) worth(y)) + beta * KL from the (R,) log-probs and the (R,) worth of whole rows."""
    gain = (logp.exp() * worth).sum() / inputs.groups
    if inputs.ref_logp is None:
        return LossOutputs(loss=-gain, kl=gain.new_zeros(()))
    kl = _exact_kl(logp, sequence_logp(inputs.ref_logp, inputs.row, len(worth))).sum() / inputs.groups
    return LossOutputs(loss=inputs.beta * kl - gain, kl=kl.detach())


def _exact_kl(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Return the (R,) share of each row in KL(policy || reference), over a list that need not hold all probability.

    The sum of pi log(pi / ref) - pi + ref is what `kl_k3` estimates: never negative, and 0 only where both agree.
    """
    return logp.exp() * (logp - ref_logp - 1) + ref_logp.exp()  # no ratio, which would overflow where pi is 0


def _sum_by_group(values: Tensor, inputs: LossInputs) -> Tensor:
    """Sum (R,) values of rows into (P,) values of the groups of this pack."""
    return values.new_zeros(inputs.groups_here).index_add(0, inputs.group, values)


def _mean(per_token: Tensor, inputs: LossInputs) -> Tensor:
    """Return the () share of this pack in the mean over all rows of the mean over their tokens."""
    lengths = torch.bincount(inputs.row, minlength=len(inputs.advantage))
    sums = per_token.new_zeros(len(inputs.advantage)).index_add(0, inputs.row, per_token)
    return (sums / lengths).sum() / inputs.sequences
