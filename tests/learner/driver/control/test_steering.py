"""How coefficients follow what a step measured."""

from __future__ import annotations

import math
from typing import Any

import pytest

from common.config.schema import Config
from common.errors import CheckpointError
from learner.driver.control.steering import Steering
from tests.helpers import tiny


def steering(**objective: Any) -> Steering:
    raw = {"objective": objective, "rollout": {"prompts_per_step": 16, "group_size": 8}, "learner": {"beta": 0.04}}
    return Steering(Config.model_validate(raw))


def test_without_a_target_nothing_changes() -> None:
    made = steering(entropy_bonus=0.1)
    before = made.coefficients
    made.observe(tiny.step_result(kl=50.0, entropy=0.001))
    assert made.coefficients == before
    assert (before.beta, before.entropy_bonus) == (0.04, 0.1)


@pytest.mark.parametrize(
    ("kl", "factor"), [(0.1, 1.0), (0.12, 1.00256), (9.0, 1.00256), (0.09, 0.99872), (0.0, 0.99744)]
)
def test_the_weight_of_the_kl_follows_its_target(kl: float, factor: float) -> None:
    """By hand: 128 completions a step over a horizon of 10,000, and 0.2 off at most."""
    made = steering(kl_target=0.1)
    made.observe(tiny.step_result(kl=kl))
    assert made.coefficients.beta == pytest.approx(0.04 * factor)


@pytest.mark.parametrize("horizon", [1, 10, 10_000])
@pytest.mark.parametrize("kl", [0.0, 9.0, math.inf, math.nan])
def test_the_weight_stays_a_sound_number_whatever_was_measured(kl: float, horizon: int) -> None:
    """Within what `learner.beta` may be, after any number of steps; of no number nothing is learnt."""
    made = steering(kl_target=0.1, kl_horizon=horizon)
    for _ in range(500):
        made.observe(tiny.step_result(kl=kl))
        assert 0 <= made.coefficients.beta <= 1e6
    assert (made.coefficients.beta == 0.04) == (not math.isfinite(kl))


def test_the_entropy_bonus_acts_below_the_floor_alone() -> None:
    made = steering(entropy_bonus=0.1, entropy_floor=0.5)
    acts = []
    for entropy in (0.9, 0.4, math.nan, 0.6, 0.2):
        acts.append(made.coefficients.entropy_bonus)
        made.observe(tiny.step_result(entropy=entropy))
    assert [*acts, made.coefficients.entropy_bonus] == [0.0, 0.0, 0.1, 0.1, 0.0, 0.1]


def test_it_goes_on_from_a_checkpoint() -> None:
    made, again = (steering(kl_target=0.1, entropy_bonus=0.1, entropy_floor=0.5) for _ in range(2))
    made.observe(tiny.step_result(kl=0.5, entropy=0.1))
    again.restore(made.state())
    assert again.coefficients == made.coefficients


@pytest.mark.parametrize("planted", [{"beta": math.nan}, {"beta": -1.0}, {"beta": 1e7}, {"below_floor": 2}])
def test_a_state_that_no_run_wrote_is_refused(planted: dict[str, float]) -> None:
    with pytest.raises(CheckpointError, match="the steered coefficients"):
        steering().restore({"beta": 0.04, "below_floor": 0.0} | planted)
