"""The probability that the policy gives each candidate of a row as the answer, after each thought it sampled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from common.labels.candidates import candidates
from common.labels.closed_set import Answer, ClosedSet
from common.types import CandidateProbabilities, Group, Prompt

if TYPE_CHECKING:
    from learner.trainer.group import LearnerGroup


Thought = tuple[str, tuple[int, ...], str]  # prompt id; token ids of prompt and thought; text an answer begins with


def compute_candidate_probabilities(
    prompts: Sequence[Prompt], groups: Iterable[Group], closed_set: ClosedSet, learner: LearnerGroup
) -> dict[str, tuple[CandidateProbabilities, ...]]:
    """Return {candidate: probability} for each of the G completions, by prompt id.

    After the thought "it has stripes" the candidates (tiger, cat) may have {"tiger": 0.9, "cat": 0.1}. The
    probabilities of a completion add up to 1: what the policy gives to other answers is left out. All groups are one
    call of the learner, in prompt order; a thought that a group holds twice is scored once.

    Args:
        prompts: those of the groups, and perhaps others; preflight has seen that each has candidates.
    """
    by_id = {group.prompt_id: group for group in groups}
    asked: dict[Thought, tuple[Prompt, Sequence[Answer]]] = {}
    thoughts: dict[str, list[Thought]] = {}
    for prompt in prompts:
        if prompt.id in by_id:
            found = list(_read_thoughts(prompt, by_id[prompt.id], closed_set))
            thoughts[prompt.id] = [thought for thought, _ in found]
            asked |= found
    scores = learner.candidate_logprobs([one for one, _ in asked.values()], [answers for _, answers in asked.values()])
    made = {
        thought: _softmax(_list_candidates(prompt), own)
        for (thought, (prompt, _)), own in zip(asked.items(), scores, strict=True)
    }
    return {prompt_id: tuple(made[thought] for thought in own) for prompt_id, own in thoughts.items()}


def _read_thoughts(
    prompt: Prompt, group: Group, closed_set: ClosedSet
) -> Iterator[tuple[Thought, tuple[Prompt, Sequence[Answer]]]]:
    """Yield the thought of each completion, with the prompt that ends in it and the answers that may follow."""
    for completion in group.completions:
        longer, opening = closed_set.after_thought(prompt, completion.token_ids)
        yield (
            (prompt.id, longer.token_ids, opening),
            (longer, closed_set.answers(_list_candidates(prompt), opening=opening)),
        )


def _list_candidates(prompt: Prompt) -> list[str]:
    return candidates(prompt.example.problem) or []


def _softmax(listed: Sequence[str], logprobs: Sequence[Sequence[float]]) -> CandidateProbabilities:
    """Return the softmax over K candidates.

    Args:
        logprobs: K tuples, of every token of each candidate.
    """
    totals = [math.fsum(own) for own in logprobs]
    most = max(totals)
    weights = [math.exp(total - most) for total in totals]
    return {candidate: weight / sum(weights) for candidate, weight in zip(listed, weights, strict=True)}
