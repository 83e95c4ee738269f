"""Estimators of KL(policy || reference), at tokens drawn from the policy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from learner.objective.records import MOST_LOG_RATIO, LossInputs, bounded_exp


def k1(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Return logp - ref_logp: (N,), unbiased, of either sign. As a loss its expected gradient is 0."""
    return logp - ref_logp


def k2(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Return half the squared difference: (N,), biased, but as a loss it has the gradient of the KL."""
    return (logp - ref_logp).square() / 2


def k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Return ratio - 1 - log ratio of reference to policy: (N,), unbiased and never negative.

    Where policy and reference nearly agree, float32 rounds it by up to 2e-7. It ends where the reference is e^20 times
    as likely, and has no gradient beyond: 5e8 is far, and more is infinite sooner or later.

    Source: Schulman, "Approximating KL divergence" (2020), which names k1 to k3.
    """
    log_ratio = (ref_logp - logp).clamp(max=MOST_LOG_RATIO)
    return torch.exp(log_ratio) - log_ratio - 1


def k3_plus(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Return the value of k3 with the gradient of k2: (N,)."""
    by_k2 = k2(logp, ref_logp)
    return by_k2 + (k3(logp, ref_logp) - by_k2).detach()


KL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3, "k3_plus": k3_plus}


def estimate_kl(inputs: LossInputs, ref_logp: Tensor) -> Tensor:
    """Return the (N,) KL of each token as `objective.kl` says, weighted with its ratio under `objective.kl_corrected`.

    The weight corrects for tokens that an older policy drew; in the first update of a step it is 1, but has a gradient.
    """
    kl = KL[inputs.objective.kl](inputs.logp, ref_logp)
    return bounded_exp(inputs.logp - inputs.anchor) * kl if inputs.objective.kl_corrected else kl
