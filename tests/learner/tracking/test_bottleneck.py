"""The bottleneck of a run, from rows of `metrics.jsonl`, and settings that such a run would take."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
import yaml

from common.config.schema import Config
from learner.tracking.advice import advise_on_speed
from learner.tracking.bottleneck import LEAST, WINDOW, BottleneckWatch, measure_shares, measure_waits
from learner.tracking.console import LineConsole
from tests.helpers.fake_run import record

PARTS = ("engine", "reward", "learner", "driver", "data", "weights")


def row(**seconds: float) -> dict[str, Any]:
    """A step that waits so long for each part."""
    waits = dict.fromkeys(PARTS, 0.1) | seconds
    stages = {"generate": waits["engine"], "reward": waits["reward"], "learn": waits["learner"]}
    stages |= {"publish": waits["weights"], "idle": waits["driver"] + waits["data"]}
    own = {"seconds": stages, "learner_seconds": waits["learner"], "data_seconds": waits["data"]}
    return record(3, **own, step_seconds=sum(waits.values())).flat()


def watch(config: Config | None = None, spare: dict[str, float] | None = None) -> BottleneckWatch:
    made = BottleneckWatch(config or Config())
    made.spare = spare
    return made


@pytest.mark.parametrize("part", PARTS)
def test_the_part_that_is_waited_for_most_is_named(part: str) -> None:
    own = watch()
    told = [own.observe(row(**{part: 2.0})) for _ in range(WINDOW + 1)]
    assert [one is not None for one in told] == [False] * WINDOW + [True]
    found = told[-1]
    assert found is not None and found == own.find()
    assert found.part == part and found.share == pytest.approx(2.0 / 2.5)
    assert "80%" in found.what


def test_what_the_driver_does_for_the_learner_is_its_own() -> None:
    """Ranks that learned for less than the driver waited were not all it waited for; those that learned while engines
    sampled were not waited for."""
    seconds = {"generate": 1.0, "reward": 0.0, "learn": 0.9, "publish": 0.0, "idle": 0.5}
    packed = record(0, seconds=seconds, learner_seconds=0.6, data_seconds=0.4, step_seconds=2.4).flat()
    waits = measure_waits(packed)
    assert waits == pytest.approx(
        {"engine": 1.0, "reward": 0.0, "learner": 0.6, "driver": 0.4, "data": 0.4, "weights": 0.0}
    )
    ahead = record(0, seconds=seconds, learner_seconds=1.7, data_seconds=0.0, step_seconds=2.4).flat()
    assert measure_waits(ahead)["learner"] == 0.9 and measure_waits(ahead)["driver"] == 0.5


def test_a_step_in_which_an_engine_was_replaced_does_not_count() -> None:
    shares = measure_shares([*[row(learner=1.0)] * 5, row(engine=300.0)])
    assert next(iter(shares)) == "learner"


def test_one_that_is_told_is_told_again_only_after_another() -> None:
    own = watch()
    parts = ["engine"] * (WINDOW + 5) + ["learner"] * WINDOW + ["engine"] * WINDOW
    told = [found.part for part in parts if (found := own.observe(row(**{part: 1.0})))]
    assert told == ["engine", "learner", "engine"]


def test_two_that_are_alike_do_not_take_turns() -> None:
    own = watch()
    told = [own.observe(row(engine=1.0, learner=1.0 + 0.02 * (number % 2))) for number in range(60)]
    assert not any(told)
    assert own.find() is not None  # at the end one is named all the same


def test_a_run_of_a_few_steps_has_none() -> None:
    own = watch()
    for _ in range(LEAST):  # the first is passed over
        own.observe(row())
    assert own.find() is None
    own.observe(row())
    assert own.find() is not None


SHARES = {
    "even": dict.fromkeys(PARTS, 1 / 6),
    "one after the other": dict.fromkeys(PARTS, 0.02) | {"engine": 0.45, "learner": 0.45},
}
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "ahead": {"rollout": {"max_lag": 1}},
    "exact": {"method": "exact"},
    "odd ranks": {"learner": {"ranks": 5}, "rollout": {"prompts_per_step": 5}},
    "growing": {"rollout": {"engines": {"min": 1, "max": 8}}},
    "most": {"rollout": {"engines": 1024}, "reward": {"workers": 1024}, "data": {"cache_mb": 2**31 - 1}},
    "cpu": {"cluster": {"device": "cpu"}, "rollout": {"gpus_per_engine": 0}, "learner": {"gpus_per_rank": 0}},
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_advised_is_one_setting_that_the_run_would_take(recipe: str, shares: str, part: str) -> None:
    config = Config.model_validate(RECIPES[recipe])
    advice = advise_on_speed(part, SHARES[shares], config)
    if advice == "No setting changes that":
        assert (recipe, part) in {("most", "reward"), ("most", "data"), ("exact", "engine"), ("most", "engine")}
        return
    (section, key, value) = re.findall(r"\. Try (\w+)\.(\w+)=(\S+)$", advice)[0]
    raw = config.model_dump()
    assert raw[section][key] != yaml.safe_load(value)
    raw[section][key] = yaml.safe_load(value)
    Config.model_validate(raw)


def test_what_has_no_room_is_not_advised() -> None:
    """Of two parts that take turns, what lets them overlap saves most; then nothing is left but more of one."""
    config = Config.model_validate({"rollout": {"max_lag": 1}})
    shares = SHARES["one after the other"]
    assert advise_on_speed("engine", shares, config).endswith("Try rollout.engines=2")
    assert advise_on_speed("engine", shares, config, {"CPU": 4.0, "GPU": 1.0}).endswith("Try rollout.engines=2")
    assert "rollout.engines" not in advise_on_speed("engine", shares, config, {"CPU": 4.0})
    assert advise_on_speed("engine", shares, Config()).endswith("Try rollout.max_lag=1")
    alone = dict.fromkeys(PARTS, 0.01) | {"engine": 0.95}
    assert advise_on_speed("engine", alone, Config()).endswith("Try rollout.engines=2")
    assert advise_on_speed("engine", alone, Config(), {}).endswith("Try rollout.max_lag=1")


def test_a_console_says_it_as_a_note() -> None:
    own, out = watch(), io.StringIO()
    for _ in range(4):
        own.observe(row(reward=1.0))
    found = own.find()
    assert found is not None
    LineConsole(Config(), out).event("bottleneck", {"step": 4, "what": found.what, "advice": found.advice})
    assert out.getvalue() == (
        "note: after 4 steps the bottleneck is the reward functions, with 67% of the time spent waiting for rewards. "
        "Make the functions faster, or let more processes score. Try reward.workers=2\n"
    )
