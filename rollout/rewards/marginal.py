"""Reward for a thought, whatever answer was drawn after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.types import CandidateProbabilities


def marginal_reward(
    completions: Sequence[str], *, label: str, candidate_probabilities: Sequence[CandidateProbabilities], **columns: Any
) -> Sequence[float]:
    """Return (G,) the label's probability among the row's candidates, as the answer after each completion's thought.

    That is the expectation of `accuracy` over answers, in place of one draw (Rao-Blackwell). It says nothing of the
    answer that was drawn, so by itself it teaches thoughts only: give it beside `accuracy`.
    """
    return [probabilities[label] for probabilities in candidate_probabilities]
