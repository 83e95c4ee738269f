"""The table of solve rates: what it counts, which rows it passes over, and that nothing is forgotten on resume."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import pytest

from common.config.schema import Config
from common.errors import CheckpointError
from common.types import ScoredGroup
from learner.driver.control.solve_rates import SolveRates, find_chance
from tests.helpers.fake_run import scored

ROW = "train/17"  # of `scored`
RIGHT, HALF, WRONG = ("seven", "seven"), ("seven", "one"), ("one", "nine")


def make_table(**signal: Any) -> SolveRates:
    return SolveRates(Config.model_validate({"signal": signal}))


def visit(table: SolveRates, texts: tuple[str, ...], epoch: int = 0) -> None:
    group: ScoredGroup = scored(texts)
    table.observe([group], {ROW: epoch})


def test_later_visits_count_more_and_rates_are_drawn_to_the_mean() -> None:
    """A table by hand: two right of two, one of two, none of four."""
    table = make_table()
    assert table.estimate([ROW, "train/1"]) == [0.5, 0.5], "nothing is known"
    visit(table, RIGHT)
    assert table.estimate([ROW, "train/1"]) == [1.0, 1.0], "what is not known is like the rest"
    visit(table, HALF)
    assert table.estimate([ROW]) == [pytest.approx((2 + 2 / 3) / 4)]  # 1 + 1 of 1 + 2
    visit(table, (*WRONG, *WRONG))
    assert table.estimate([ROW]) == [pytest.approx((1 + 1 / 5.5) / 6.5)]  # 1 of 1.5 + 4


def test_a_mean_weighs_rows_by_their_completions() -> None:
    table = make_table()
    table.restore({"a": [4, 4, 1, 0], "b": [0, 12, 0, 0]})
    assert table.estimate(["a", "b", "c"]) == pytest.approx([4.25 / 5, 0.25 / 13, 0.25])


def test_what_is_right_follows_the_mode_and_the_aliases_not_the_rewards() -> None:
    data = {"mode": "think", "aliases": {"seven": ["7"]}}
    table = SolveRates(Config.model_validate({"data": data, "reward": {"functions": {"format": 1.0}}}))
    visit(table, ("<think>a</think>\n<answer>7</answer>", "<think>a</think>\n<answer>Seven</answer>", "seven", "7"))
    (record,) = table.state().values()
    assert record[:2] == (2, 4)


def test_given_answers_are_not_the_policys() -> None:
    from dataclasses import replace

    table = make_table()
    group = scored(RIGHT)
    table.observe([replace(group, group=replace(group.group, origin="given"))], {ROW: 0})
    assert table.state() == {}


def test_a_solved_row_is_passed_over_for_so_many_epochs_and_then_asked_again() -> None:
    table = make_table(skip_solved=2, skip_epochs=3)

    def asked() -> list[int]:
        return [epoch for epoch in range(14) if table.wants(ROW, epoch)]

    visit(table, RIGHT, 4)
    assert asked() == list(range(14)), "once is not twice"
    visit(table, RIGHT, 5)
    assert [epoch for epoch in asked() if epoch > 5] == [9, 10, 11, 12, 13]
    visit(table, RIGHT, 9)
    assert [epoch for epoch in asked() if epoch > 9] == [13]
    visit(table, HALF, 13)
    assert table.wants(ROW, 14), "it is not solved any more"
    assert table.wants("train/1", 6), "never asked"


def test_without_the_options_every_row_is_wanted() -> None:
    table = make_table()
    for epoch in range(5):
        visit(table, RIGHT, epoch)
        assert table.wants(ROW, epoch + 1)


@pytest.mark.parametrize(("rate", "chance"), [(0, 0.1), (1, 0.1), (0.5, 1), (0.25, 0.75), (0.1, 0.36), (0.99, 0.1)])
def test_a_curriculum_asks_rows_as_often_as_they_can_be_learned(rate: float, chance: float) -> None:
    assert find_chance(rate) == pytest.approx(chance)
    table = make_table(curriculum="learnability")
    table.restore({ROW: [100 * rate, 100, 0, 0]})
    asked = Counter(table.wants(ROW, epoch) for epoch in range(2000))
    assert asked[True] / 2000 == pytest.approx(chance, abs=0.04)
    assert all(table.wants("train/1", epoch) for epoch in range(50)), "rows that were never asked are"


def test_draws_depend_on_seed_epoch_and_row_alone() -> None:
    def draws(table: SolveRates) -> list[bool]:
        return [table.wants(name, epoch) for name in ("a", "b") for epoch in range(40)]

    def make(seed: int) -> SolveRates:
        table = SolveRates(Config.model_validate({"seed": seed, "signal": {"curriculum": "learnability"}}))
        table.restore({"a": [1, 8, 0, 0], "b": [1, 8, 0, 0]})
        return table

    assert draws(make(1)) == draws(make(1)) != draws(make(2))
    assert draws(make(1))[:40] != draws(make(1))[40:]


def test_a_checkpoint_holds_the_table_as_it_was_then() -> None:
    table, other = make_table(skip_solved=1), make_table(skip_solved=1)
    visit(table, RIGHT, 3)
    visit(table, HALF, 4)
    saved = table.state()
    kept = json.dumps(saved)
    visit(table, RIGHT, 5)
    assert json.dumps(saved) == kept, "later steps do not change it"
    other.restore(json.loads(kept))
    visit(other, RIGHT, 5)
    assert json.dumps(other.state()) == json.dumps(table.state())
    assert other.estimate([ROW, "x"]) == table.estimate([ROW, "x"])


def test_hard_and_easy_rows_are_counted_as_they_change() -> None:
    table, other = make_table(), make_table()
    assert table.describe() == {}
    table.restore({str(rate): [1000 * rate, 1000, 0, 0] for rate in (0, 0.09, 0.1, 0.5, 0.9, 0.91, 1)})
    assert table.describe() == {"rows": 7, "hard": 2 / 7, "easy": 2 / 7}
    visit(table, RIGHT)
    assert table.describe() == {"rows": 8, "hard": 2 / 8, "easy": 3 / 8}
    visit(table, HALF)
    assert table.describe() == {"rows": 8, "hard": 2 / 8, "easy": 2 / 8}
    other.restore(table.state())
    assert other.describe() == table.describe()


@pytest.mark.parametrize(
    "planted",
    [
        {ROW: [math.nan, 4, 0, 0]},
        {ROW: [4, math.inf, 0, 0]},
        {ROW: [-1, 4, 0, 0]},
        {ROW: [5, 4, 0, 0]},
        {ROW: [0, 0, 0, 0]},
        {ROW: [1, 4, -1, 0]},
        {ROW: [1, 4, 0, 0.5]},
        {ROW: [1, 4, 0, -1]},
        {ROW: ["1", 4, 0, 0]},
        {ROW: [True, 4, 0, 0]},
        {ROW: [1, 4, 0]},
        {ROW: [1, 4, 0, None]},
        {"train/99": [1, 4, 0, 0]},
    ],
)
def test_a_table_that_no_run_wrote_is_refused_by_the_row(planted: Any) -> None:
    table = make_table()
    table.restore({ROW: [1, 4, 0, 0]}, {ROW})
    with pytest.raises(CheckpointError, match=f"table of solve rates.*\n.*got: +{min(planted)}"):
        table.restore(planted, {ROW})
    assert table.describe() == {"rows": 1, "hard": 0.0, "easy": 0.0}, "it is as before"
