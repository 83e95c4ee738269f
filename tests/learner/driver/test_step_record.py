"""A step in figures: of samples their mean, of written answers what the policy would earn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from common.config.schema import Config, DataConfig, RewardConfig
from common.types import ScoredGroup
from learner.driver.clock import StepClock
from learner.driver.ledger import Ledger
from learner.driver.step_record import make_step_record
from learner.tracking.records import StepRecord
from tests.helpers import tiny
from tests.helpers.fake_run import scored

DEFAULT = Config()


def record(
    groups: Sequence[ScoredGroup], probabilities: Mapping[str, tuple[float, ...]], config: Config = DEFAULT
) -> StepRecord:
    figures: Any = dict.fromkeys(("loss", "kl", "entropy", "grad_norm", "lr", "clip_share"), 0.5)
    result = tiny.step_result(**figures, probabilities=probabilities)
    return make_step_record(
        3,
        groups,
        result,
        clock=StepClock(),
        ledger=Ledger(on_event=lambda kind, **fields: None, max_drop_share=0.0),
        epoch=1.0,
        asked=len(groups),
        trained=len(groups),
        data_seconds=0.0,
        solve_rates={},
        weights_version=4,
        checkpoint_failures=0,
        engine_restarts=0,
        config=config,
    )


def test_sampled_completions_count_alike() -> None:
    made = record([scored(("seven", "seven", "nine", "one"))], {})
    assert made.reward == made.rewards["accuracy"] == 0.5
    assert made.reward_std == pytest.approx(0.57735, abs=1e-5)
    assert made.zero_std_share == 0


def test_written_completions_count_by_their_probability() -> None:
    """A tenth of the policy's answers are none of these, and earn nothing."""
    made = record([scored(("seven", "nine", "one"))], {"train/17": (0.6, 0.2, 0.1)})
    assert made.reward == made.rewards["accuracy"] == pytest.approx(0.6)
    assert made.reward_std == pytest.approx((0.6 * 0.4) ** 0.5)
    assert made.zero_std_share == 0


def test_a_group_of_one_is_a_label_and_its_probability() -> None:
    made = record([scored(("seven",))], {"train/17": (0.25,)})
    assert (made.reward, made.zero_std_share) == (0.25, 0)
    assert made.reward_std == pytest.approx((0.25 * 0.75) ** 0.5)
    assert record([scored(("seven",))], {}).reward_std == 0


def test_thinking_is_how_often_and_how_consistently() -> None:
    think = Config(data=DataConfig(mode="think"))
    said = ("<think>a seven</think><answer>seven</answer>", "<think>one</think><answer>nine</answer>", "seven", "")
    assert record([scored(said)], {}, think).thinking == {"share": 0.5, "consistency": 0.5}
    assert record([scored(("seven", "nine"))], {}, think).thinking == {"share": 0.0}
    assert record([scored(said)], {}, Config()).thinking == {}
    assert "thinking/consistency" in record([scored(said)], {}, think).flat()


@pytest.mark.parametrize(("normalise", "expected"), [("sum", 1.0), ("each", 0.5)])
def test_a_group_teaches_nothing_where_all_that_is_normalised_is_equal(normalise: str, expected: float) -> None:
    """Two functions that differ and cancel out are one all-equal sum, and two that are not equal."""
    cancelling = replace(
        scored(("seven", "seven")), rewards_by_name={"a": (1.0, 0.0), "b": (0.0, 1.0)}, rewards=(1.0, 1.0)
    )
    equal = replace(cancelling, rewards_by_name={"a": (1.0, 1.0), "b": (0.0, 0.0)})
    config = Config(reward=RewardConfig.model_validate({"functions": {"a": 1, "b": 1}, "normalise": normalise}))
    assert record([equal, cancelling], {}, config).zero_std_share == expected


def test_zero_std_and_truncated_are_shares_of_what_was_sampled() -> None:
    """Given answers are neither: three groups of candidates must not make one equal group of two look rare."""
    equal, divided = scored(("nine", "nine")), scored(("seven", "nine"))
    cut = replace(equal.group.completions[0], finish_reason="length")
    equal = replace(equal, group=replace(equal.group, completions=(cut, equal.group.completions[1])))
    given = replace(equal, group=replace(equal.group, origin="given", engine_id=None))
    made = record([equal, divided, given, given, given], {})
    assert (made.zero_std_share, made.truncated_share) == (0.5, 0.25)
    made = record([given], {})
    assert (made.zero_std_share, made.truncated_share) == (0, 0)


def test_the_listed_mass_is_that_of_given_groups_of_exact() -> None:
    """A sampled group beside them has none; the one answer of sft is no list."""
    given = scored(("seven", "nine", "one"))
    other = replace(
        given,
        prompt=replace(given.prompt, example=replace(given.prompt.example, id="train/18")),
        group=replace(given.group, prompt_id="train/18"),
    )
    sampled = replace(
        given,
        prompt=replace(given.prompt, example=replace(given.prompt.example, id="train/19")),
        group=replace(given.group, prompt_id="train/19"),
    )
    probabilities = {"train/17": (0.6, 0.2, 0.1), "train/18": (0.25, 0.25, 0.0)}
    exact = Config.model_validate({"method": "exact", "exact": {"sampled_share": 0.25}})
    assert record([given, other, sampled], probabilities, exact).listed_mass == pytest.approx((0.9 + 0.5) / 2)
    assert record([sampled], {}, exact).listed_mass == 0, "all given groups were dropped"
    sft = Config.model_validate({"method": "sft", "learner": {"beta": 0.0}})
    assert record([scored(("seven",))], {"train/17": (0.25,)}, sft).listed_mass == 0
    assert record([given], {}).listed_mass == 0
