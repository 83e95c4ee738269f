"""What a loss reads, of few completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from learner.objective.records import Coefficients, LossInputs, StepCounts


def make_inputs(
    logp: Tensor,
    *,
    row: Sequence[int],
    advantage: Tensor | Sequence[float],
    reward: Tensor | Sequence[float] | None = None,
    group: Sequence[int] | None = None,
    beta: float = 0.0,
    **others: Any,
) -> LossInputs:
    """Return the inputs of completions that engines sampled by the same log-probs, none cut, of a step of these alone.

    Args:
        row: of each token.
        reward: of each row; None: its advantage.
        group: of each row; None: all are one group.
        others: fields of LossInputs that are to be otherwise.
    """
    rows, group = len(advantage), group or [0] * len(advantage)
    given: dict[str, Any] = {
        "old_logp": None,
        "ref_logp": None,
        "engine_logp": logp.detach(),
        "entropy": None,
        "reward": torch.as_tensor(advantage if reward is None else reward),
        "truncated": torch.zeros(rows, dtype=torch.bool),
        "step": StepCounts(sequences=rows, groups=len({*group}), tokens=len(logp)),
        "coefficients": Coefficients(beta=beta),
    }
    given |= {"row": torch.tensor(row), "group": torch.tensor(group), "advantage": torch.as_tensor(advantage)}
    return LossInputs(logp=logp, **given | others)
