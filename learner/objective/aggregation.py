"""From the (N,) values of the tokens of a pack to its share of one value of the step."""

from __future__ import annotations

import torch
from torch import Tensor

from learner.objective.records import LossInputs


def aggregate(per_token: Tensor, inputs: LossInputs) -> Tensor:
    """Return the () share of this pack; summed over all packs of all ranks it is the value of the step.

    Completions of 1 and 3 tokens with values (4) and (1, 1, 1), of at most 5 tokens: sequence gives (4 + 1) / 2,
    token 7 / 4, constant 7 / 10, sequence_sum 7 / 2.
    """
    per_token, how = _mask_truncated(per_token, inputs), inputs.objective.aggregation
    if how == "sequence":
        lengths = torch.bincount(inputs.row, minlength=inputs.rows_here)
        return (inputs.sum_rows(per_token) / lengths).sum() / inputs.step.sequences
    parts = {
        "token": inputs.step.tokens,
        "constant": inputs.step.sequences * inputs.longest,
        "sequence_sum": inputs.step.sequences,
    }
    return per_token.sum() / parts[how]


def average_tokens(per_token: Tensor, inputs: LossInputs) -> Tensor:
    """Return the () share of this pack in the mean over all tokens of the step."""
    return _mask_truncated(per_token, inputs).sum() / inputs.step.tokens


def _mask_truncated(per_token: Tensor, inputs: LossInputs) -> Tensor:
    """Make the values of completions that were cut 0, even infinite ones, under `objective.mask_truncated`."""
    return per_token.masked_fill(inputs.truncated[inputs.row], 0.0) if inputs.objective.mask_truncated else per_token
