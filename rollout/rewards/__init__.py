"""Reward functions: `f(completions, *, label, **columns) -> (G,) numbers`, for one group of G completions of one row.

`columns` holds `prompt_id`, `problem`, `mode`, `aliases` and every other column of the row. To add one: a file and a
line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rollout.rewards.accuracy import accuracy_reward
from rollout.rewards.format import format_reward

RewardFunction = Callable[..., Sequence[float]]

REWARDS: Mapping[str, RewardFunction] = {"accuracy": accuracy_reward, "format": format_reward}
