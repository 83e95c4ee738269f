"""What the policy would answer after each thought that was sampled: a row's candidates, with their probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from common.candidates import candidates
from common.closed_set import Answer, ClosedSet
from common.types import Belief, Group, Prompt

if TYPE_CHECKING:
    from learner.group import LearnerGroup


def beliefs(
    prompts: Sequence[Prompt], groups: Iterable[Group], closed_set: ClosedSet, learner: LearnerGroup
) -> dict[str, tuple[Belief, ...]]:
    """(G,) by prompt: the probability of each of the row's candidates as the answer after each completion's thought.

    They are shares of what the policy gives all of the candidates, each written as the mode's format asks. All groups
    are one call of the learner, in prompt order, and a thought that a group holds twice is asked once.

    Args:
        prompts: of the groups, or more; each has candidates, as the door has seen to.
    """
    by_id = {group.prompt_id: group for group in groups}
    asked: dict[tuple[str, tuple[int, ...], str], tuple[Prompt, tuple[Answer, ...]]] = {}
    keys: dict[str, list[tuple[str, tuple[int, ...], str]]] = {}
    for prompt in prompts:
        if prompt.id not in by_id:
            continue
        listed = candidates(prompt.example.problem) or []
        for completion in by_id[prompt.id].completions:
            longer, opening = closed_set.after_thought(prompt, completion.token_ids)
            key = (prompt.id, longer.token_ids, opening)
            keys.setdefault(prompt.id, []).append(key)
            asked[key] = (longer, closed_set.answers(listed, opening=opening))
    scores = learner.candidate_logprobs(*zip(*asked.values(), strict=True)) if asked else []
    made = {
        key: _shares(candidates(longer.example.problem) or [], own)
        for (key, (longer, _)), own in zip(asked.items(), scores, strict=True)
    }
    return {prompt_id: tuple(made[key] for key in own) for prompt_id, own in keys.items()}


def _shares(listed: Sequence[str], logprobs: Sequence[Sequence[float]]) -> Belief:
    """Softmax over the candidates. `logprobs`: (K,) of (C,), of every token of each."""
    totals = [math.fsum(own) for own in logprobs]
    most = max(totals)
    weights = [math.exp(total - most) for total in totals]
    return {candidate: weight / sum(weights) for candidate, weight in zip(listed, weights, strict=True)}
