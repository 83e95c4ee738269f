"""Groups whose completions no engine sampled: given answers, in the shape of sampled ones."""

from __future__ import annotations

from collections.abc import Sequence

from common.labels.closed_set import Answer
from common.types import Completion, Group, Prompt, ScoredGroup

NOBODY = "written"  # the engine of such a group


def is_given(scored: ScoredGroup) -> bool:
    return scored.group.engine_id == NOBODY


def given_group(prompt: Prompt, answers: Sequence[Answer], texts: Sequence[str]) -> Group:
    """`answers` as completions; their log-probs, which no engine gave, read 0.

    Args:
        texts: what each answer says, without special tokens.
    """
    completions = tuple(
        Completion(token_ids=ids, logprobs=(0.0,) * len(ids), text=text, finish_reason="stop")
        for ids, text in zip(answers, texts, strict=True)
    )
    return Group(prompt_id=prompt.id, completions=completions, seed=0, engine_id=NOBODY, weights_version=0)


def given_unscored(prompt: Prompt, answers: Sequence[Answer]) -> ScoredGroup:
    """The same for a learner that only scores: no text, and rewards of 0."""
    group = given_group(prompt, answers, [""] * len(answers))
    return ScoredGroup(prompt=prompt, group=group, rewards_by_name={}, rewards=(0.0,) * len(answers))
