"""Reward of a thought, whatever answer was drawn after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.types import CandidateProbability


def marginal_reward(
    completions: Sequence[str], *, label: str, beliefs: Sequence[CandidateProbability], **columns: Any
) -> Sequence[float]:
    """(G,) probability the policy gives the label among the row's candidates, as the answer after each completion's
    thought: the expectation of `accuracy` over answers, in place of one draw (Rao-Blackwell).

    It says nothing of the answer that was drawn, so by itself it teaches thoughts only: give it beside `accuracy`.
    """
    return [belief[label] for belief in beliefs]
