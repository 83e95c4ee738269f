"""The section `signal`: settings that the others leave without effect, or that cannot work (law 8)."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from common.config.schema import Config

ALL = {
    "max_prompts": 2.0,
    "max_seconds": 60.0,
    "skip_solved": 2,
    "skip_epochs": 3,
    "curriculum": "learnability",
    "max_group_size": 8,
}


def test_all_of_it_together_is_accepted() -> None:
    config = Config.model_validate({"signal": ALL})
    assert (config.most_prompts, config.largest_group) == (32, 8)


def test_by_default_a_step_is_as_before() -> None:
    assert (Config().most_prompts, Config().largest_group) == (16, 4)


@pytest.mark.parametrize("method", ["exact", "sft"])
@pytest.mark.parametrize("key", ALL)
def test_given_answers_have_no_signal_to_look_for(method: str, key: str) -> None:
    raw = {"method": method, "learner": {"beta": 0.0}, "signal": {key: ALL[key]}}
    with pytest.raises(ValidationError, match=rf"signal\.{key} = .*nothing is sampled"):
        Config.model_validate(raw)


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ({"signal": {"max_seconds": 9.0}}, r"signal\.max_seconds = 9 .*no effect"),
        ({"signal": {"skip_epochs": 2}}, r"signal\.skip_epochs = 2 .*no effect"),
        ({"signal": {"max_prompts": 1.01}}, r"signal\.max_prompts = 1\.01 .*no prompt more"),
        ({"signal": {"max_group_size": 4}}, r"signal\.max_group_size = 4 .*must be larger"),
        ({"signal": {"max_group_size": 3}}, r"signal\.max_group_size = 3 .*must be larger"),
        ({"signal": {"max_group_size": 9}, "rollout": {"group_size": 2}}, "no group can give one up"),
        ({"signal": {"max_group_size": 9}, "rollout": {"prompts_per_step": 1}}, "no other to give"),
    ],
)
def test_what_has_no_effect_is_refused(raw: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        Config.model_validate(raw)


@pytest.mark.parametrize(("times", "prompts", "most"), [(1.15, 100, 115), (2.3, 10, 23), (1.1, 16, 17), (1.0, 7, 7)])
def test_the_bound_is_a_whole_number_of_prompts(times: float, prompts: int, most: int) -> None:
    raw = {"rollout": {"prompts_per_step": prompts}, "signal": {"max_prompts": times}}
    assert Config.model_validate(raw).most_prompts == most
