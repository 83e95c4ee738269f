"""What is optimised, as pure functions of one record. Group-relative policy optimisation (Shao et al. 2024,
arXiv:2402.03300, equation 3) in the on-policy form of the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.config import RewardConfig
from common.types import ScoredGroup

SUMMED = RewardConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """All completion tokens of one pack, flat: token t belongs to sequence row[t]. Nothing is padded."""

    logp: Tensor  # (tokens,) of the policy, with its graph
    ref_logp: Tensor | None  # (tokens,) of the frozen reference; None where beta = 0
    engine_logp: Tensor  # (tokens,) as sampled
    row: Tensor  # (tokens,) int64
    advantage: Tensor  # (sequences,)
    sequences: int  # of the whole step, over all packs of all ranks
    beta: float  # weight of the KL


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutputs:
    """This pack's shares: their sums over all packs of all ranks are the step's loss and KL."""

    loss: Tensor  # () with graph
    kl: Tensor  # () without


def advantages(rewards: Tensor) -> Tensor:
    """(G,) rewards of one group -> (G,) advantages, zero where all are equal. The std is the unbiased one."""
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


LOSSES: dict[str, Callable[[LossInputs], LossOutputs]] = {"grpo": grpo_loss}


def _mean(per_token: Tensor, inputs: LossInputs) -> Tensor:
    """() this pack's share of the mean over sequences of the mean over tokens."""
    lengths = torch.bincount(inputs.row, minlength=len(inputs.advantage))
    sums = per_token.new_zeros(len(inputs.advantage)).index_add(0, inputs.row, per_token)
    return (sums / lengths).sum() / inputs.sequences
