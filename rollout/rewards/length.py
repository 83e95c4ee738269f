"""Reward for a length that the configuration names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def length_reward(
    completions: Sequence[str], *, token_ids: Sequence[Sequence[int]], length_target: int, **columns: Any
) -> Sequence[float]:
    """Return (G,) how close each completion's length is to `reward.length_target`.

    It is 1 at the target and falls along a straight line to 0, at 0 tokens and at twice the target: with a target of 4,
    lengths 1, 3, 4, 5 and 8 earn 0.25, 0.75, 1, 0.75 and 0. Lengths are in tokens with the end of turn.
    """
    return [max(0.0, 1.0 - abs(len(ids) - length_target) / length_target) for ids in token_ids]
