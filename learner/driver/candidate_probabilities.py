"""What the policy would answer after each thought that was sampled: a row's candidates, with their probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from common.labels.candidates import candidates
from common.labels.closed_set import Answer, ClosedSet
from common.types import CandidateProbabilities, Group, Prompt

if TYPE_CHECKING:
    from learner.trainer.group import LearnerGroup


Thought = tuple[str, tuple[int, ...], str]  # a prompt's id, its ids with those of a thought, and how its answers begin


def candidate_probabilities(
    prompts: Sequence[Prompt], groups: Iterable[Group], closed_set: ClosedSet, learner: LearnerGroup
) -> dict[str, tuple[CandidateProbabilities, ...]]:
    """(G,) by prompt: the probability of each of the row's candidates as the answer after each completion's thought.

    They are shares of what the policy gives all of the candidates, each written as the mode's format asks. All groups
    are one call of the learner, in prompt order, and a thought that a group holds twice is asked once.

    Args:
        prompts: of the groups, or more; each has candidates, as the door has seen to.
    """
    by_id = {group.prompt_id: group for group in groups}
    asked: dict[Thought, tuple[Prompt, Sequence[Answer]]] = {}
    thoughts: dict[str, list[Thought]] = {}
    for prompt in prompts:
        if prompt.id in by_id:
            found = list(_read(prompt, by_id[prompt.id], closed_set))
            thoughts[prompt.id] = [thought for thought, _ in found]
            asked |= found
    scores = learner.candidate_logprobs([one for one, _ in asked.values()], [answers for _, answers in asked.values()])
    made = {
        thought: _softmax(_candidates_of(prompt), own)
        for (thought, (prompt, _)), own in zip(asked.items(), scores, strict=True)
    }
    return {prompt_id: tuple(made[thought] for thought in own) for prompt_id, own in thoughts.items()}


def _read(
    prompt: Prompt, group: Group, closed_set: ClosedSet
) -> Iterator[tuple[Thought, tuple[Prompt, Sequence[Answer]]]]:
    """The thought of each completion, with the prompt it makes and the answers that may follow."""
    for completion in group.completions:
        longer, opening = closed_set.after_thought(prompt, completion.token_ids)
        yield (
            (prompt.id, longer.token_ids, opening),
            (longer, closed_set.answers(_candidates_of(prompt), opening=opening)),
        )


def _candidates_of(prompt: Prompt) -> list[str]:
    return candidates(prompt.example.problem) or []


def _softmax(listed: Sequence[str], logprobs: Sequence[Sequence[float]]) -> CandidateProbabilities:
    """Softmax over the candidates. `logprobs`: (K,) of (C,), of every token of each."""
    totals = [math.fsum(own) for own in logprobs]
    most = max(totals)
    weights = [math.exp(total - most) for total in totals]
    return {candidate: weight / sum(weights) for candidate, weight in zip(listed, weights, strict=True)}
