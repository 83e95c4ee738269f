"""Groups of given answers, in the shape of sampled ones."""

from __future__ import annotations

from collections.abc import Sequence

from common.labels.closed_set import Answer
from common.types import Completion, Group, Prompt, ScoredGroup


def build_given_group(prompt: Prompt, answers: Sequence[Answer], texts: Sequence[str]) -> Group:
    """Return `answers` as the completions of one group; their log-probs, which no engine gave, are 0.

    Args:
        texts: each answer in words, without special tokens.
    """
    completions = tuple(
        Completion(token_ids=ids, logprobs=(0.0,) * len(ids), text=text, finish_reason="stop")
        for ids, text in zip(answers, texts, strict=True)
    )
    return Group(
        prompt_id=prompt.id, completions=completions, origin="given", seed=0, engine_id=None, weights_version=0
    )


def build_unscored_group(prompt: Prompt, answers: Sequence[Answer]) -> ScoredGroup:
    """Return the same for a learner that only scores: without text, with rewards of 0."""
    group = build_given_group(prompt, answers, [""] * len(answers))
    return ScoredGroup(prompt=prompt, group=group, rewards_by_name={}, rewards=(0.0,) * len(answers))
