"""Reward for probabilities that are sure of the right label and of nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.types import CandidateProbability


def confidence_reward(
    completions: Sequence[str], *, label: str, beliefs: Sequence[CandidateProbability], **columns: Any
) -> Sequence[float]:
    """(G,) 1 minus the Brier score of what the policy believes after each completion's thought: 1 where it gives the
    label all probability, -1 where it gives all to another candidate. Whatever was answered counts for nothing.

    Source: Brier, "Verification of forecasts expressed in terms of probability" (1950), summed over candidates.
    """
    return [1.0 - _brier(belief, label) for belief in beliefs]


def _brier(belief: CandidateProbability, label: str) -> float:
    return sum((probability - (candidate == label)) ** 2 for candidate, probability in belief.items())
