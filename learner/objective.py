"""What is optimised, as pure functions of one record.

`grpo` learns from what was sampled: group-relative policy optimisation (Shao et al. 2024, arXiv:2402.03300, equation 3)
in the on-policy form of the seed. The others learn from what was written down: `exact_raw` and `exact_normalised` from
every candidate of a row, which leaves nothing to estimate, and `sft` from its label.
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
    """All completion tokens of one pack, flat: token t belongs to sequence row[t]. Nothing is padded."""

    logp: Tensor  # (tokens,) of the policy, with its graph
    ref_logp: Tensor | None  # (tokens,) of the frozen reference; None where beta = 0
    engine_logp: Tensor  # (tokens,) as sampled
    row: Tensor  # (tokens,) int64
    group: Tensor  # (sequences,) int64: sequence s belongs to group[s], counted from 0 in every pack
    reward: Tensor  # (sequences,)
    advantage: Tensor  # (sequences,)
    sequences: int  # of the whole step, over all packs of all ranks, as are groups
    groups: int
    beta: float  # weight of the KL

    @property
    def groups_here(self) -> int:
        """In this pack."""
        return int(self.group[-1]) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutputs:
    """This pack's shares: their sums over all packs of all ranks are the step's loss and KL."""

    loss: Tensor  # () with graph
    kl: Tensor  # () without


def advantages(rewards: Tensor) -> Tensor:
    """(G,) rewards of one group -> (G,) advantages, zero where all are equal. The std is the unbiased one; a group of
    one has none, and nothing to compare."""
    if len(rewards) == 1:
        return torch.zeros_like(rewards)
    return (rewards - rewards.mean()) / (rewards.std() + 1e-4)


def group_advantages(scored: ScoredGroup, reward: RewardConfig = SUMMED) -> Tensor:
    """(G,) float32 advantages of a scored group, as `reward.normalise` says.

    `sum`: of the weighted sums. `each`: the weighted sum of each function's own advantages, so that two completions
    that differ in one function differ alike whatever the others do (Liu et al. 2026, arXiv:2601.05242, without its
    second normalisation, over the batch, which would make packs depend on each other).
    """
    if reward.normalise == "sum":
        return advantages(torch.tensor(scored.rewards, dtype=torch.float32))
    whole = torch.zeros(len(scored.rewards))  # of a group that is only read, not trained on
    for name, values in scored.rewards_by_name.items():
        whole += reward.functions[name] * advantages(torch.tensor(values, dtype=torch.float32))
    return whole


def kl_k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """(tokens,) unbiased, never negative estimate of KL(policy || reference) at tokens drawn from the policy.

    Source: Schulman, "Approximating KL divergence" (2020), estimator k3.
    """
    log_ratio = ref_logp - logp
    return torch.exp(log_ratio) - log_ratio - 1


def grpo_loss(inputs: LossInputs) -> LossOutputs:
    """-(ratio * A - beta * KL): mean over the tokens of each sequence, then over the sequences of the step.

    The ratio is exp(logp - stopgrad(logp)): 1 in value, so every token's gradient is A times that of its log-prob.
    """
    ratio = torch.exp(inputs.logp - inputs.logp.detach())
    per_token = -ratio * inputs.advantage[inputs.row]
    if inputs.ref_logp is None:
        return LossOutputs(loss=_mean(per_token, inputs), kl=per_token.new_zeros(()))
    kl = kl_k3(inputs.logp, inputs.ref_logp)
    return LossOutputs(loss=_mean(per_token + inputs.beta * kl, inputs), kl=_mean(kl.detach(), inputs))


def exact_raw_loss(inputs: LossInputs) -> LossOutputs:
    """-(expected reward) + beta * KL of each group, then the mean over the groups of the step.

    The expectation is over the group's sequences y, each with its whole probability pi(y): sum of pi(y) r(y). What is
    not listed earns 0. See `_exact_kl` for the KL.
    """
    return _exact(inputs, sequence_logp(inputs.logp, inputs.row, len(inputs.reward)), inputs.reward)


def exact_normalised_loss(inputs: LossInputs) -> LossOutputs:
    """The same with (r - mean) / (std + 1e-4) in place of the reward, GRPO's advantage with endless samples: mean and
    std are under the policy. What is not listed earns as little as the least of the list, so that a constant added to
    all rewards changes nothing.
    """
    logp = sequence_logp(inputs.logp, inputs.row, len(inputs.reward))
    shares = logp.detach().exp()
    least = inputs.reward.new_zeros(inputs.groups_here).scatter_reduce(
        0, inputs.group, inputs.reward, "amin", include_self=False
    )
    above = inputs.reward - least[inputs.group]
    mean = _by_group(shares * above, inputs)
    distance = (above - mean[inputs.group]).square()
    unlisted = (1 - _by_group(shares, inputs)).clamp(min=0)
    std = (_by_group(shares * distance, inputs) + unlisted * mean.square()).sqrt()
    return _exact(inputs, logp, (above - mean[inputs.group]) / (std[inputs.group] + 1e-4))


def sft_loss(inputs: LossInputs) -> LossOutputs:
    """Negative log-likelihood: mean over the tokens of each sequence, then over the sequences of the step."""
    return LossOutputs(loss=_mean(-inputs.logp, inputs), kl=inputs.logp.new_zeros(()))


LOSSES: dict[str, Callable[[LossInputs], LossOutputs]] = {
    "grpo": grpo_loss,
    "exact_raw": exact_raw_loss,
    "exact_normalised": exact_normalised_loss,
    "sft": sft_loss,
}


def sequence_logp(logp: Tensor, row: Tensor, sequences: int) -> Tensor:
    """(tokens,) log-probs -> (sequences,) of whole sequences."""
    return logp.new_zeros(sequences).index_add(0, row, logp)


def _exact(inputs: LossInputs, logp: Tensor, worth: Tensor) -> LossOutputs:
    """Of (sequences,) log-probs, and of what each sequence is worth."""
    gain = (logp.exp() * worth).sum() / inputs.groups
    if inputs.ref_logp is None:
        return LossOutputs(loss=-gain, kl=gain.new_zeros(()))
    kl = _exact_kl(logp, sequence_logp(inputs.ref_logp, inputs.row, len(worth))).sum() / inputs.groups
    return LossOutputs(loss=inputs.beta * kl - gain, kl=kl.detach())


def _exact_kl(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """(sequences,) each one's share of KL(policy || reference) over a list that need not hold all probability: the sum
    of pi log(pi / ref) - pi + ref, which is what `kl_k3` estimates. It is never negative and 0 only where both agree.
    """
    return logp.exp() * (logp - ref_logp - 1) + ref_logp.exp()  # no ratio, which would overflow where pi is 0


def _by_group(values: Tensor, inputs: LossInputs) -> Tensor:
    """(sequences,) -> (groups of this pack,) sums."""
    return values.new_zeros(inputs.groups_here).index_add(0, inputs.group, values)


def _mean(per_token: Tensor, inputs: LossInputs) -> Tensor:
    """() this pack's share of the mean over sequences of the mean over tokens."""
    lengths = torch.bincount(inputs.row, minlength=len(inputs.advantage))
    sums = per_token.new_zeros(len(inputs.advantage)).index_add(0, inputs.row, per_token)
    return (sums / lengths).sum() / inputs.sequences
