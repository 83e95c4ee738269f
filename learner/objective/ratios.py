"""The surrogates of the policy gradient: from log-probs and advantages to the (N,) loss of each token.

The ratio of a token is exp(logp - old_logp): its probability now, over that before the first update of the step. In
that first update it is 1, and every surrogate has the gradient of plain policy optimisation, -A times that of logp.
Under `objective.correction = bypass` the log-prob in the engine stands in the place of old_logp.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from learner.objective.records import LossInputs, bounded_exp


def grpo(inputs: LossInputs) -> Tensor:
    """Return -min(ratio A, clip(ratio) A) of each token's ratio.

    A ratio of 1.5 with advantage 1 is clipped to 1.2 and has no gradient; with advantage -1 it keeps its own.

    Source: Schulman et al. 2017, arXiv:1707.06347, equation 7; Shao et al. 2024, arXiv:2402.03300, equation 3. Dual
    clip: Ye et al. 2020, arXiv:1912.09729, equation 5.
    """
    return _clip(bounded_exp(inputs.logp - inputs.anchor), inputs)


def gspo(inputs: LossInputs) -> Tensor:
    """Return the same with one ratio a completion: exp of the mean over its tokens of logp - old_logp.

    Source: Zheng et al. 2025, arXiv:2507.18071, equations 5 and 7.
    """
    return _clip(_mean_ratio(inputs)[inputs.row], inputs)


def gspo_token(inputs: LossInputs) -> Tensor:
    """Return GSPO's value with the gradient of each token by itself, for advantages that differ by token.

    Source: Zheng et al. 2025, arXiv:2507.18071, equation 13.
    """
    own = bounded_exp(inputs.logp - inputs.logp.detach())
    return _clip(_mean_ratio(inputs).detach()[inputs.row] * own, inputs)


def gmpo(inputs: LossInputs) -> Tensor:
    """Return -A times the geometric mean of a completion's clipped token ratios.

    A log-ratio is cut at `clip_high` where A > 0 and at -`clip_low` where A < 0.

    Source: Zhao et al. 2025, arXiv:2507.20673.
    """
    advantage, objective = inputs.advantage[inputs.row], inputs.objective
    log_ratio = inputs.logp - inputs.anchor
    cut = torch.where(advantage > 0, log_ratio.clamp(max=objective.clip_high), log_ratio.clamp(min=-objective.clip_low))
    return -advantage * bounded_exp(inputs.mean_rows(cut))[inputs.row]


def rloo(inputs: LossInputs) -> Tensor:
    """Return the clipped surrogate with the ratio of the whole completion: exp of the sum of logp - old_logp.

    Source: Ahmadian et al. 2024, arXiv:2402.14740.
    """
    return _clip(bounded_exp(inputs.sum_rows(inputs.logp - inputs.anchor))[inputs.row], inputs)


def cispo(inputs: LossInputs) -> Tensor:
    """Return -A logp times the clipped ratio, which has no gradient: no token is left out, however far it moved.

    A `clip_low` of 0 or of 1 and more bounds the ratio above alone.

    Source: MiniMax 2025, arXiv:2506.13585, equation 4.
    """
    objective, ratio = inputs.objective, bounded_exp(inputs.logp.detach() - inputs.anchor)
    least = 1 - objective.clip_low if 0 < objective.clip_low < 1 else 0.0
    return -ratio.clamp(least, 1 + objective.clip_high) * inputs.advantage[inputs.row] * inputs.logp


def sapo(inputs: LossInputs) -> Tensor:
    """Return -(4 / t) sigmoid(t (ratio - 1)) A, a gate that closes slowly in place of a clip.

    t is `gate_high` where A > 0 and `gate_low` elsewhere.

    Source: Gao et al. 2025, arXiv:2511.20347.
    """
    advantage, objective = inputs.advantage[inputs.row], inputs.objective
    ratio = bounded_exp(inputs.logp - inputs.anchor)
    t = torch.where(advantage > 0, objective.gate_high, objective.gate_low).to(ratio.dtype)
    return -(4 / t) * torch.sigmoid(t * (ratio - 1)) * advantage


SURROGATES: dict[str, Callable[[LossInputs], Tensor]] = {
    "grpo": grpo,
    "gspo": gspo,
    "gspo_token": gspo_token,
    "gmpo": gmpo,
    "rloo": rloo,
    "cispo": cispo,
    "sapo": sapo,
}


def find_clipped(inputs: LossInputs) -> Tensor:
    """Say of each of (N,) tokens whether the ratio that its surrogate takes is outside the clip. sapo has none."""
    objective, loss = inputs.objective, inputs.objective.loss
    log_ratio = inputs.logp.detach() - inputs.anchor
    if loss == "sapo":
        return torch.zeros_like(inputs.row).bool()
    if loss == "gmpo":
        better = inputs.advantage[inputs.row] > 0
        return torch.where(better, log_ratio > objective.clip_high, log_ratio < -objective.clip_low)
    if loss in ("gspo", "gspo_token"):
        log_ratio = inputs.mean_rows(log_ratio)[inputs.row]
    elif loss == "rloo":
        log_ratio = inputs.sum_rows(log_ratio)[inputs.row]
    ratio, least = log_ratio.exp(), 1 - objective.clip_low
    bounded = loss != "cispo" or 0 < objective.clip_low < 1
    return (ratio > 1 + objective.clip_high) | ((ratio < least) if bounded else False)


def _mean_ratio(inputs: LossInputs) -> Tensor:
    """Return the (R,) ratios of whole completions, as the geometric mean over their tokens."""
    return bounded_exp(inputs.mean_rows(inputs.logp - inputs.anchor))


def _clip(ratio: Tensor, inputs: LossInputs) -> Tensor:
    """Return the (N,) clipped surrogate of (N,) ratios."""
    advantage, objective = inputs.advantage[inputs.row], inputs.objective
    if inputs.at_anchor:
        return -ratio * advantage
    clipped = ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high)
    loss = torch.maximum(-ratio * advantage, -clipped * advantage)
    if objective.dual_clip is None:
        return loss
    return torch.where(advantage < 0, torch.minimum(loss, -objective.dual_clip * advantage), loss)
