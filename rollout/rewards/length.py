"""Reward for a wanted length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def length_reward(
    completions: Sequence[str], *, token_ids: Sequence[Sequence[int]], length_target: int, **columns: Any
) -> Sequence[float]:
    """(G,) how close each completion's length is to `reward.length_target`: 1 at it, and falling along a straight line
    to 0 at nothing and at twice as much.

    Both are in tokens as sampled, the end of turn included, as `rollout.max_completion_tokens` is.
    """
    return [max(0.0, 1.0 - abs(len(ids) - length_target) / length_target) for ids in token_ids]
