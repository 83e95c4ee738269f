"""Weights that correct for the distance between the log-probs a token was sampled with and the learner's own.

An engine in bfloat16, or one that samples with older weights, draws from another policy than the learner holds. The
weight of a token is w = exp(old_logp - engine_logp); where both agree it is 1, and nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.config.objective import ObjectiveConfig
from common.config.schema import Config
from learner.objective.records import LossInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrected:
    """The weights of a pack, and how much of it they touched."""

    weight: Tensor  # (N,) without graph
    touched: Tensor  # (N,) bool: truncated or masked


def settle(config: Config, lags: Sequence[int]) -> tuple[ObjectiveConfig, list[bool]]:
    """Return the objective of a pack with `auto` decided, and whether its correction acts on each group.

    Args:
        lags: of its groups, in steps between the weights that sampled and those that learn.
    """
    kinds = [config.correction_at(lag) for lag in lags]
    acting = [kind for kind in kinds if kind != "none"]
    objective = config.objective.model_copy(update={"correction": acting[0] if acting else "none"})
    return objective, [kind != "none" for kind in kinds]


def correct(inputs: LossInputs) -> Corrected:
    """Return the weights that `objective.correction` asks for; exactly 1 for rows that it does not act on.

    With `low` 0.5 and `high` 2, tokens of w = (0.4, 1, 3) get: truncate (0.4, 1, 2), mask (0, 1, 0).
    """
    objective = inputs.objective
    if objective.correction not in ("truncate", "mask"):
        return Corrected(weight=torch.ones_like(inputs.engine_logp), touched=torch.zeros_like(inputs.row).bool())
    w = WEIGHTS[objective.correction_level](inputs).detach()
    over, under = w > objective.correction_high, w < objective.correction_low
    if objective.correction == "truncate":
        weight, touched = w.clamp(max=objective.correction_high), over
    else:
        weight, touched = w.masked_fill(over | under, 0.0), over | under
    if inputs.corrected is None:
        return Corrected(weight=weight, touched=touched)
    acts = inputs.corrected[inputs.row]
    return Corrected(weight=weight.masked_fill(~acts, 1.0), touched=touched & acts)


def weigh_tokens(inputs: LossInputs) -> Tensor:
    """Return the (N,) weight of each token by itself (TIS; Yao et al. 2025)."""
    return torch.exp(inputs.before - inputs.engine_logp)


def weigh_sequences(inputs: LossInputs) -> Tensor:
    """Return for each token the weight of its whole completion, the product over its tokens: unbiased, and wide."""
    return torch.exp(inputs.sum_rows(inputs.before - inputs.engine_logp))[inputs.row]


def weigh_means(inputs: LossInputs) -> Tensor:
    """Return for each token the geometric mean of its completion's weights, which does not grow with length."""
    return torch.exp(inputs.mean_rows(inputs.before - inputs.engine_logp))[inputs.row]


WEIGHTS: dict[str, Callable[[LossInputs], Tensor]] = {
    "token": weigh_tokens,
    "sequence": weigh_sequences,
    "mean": weigh_means,
}


def keep_near(inputs: LossInputs, furthest: float) -> Tensor:
    """Say of each token whether it is kept: not those of completions worse than their group that the policy left.

    A completion of advantage below 0 is left out where the mean of engine_logp - logp is above `furthest`.

    Source: off-policy sequence masking, DeepSeek-AI 2025, arXiv:2512.02556.
    """
    left = inputs.mean_rows(inputs.engine_logp - inputs.logp.detach()) > furthest
    return ~(left & (inputs.advantage < 0))[inputs.row]
