"""The section `objective`: presets, and settings that the others leave without effect (law 8)."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from common.config.cli import dump, parse
from common.config.objective import PRESETS, ObjectiveConfig, Preset
from common.config.schema import Config
from common.errors import ConfigError


def test_every_preset_has_settings() -> None:
    assert set(PRESETS) == set(get_args(Preset))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_printed_and_read_back(name: str, tmp_path: Any) -> None:
    config = parse([f"objective.preset={name}"]).config
    wanted = ObjectiveConfig().model_dump() | PRESETS[name] | {"preset": name}
    assert config.objective.model_dump() == wanted
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump(config))
    assert parse(["--config", str(recipe)]).config == config


def test_a_key_beside_a_preset_holds_before_it() -> None:
    words = ["objective.clip_high=0.5", "objective.updates=2", "objective.preset=dapo"]
    for order in (words, words[::-1]):
        objective = parse(order).config.objective
        assert (objective.clip_high, objective.aggregation) == (0.5, "token")


# A key that is changed, and settings under which it has an effect and none.
IDLE: list[tuple[str, Any, dict[str, Any], dict[str, Any]]] = [
    ("gate_low", 2.0, {"objective": {"loss": "sapo", "updates": 2}}, {"objective": {"updates": 2}}),
    ("gate_high", 2.0, {"objective": {"loss": "sapo", "minibatches": 2}}, {"objective": {"loss": "sapo"}}),
    ("clip_low", 0.3, {"objective": {"updates": 2}}, {"objective": {"loss": "sapo", "updates": 2}}),
    ("clip_high", 0.3, {"objective": {"minibatches": 2}}, {"objective": {"loss": "sapo", "minibatches": 2}}),
    ("clip_low", 0.3, {"objective": {"correction": "bypass"}}, {}),
    ("clip_high", 0.3, {"objective": {"correction": "bypass"}}, {"objective": {"preset": "dapo"}}),
    ("dual_clip", 3.0, {"objective": {"updates": 2}}, {"objective": {"loss": "cispo", "updates": 2}}),
    ("dual_clip", 3.0, {"objective": {"updates": 2}}, {"model": {"dtype": "bfloat16"}}),
    ("kl", "k2", {}, {"learner": {"beta": 0.0}}),
    ("kl_in", "reward", {}, {"learner": {"beta": 0.0}}),
    ("kl_corrected", True, {}, {"learner": {"beta": 0.0}}),
    ("kl_corrected", True, {}, {"objective": {"kl_in": "reward"}}),
    ("kl_target", 0.1, {}, {"learner": {"beta": 0.0}}),
    ("kl_horizon", 500, {"objective": {"kl_target": 0.1}}, {}),
    ("entropy_floor", 0.5, {"objective": {"entropy_bonus": 0.1}}, {}),
    ("correction_high", 3.0, {"objective": {"correction": "mask"}}, {"objective": {"correction": "none"}}),
    ("correction_high", 3.0, {"objective": {"correction": "mask"}}, {"objective": {"correction": "bypass"}}),
    ("correction_level", "mean", {"objective": {"correction": "mask"}}, {"objective": {"correction": "bypass"}}),
    ("correction_level", "mean", {"model": {"dtype": "bfloat16"}}, {"model": {"dtype": "float32"}}),
    ("correction_low", 0.1, {"objective": {"correction": "mask"}}, {"objective": {"correction": "truncate"}}),
    ("loss", "gspo", {}, {"method": "exact"}),
    ("dead_groups", "drop", {}, {"learner": {"beta": 0.0}}),
    ("dead_groups", "drop", {"learner": {"beta": 0.0}, "objective": {"entropy_bonus": 0.1}}, {"method": "exact"}),
    ("dead_groups", "drop", {}, {"objective": {"kl_in": "reward"}}),
    ("dead_groups", "keep", {"learner": {"beta": 0.0}}, {}),
    ("dead_groups", "keep", {"objective": {"mask_truncated": True}}, {"objective": {"entropy_bonus": 0.1}}),
]


def configure(key: str, value: Any, others: dict[str, Any]) -> Config:
    return Config.model_validate({**others, "objective": {**others.get("objective", {}), key: value}})


@pytest.mark.parametrize(("key", "value", "active", "idle"), IDLE)
def test_a_key_without_effect_is_refused(key: str, value: Any, active: dict[str, Any], idle: dict[str, Any]) -> None:
    assert getattr(configure(key, value, active).objective, key) == value
    with pytest.raises(ValidationError, match=rf"objective\.{key} = .*it has no effect"):
        configure(key, value, idle)


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ({"objective": {"minibatches": 3}}, "does not divide rollout.prompts_per_step = 16"),
        ({"objective": {"overlong_buffer": 1024}}, "it must be shorter"),
        ({"objective": {"overlong_buffer": 4}, "reward": {"normalise": "each"}}, "set reward.normalise to sum"),
        ({"objective": {"kl_in": "reward"}, "reward": {"normalise": "each"}}, "set reward.normalise to sum"),
        ({"objective": {"correction": "mask", "correction_low": 1.1}}, "correction_low"),
        ({"objective": {"correction": "truncate", "correction_high": 0.9}}, "correction_high"),
    ],
)
def test_what_does_not_fit_is_refused(raw: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        Config.model_validate(raw)


NEGATIVE: list[dict[str, Any]] = [
    {"reward": {"functions": {"accuracy": 1.0, "length": -0.1}, "length_target": 9}},
    {"reward": {"functions": {"accuracy": 1.0, "repetition": 0.1}}},
    {"reward": {"functions": {"accuracy": 1.0, "repetition": 0.1}, "normalise": "each"}},
    {"objective": {"kl_in": "reward"}},
    {"objective": {"overlong_buffer": 4}},
]


@pytest.mark.parametrize("raw", NEGATIVE)
def test_rewards_below_0_are_no_shares_of_their_mean(raw: dict[str, Any]) -> None:
    own = raw.get("objective", {})
    Config.model_validate(raw | {"objective": own | {"advantage": "none"}})
    for mean in ({"advantage": "mean"}, {"preset": "maxrl", "advantage": "mean"}):
        with pytest.raises(ValidationError, match=r"objective\.advantage = mean with .* below 0"):
            Config.model_validate(raw | {"objective": own | mean})


def test_a_penalty_that_is_compared_by_itself_may_have_any_weight() -> None:
    functions = {"accuracy": 1.0, "length": -0.1}
    raw = {"reward": {"functions": functions, "length_target": 9, "normalise": "each"}}
    Config.model_validate({**raw, "objective": {"advantage": "mean"}})


def test_unknown_presets_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"objective\.preset = ppo"):
        parse(["objective.preset=ppo"])


@pytest.mark.parametrize(
    ("dtype", "asked", "settled"),
    [
        ("float32", "auto", ["none", "truncate", "truncate"]),
        ("bfloat16", "auto", ["truncate"] * 3),
        ("float32", "mask", ["mask"] * 3),
        ("bfloat16", "none", ["none"] * 3),
        ("float32", "bypass", ["bypass"] * 3),
    ],
)
def test_what_auto_corrects(dtype: str, asked: str, settled: list[str]) -> None:
    """Of groups that were sampled with weights of 0, 1 and 4 steps before."""
    config = Config.model_validate({"model": {"dtype": dtype}, "objective": {"correction": asked}})
    assert [config.correction_at(lag) for lag in (0, 1, 4)] == settled
