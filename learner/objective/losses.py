"""All losses by name. A new one is a pure function and a line here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from learner.objective.aggregation import aggregate, average_tokens
from learner.objective.corrections import correct, keep_near
from learner.objective.exact import exact_arcsine_loss, exact_log_loss, exact_raw_loss, sft_loss
from learner.objective.kl import estimate_kl
from learner.objective.ratios import SURROGATES
from learner.objective.records import LossInputs, LossOutputs


def policy_loss(inputs: LossInputs, surrogate: str) -> LossOutputs:
    """Compute the loss of sampled completions: surrogate, times its correction, plus beta KL less the entropy bonus."""
    objective = inputs.objective
    per_token = SURROGATES[surrogate](inputs)
    if objective.correction in ("truncate", "mask"):
        per_token = per_token * correct(inputs).weight
    if objective.sequence_mask is not None:
        per_token = per_token * keep_near(inputs, objective.sequence_mask)

    kl = None
    if inputs.ref_logp is not None:
        kl = estimate_kl(inputs, inputs.ref_logp)
        per_token = per_token + inputs.coefficients.beta * kl
    loss = aggregate(per_token, inputs)
    if inputs.entropy is not None:
        loss = loss - inputs.coefficients.entropy_bonus * average_tokens(inputs.entropy, inputs)
    return LossOutputs(loss=loss, kl=loss.new_zeros(()) if kl is None else aggregate(kl.detach(), inputs))


LOSSES: dict[str, Callable[[LossInputs], LossOutputs]] = {
    **{name: partial(policy_loss, surrogate=name) for name in SURROGATES},
    "exact_raw": exact_raw_loss,
    "exact_arcsine": exact_arcsine_loss,
    "exact_log": exact_log_loss,
    "sft": sft_loss,
}
