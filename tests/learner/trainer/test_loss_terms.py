"""A step's groups by loss: each once, in prompt order, with the counts its mean is over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.types import ScoredGroup
from learner.trainer.loss_terms import LossTerm, split_by_loss
from tests.helpers import tiny


def as_given(scored: ScoredGroup) -> ScoredGroup:
    return replace(scored, group=replace(scored.group, origin="given"))


def test_given_and_sampled_groups_are_terms_of_one_step() -> None:
    groups = [as_given(one) if at in (0, 3, 4) else one for at, one in enumerate(tiny.ragged())]
    assert split_by_loss(groups, "exact_raw") == [
        (LossTerm(loss="exact_raw", sequences=11, groups=3, share=0.6), [groups[0], groups[3], groups[4]]),
        (LossTerm(loss="grpo", sequences=6, groups=2, share=0.4), [groups[1], groups[2]]),
    ]


@pytest.mark.parametrize("own_loss", ["grpo", "exact_normalised"])
def test_a_step_of_samples_alone_is_one_term(own_loss: str) -> None:
    groups = tiny.ragged()
    assert split_by_loss(groups, own_loss) == [(LossTerm(loss="grpo", sequences=17, groups=5, share=1.0), groups)]
