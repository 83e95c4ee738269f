"""Signs of collapse: tables of synthetic runs, each with what a reader of its curves would say."""

from __future__ import annotations

import io
import json
import math
import random
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.config.schema import Config, flatten
from learner.report.write import write_report
from learner.storage.run_folder import RunFolder
from learner.tracking.advice import advise, list_settings
from learner.tracking.console import LineConsole
from learner.tracking.tracker import Tracker
from learner.tracking.watch import SIGNS, WINDOW, CollapseWatch, find_largest_reward
from tests.helpers.fake_run import record

CONFIG = Config()
Curve = Callable[[int], float]
HEALTHY: Mapping[str, Curve] = {
    "reward": lambda step: 0.1 + 0.8 * (1 - math.exp(-step / 60)),
    "entropy": lambda step: 1.8 * math.exp(-step / 150),
    "kl": lambda step: 0.6 * (1 - math.exp(-step / 60)),
    "completion_length": lambda step: 2.2,
    "truncated_share": lambda step: 0.01,
    "zero_std_share": lambda step: 0.1,
}


def flat(value: float) -> Curve:
    return lambda step: value


def turn(before: float, after: float, *, at: int = 50, over: int = 20) -> Curve:
    """A curve that goes from one value to another in a straight line of `over` steps, from step `at` on."""
    return lambda step: before + (after - before) * min(1.0, max(0.0, (step - at) / over))


def rows(curves: Mapping[str, Curve], steps: int, *, noise: float = 0.02, seed: int = 1) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    values = {**HEALTHY, **curves}
    return [
        {"step": step} | {name: curve(step) * (1 + noise * draw.gauss(0, 1)) for name, curve in values.items()}
        for step in range(steps)
    ]


def signs(found: Iterable[Mapping[str, Any]], config: Config = CONFIG) -> dict[str, int]:
    """The signs that are told of a run, each with the steps done when it was last told."""
    watch = CollapseWatch(config)
    for row in found:
        watch.observe(row)
    return watch.told


# name -> curves, and the only sign that a reader would see, with the steps between which it must be told
CASES: Mapping[str, tuple[Mapping[str, Curve], str, range]] = {
    "all right": ({"zero_std_share": turn(0.2, 0.97)}, "zero_std_groups", range(75, 95)),
    "all wrong from the start": (
        {"zero_std_share": flat(1.0), "reward": flat(0.01), "kl": flat(0.1)},
        "zero_std_groups",
        range(20, 21),
    ),
    "certain of what is wrong": (
        {"entropy": turn(1.8, 0.01), "reward": turn(0.1, 0.4, at=0, over=50)},
        "entropy_collapse",
        range(70, 100),
    ),
    "noise": ({"entropy": turn(1.0, 6.0), "reward": flat(0.3), "kl": flat(0.1)}, "entropy_growth", range(60, 80)),
    "away from the reference": (
        {"kl": turn(0.3, 4.0, over=60), "reward": turn(0.1, 0.5, at=0, over=50)},
        "kl_growth",
        range(80, 120),
    ),
    "away at once": ({"kl": turn(0.0, 4.0, at=3), "reward": flat(0.5)}, "kl_growth", range(20, 30)),
    "longer and longer": ({"truncated_share": turn(0.02, 0.9)}, "length_growth", range(60, 80)),
    "long after it was short": (
        {"truncated_share": lambda step: max(turn(0.9, 0.0, at=0)(step), turn(0.0, 0.9, at=60)(step))},
        "length_growth",
        range(70, 90),
    ),
    "no more thoughts": (
        {"completion_length": turn(200, 6), "reward": flat(0.5), "entropy": flat(1.0), "kl": flat(0.1)},
        "length_collapse",
        range(70, 95),
    ),
    "empty answers": ({"completion_length": turn(2.2, 1.0)}, "length_collapse", range(70, 90)),
    "reward lost": (
        {"reward": lambda step: min(HEALTHY["reward"](step), turn(0.6, 0.05)(step)), "kl": flat(0.2)},
        "reward_collapse",
        range(65, 80),
    ),
    "reward lost below 0": (
        {"reward": lambda step: max(-1.0, turn(-0.9, -0.1, at=0)(step) + turn(0.0, -0.8)(step)), "kl": flat(0.2)},
        "reward_collapse",
        range(60, 85),
    ),
}


def test_every_sign_of_the_steps_has_a_case() -> None:
    assert {sign for _, sign, _ in CASES.values()} == SIGNS - {"invalid_answers"}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_collapses_is_told_once_and_in_time(case: str, seed: int) -> None:
    curves, sign, told = CASES[case]
    found = signs(rows(curves, 140, seed=seed))
    assert found.keys() == {sign}
    assert found[sign] in told


SOUND: Mapping[str, Mapping[str, Curve]] = {
    "as it should be": {},
    "nothing is learnt yet": {"reward": flat(0.1), "entropy": flat(1.8), "kl": flat(0.01)},
    "sure of what is right": {"entropy": turn(1.8, 0.01), "reward": turn(0.1, 0.95, at=0, over=80)},
    "sure while it still learns": {"entropy": turn(1.8, 0.01), "reward": turn(0.1, 0.7, at=0, over=140)},
    "far from the reference, and better for it": {"kl": turn(0.1, 3.0, over=90), "reward": turn(0.1, 0.9, over=90)},
    "cut at first": {"truncated_share": turn(0.9, 0.0, at=0), "completion_length": turn(4.0, 2.0, at=0)},
    "shorter and better": {"completion_length": turn(200, 6), "reward": turn(0.2, 0.9)},
    "a third of the groups is dead": {"zero_std_share": flat(0.35)},
    "harder rows": {"reward": turn(0.8, 0.55, over=5), "kl": flat(0.3)},
    "one step of a huge KL": {"kl": lambda step: 1e6 if step == 70 else 0.3},
    "negative rewards": {"reward": turn(-0.9, -0.2, at=0, over=100)},
    "no reward at all": {"reward": flat(0.0), "kl": flat(0.0)},
}


@pytest.mark.parametrize("case", SOUND)
def test_a_sound_run_is_not_warned_of(case: str) -> None:
    for seed in range(20):
        assert signs(rows(SOUND[case], 140, noise=0.1, seed=seed)) == {}


def test_what_is_no_number_is_no_sign() -> None:
    made = rows({}, 100)
    for row in made[30:]:
        row |= {"reward": None, "kl": math.nan, "entropy": math.nan, "completion_length": math.nan}
    assert signs(made) == {}
    assert signs([{"step": step, "reward": 0.5} for step in range(100)]) == {}, "of a version with other columns"


def test_a_sign_is_told_again_only_after_it_was_gone() -> None:
    """It flickers for 40 steps and is told once; gone for 60 steps, it is told anew."""

    def flicker(step: int) -> float:
        if step < 60:
            return 0.93 if step % 6 < 3 else 0.88
        return 0.1 if step < 120 else 0.95

    watch = CollapseWatch(CONFIG)
    told = [one for row in rows({"zero_std_share": flicker}, 180, noise=0.0) for one in watch.observe(row)]
    assert [one.kind for one in told] == ["zero_std_groups"] * 2
    assert told[0].step == WINDOW
    assert 120 < told[1].step < 145


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_knows_what_was_told(case: str) -> None:
    """The records decide, whichever start reads them."""
    curves, _, _ = CASES[case]
    whole = rows(curves, 140)
    watch, resumed = CollapseWatch(CONFIG), CollapseWatch(CONFIG)
    told = [one for row in whole for one in watch.observe(row)]
    for row in json.loads(json.dumps(whole[:100])):
        resumed.observe(row)
    after = [one for row in whole[100:] for one in resumed.observe(row)]
    assert [one for one in told if one.step > 100] == after
    assert watch.told == resumed.told


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ([(0, 0.0, 400), (50, 0.02, 400), (100, 0.5, 400)], [100]),
        ([(0, 0.9, 400), (50, 0.1, 400), (100, 0.0, 400)], []),
        ([(0, 0.9, 400), (50, 0.0, 400), (100, 0.4, 400), (150, 0.5, 400)], [100]),
        ([(0, 0.0, 400), (50, 0.4, 400), (100, 0.1, 400), (150, 0.5, 400)], [50, 150]),
        ([(0, 0.0, 10), (50, 0.4, 10)], []),  # four rows of ten
        ([(0, 0.0, 10), (50, 0.9, 10)], [50]),
        ([(0, None, 400), (50, None, 400)], []),
    ],
)
@pytest.mark.parametrize("measure", ["invalid_rate", "out_of_list_rate"])
def test_invalid_answers(shares: list[tuple[int, float | None, int]], told: list[int], measure: str) -> None:
    watch = CollapseWatch(CONFIG)
    found = [
        one
        for step, share, count in shares
        for one in (
            *watch.observe_evaluation(step, {"set": "held-out", measure: share, "rows": count}),
            *watch.observe_evaluation(step, {"set": "new", measure: 1.0 if step else 0.0, "rows": count}),
        )
    ]
    assert [one.step for one in found] == told
    assert {one.kind for one in found} <= {"invalid_answers"}


GIVEN = [
    Config.model_validate({"method": "exact"}),
    Config.model_validate({"method": "sft", "learner": {"beta": 0}}),
]


@pytest.mark.parametrize("config", GIVEN, ids=["exact", "sft"])
def test_of_given_answers_only_reward_and_kl_can_collapse(config: Config) -> None:
    for curves, sign, _ in CASES.values():
        quiet = {} if sign in ("reward_collapse", "kl_growth") else signs(rows(curves, 140), config)
        assert quiet == {}
    assert signs(rows(CASES["reward lost"][0], 140), config).keys() == {"reward_collapse"}


@pytest.mark.parametrize(
    ("functions", "most"),
    [
        ({"accuracy": 1.0}, 1.0),
        ({"accuracy": 1.0, "format": 0.5, "repetition": 2.0}, 1.5),
        ({"accuracy": -1.0}, None),
        ({"accuracy": 1.0, "my.rewards:score": 1.0}, None),
        ({"accuracy": 1.0, "model:some/model": 0.0}, 1.0),
    ],
)
def test_the_largest_reward(functions: dict[str, float], most: float | None) -> None:
    assert find_largest_reward(Config.model_validate({"reward": {"functions": functions}})) == most


RUNS: Mapping[str, dict[str, Any]] = {
    "default": {},
    "without KL": {"learner": {"beta": 0.0}},
    "steered": {"objective": {"kl_target": 0.1, "entropy_bonus": 0.01, "entropy_floor": 0.2}},
    "thinks": {"data": {"mode": "think"}, "rollout": {"temperature": 0.7}},
    "thinks in form": {"data": {"mode": "think"}, "reward": {"functions": {"accuracy": 1.0, "format": 0.5}}},
    "each": {"reward": {"normalise": "each", "functions": {"accuracy": 1.0, "my.rewards:score": -0.5}}},
    "signal": {"signal": {"max_prompts": 2, "skip_solved": 3, "max_group_size": 8}},
    "buffer": {"objective": {"overlong_buffer": 64}},
    "huge": {"rollout": {"group_size": 16384, "max_completion_tokens": 2**31 - 1}},
    "tiny": {"rollout": {"max_completion_tokens": 1, "prompts_per_step": 2}},
    "exact": {"method": "exact"},
    "exact of two": {"method": "exact", "rollout": {"prompts_per_step": 2}},
    "exact beside samples": {"method": "exact", "exact": {"sampled_share": 0.25}},
    "sft": {"method": "sft", "learner": {"beta": 0.0}},
}


@pytest.mark.parametrize("sign", sorted(SIGNS))
@pytest.mark.parametrize("run", RUNS)
def test_every_advice_is_of_keys_that_exist_and_of_values_that_are_accepted(sign: str, run: str) -> None:
    """Each setting, typed as it is told, gives another configuration than that of the run."""
    config = Config.model_validate(RUNS[run])
    if not config.sampled_prompts and sign not in ("reward_collapse", "kl_growth", "invalid_answers"):
        return  # never told of given answers
    advice, settings = advise(sign, config), list_settings(sign, config)
    keys = set(flatten(config))
    assert set(re.findall(r"\b[a-z]+\.[a-z_]+\b", advice)) - keys <= {"samples.jsonl"}
    for setting in settings:
        assert setting in advice
        key, _, value = setting.partition("=")
        section, _, name = key.partition(".")
        raw = config.model_dump(mode="json")
        raw[section][name] = yaml.safe_load(value)
        assert flatten(Config.model_validate(raw))[key] != flatten(config)[key]


def test_a_sign_is_a_line_an_event_and_a_row_of_the_page(tmp_path: Path) -> None:
    """Of a run that is resumed while it lasts: told by the first start alone."""
    config = CONFIG.model_copy(update={"run_dir": str(tmp_path / "run")})
    folder = RunFolder.open(config, now=datetime.now(UTC))
    folder.begin(config)
    printed = []
    for first, end in ((0, 30), (30, 45)):
        out = io.StringIO()
        tracker = Tracker(folder, config, LineConsole(config, out), first_step=first)
        for step in range(first, end):
            tracker.write(record(step, zero_std_share=0.95, reward=0.02))
        summary = tracker.summary(outcome="finished", steps=45, wall_seconds=1, startup_seconds=1, weights_version=45)
        tracker.close(summary)
        assert summary.warnings == ("zero_std_groups",)
        assert "  warnings      zero_std_groups: the report says what to change" in out.getvalue().splitlines()
        printed += [line for line in out.getvalue().splitlines() if line.startswith("warning: ")]
    (line,) = printed
    assert line.startswith("warning: after 20 steps: 95% of the groups teach nothing: all answers earn the same")
    assert line.endswith("Try signal.max_prompts=3 or signal.skip_solved=2 or rollout.group_size=8")
    events = [json.loads(row) for row in (folder.path / "events.jsonl").read_text().splitlines()]
    (event,) = (row for row in events if row["kind"] == "zero_std_groups")
    assert event["step"] == 20
    page = write_report([folder.path], seconds=0.0).read_text()
    (cell,) = re.findall(r'<tr class="trouble"><th>zero_std_groups</th>.*?</tr>', page)
    assert "or rollout.group_size=8" in cell
