"""What a step's record says of its groups, worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from common.clock import StepClock
from common.config import Config, DataConfig, RewardConfig
from common.ledger import Ledger
from common.types import ScoredGroup, StepResult
from learner.metrics import step_record
from learner.records import StepRecord
from tests.learner.fake_run import scored

RESULT = StepResult(
    loss=0.0,
    kl=0.0,
    entropy=0.0,
    grad_norm=1.0,
    lr=0.1,
    clip_share=0.0,
    logprob_gap_mean=0.0,
    logprob_gap_max=0.0,
    tokens=8,
    seconds=0.1,
)


def record(groups: Sequence[ScoredGroup], config: Config) -> StepRecord:
    ledger = Ledger(on_event=lambda *_, **__: None, max_drop_share=0.1, dispatched=2, trained=2)
    return step_record(
        0,
        groups,
        RESULT,
        clock=StepClock(),
        ledger=ledger,
        epoch=0.1,
        dropped=0,
        weights_version=1,
        checkpoint_failures=0,
        engine_restarts=0,
        config=config,
    )


def test_thinking_is_how_often_and_how_consistently() -> None:
    think = Config(data=DataConfig(mode="think"))
    said = ("<think>a seven</think><answer>seven</answer>", "<think>one</think><answer>nine</answer>", "seven", "")
    assert record([scored(said)], think).thinking == {"share": 0.5, "consistency": 0.5}
    assert record([scored(("seven", "nine"))], think).thinking == {"share": 0.0}
    assert record([scored(said)], Config()).thinking == {}
    assert "thinking/consistency" in record([scored(said)], think).flat()


@pytest.mark.parametrize(("normalise", "expected"), [("sum", 1.0), ("each", 0.5)])
def test_a_group_teaches_nothing_where_all_that_is_normalised_is_equal(normalise: str, expected: float) -> None:
    """Two functions that differ and cancel out are one all-equal sum, and two that are not equal."""
    cancelling = replace(
        scored(("seven", "seven")), rewards_by_name={"a": (1.0, 0.0), "b": (0.0, 1.0)}, rewards=(1.0, 1.0)
    )
    equal = replace(cancelling, rewards_by_name={"a": (1.0, 1.0), "b": (0.0, 0.0)})
    config = Config(reward=RewardConfig.model_validate({"normalise": normalise}))
    assert record([equal, cancelling], config).all_equal_share == expected
