"""Reward functions `f(completions, *, label, **columns) -> (G,) numbers`, for one group of G completions of one row:
one pure function a file and one line in REWARDS. `columns` holds `prompt_id`, `problem`, `token_ids` of each
completion as sampled, and every other column of the row. It also holds what is set once for all rows: `mode`,
`aliases`, `taxonomy`, `length_target`, `repetition_ngram`. A function with a parameter `candidate_probabilities` also
gets, for each completion, the probability of every candidate after its thought. Beside the functions stands what loads
a user's own and what checks a configuration's before a run. It imports `common` only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rollout.rewards.accuracy import accuracy_reward
from rollout.rewards.confidence import confidence_reward
from rollout.rewards.consistency import consistency_reward
from rollout.rewards.format import format_reward
from rollout.rewards.length import length_reward
from rollout.rewards.marginal import marginal_reward
from rollout.rewards.repetition import repetition_reward
from rollout.rewards.taxonomy import taxonomy_reward

RewardFunction = Callable[..., Sequence[float]]

REWARDS: Mapping[str, RewardFunction] = {
    "accuracy": accuracy_reward,
    "format": format_reward,
    "length": length_reward,
    "repetition": repetition_reward,
    "taxonomy": taxonomy_reward,
    "consistency": consistency_reward,
    "confidence": confidence_reward,
    "marginal": marginal_reward,
}
