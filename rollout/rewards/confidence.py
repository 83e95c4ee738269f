"""Reward for probabilities that are sure of the right label and of nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.types import CandidateProbabilities


def confidence_reward(
    completions: Sequence[str], *, label: str, candidate_probabilities: Sequence[CandidateProbabilities], **columns: Any
) -> Sequence[float]:
    """Return (G,) 1 minus the Brier score of the candidates' probabilities after each completion's thought.

    The score is 1 where the label has all the probability and -1 where another candidate has it. With probabilities
    {cat: 0.5, dog: 0.5} and label cat it is 1 - (0.5**2 + 0.5**2) = 0.5. The answer that was drawn counts for nothing.

    Source: Brier, "Verification of forecasts expressed in terms of probability" (1950), summed over candidates.
    """
    return [1.0 - _brier(probabilities, label) for probabilities in candidate_probabilities]


def _brier(probabilities: CandidateProbabilities, label: str) -> float:
    return sum((probability - (candidate == label)) ** 2 for candidate, probability in probabilities.items())
