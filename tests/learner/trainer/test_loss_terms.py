"""A step's groups by loss: each once, in prompt order, with the counts its mean is over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from common.config.objective import ObjectiveConfig
from common.types import ScoredGroup
from learner.objective.records import CLS_RL, StepCounts
from learner.trainer.loss_terms import LossTerm, count_step, split_by_loss
from tests.helpers import tiny


def as_given(scored: ScoredGroup) -> ScoredGroup:
    return replace(scored, group=replace(scored.group, origin="given"))


def counts(sequences: int, groups: Sequence[ScoredGroup]) -> StepCounts:
    """What a term is a mean over, its tokens counted one by one."""
    tokens = sum(len(one.token_ids) for group in groups for one in group.group.completions)
    return StepCounts(sequences=sequences, groups=len(groups), tokens=tokens)


def test_given_and_sampled_groups_are_terms_of_one_step() -> None:
    groups = [as_given(one) if at in (0, 3, 4) else one for at, one in enumerate(tiny.ragged())]
    offline, sampled = [groups[0], groups[3], groups[4]], [groups[1], groups[2]]
    assert split_by_loss(groups, "exact_raw", ObjectiveConfig(loss="cispo")) == [
        (LossTerm(loss="exact_raw", sampled=False, counts=counts(11, offline), share=0.6), offline),
        (LossTerm(loss="cispo", sampled=True, counts=counts(6, sampled), share=0.4), sampled),
    ]


@pytest.mark.parametrize("own_loss", ["grpo", "exact_arcsine"])
def test_a_step_of_samples_alone_is_one_term(own_loss: str) -> None:
    groups = tiny.ragged()
    term = LossTerm(loss="grpo", sampled=True, counts=counts(17, groups), share=1.0)
    assert split_by_loss(groups, own_loss, CLS_RL) == [(term, groups)]


def test_masked_completions_are_no_tokens_of_a_step() -> None:
    group = tiny.ragged()[0]
    first, *others = group.group.completions
    cut = replace(group, group=replace(group.group, completions=(replace(first, finish_reason="length"), *others)))
    whole, masked = count_step([cut], CLS_RL), count_step([cut], ObjectiveConfig(mask_truncated=True))
    assert (masked.sequences, masked.groups) == (whole.sequences, whole.groups)
    assert masked.tokens == whole.tokens - len(first.token_ids)
