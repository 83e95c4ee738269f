"""Which sets are evaluated, on what, and what preflight says to a set that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.config import cli
from common.config.schema import Config
from common.data.image import read_pixels
from common.data.sources import load, load_held_out
from common.errors import ConfigError, DataError
from learner.driver.preflight.run_inputs import run_preflight
from learner.evaluation.sets import read_sets
from tests.helpers.makers import parquet, row

B2N = ("data.split=base_train", "data.eval_split=base_test", 'evaluation.sets={base: "@base_test", new: "@new_test"}')


def config(*words: str) -> Config:
    return cli.parse(words).config


def test_the_held_out_rows_come_first_and_are_read_once() -> None:
    wanted = config(*B2N)
    held_out = load_held_out(wanted.data)
    sets = read_sets(wanted, held_out)
    assert list(sets) == ["held-out", "base", "new"]
    assert sets["held-out"] is sets["base"] is held_out
    assert [sets[name].labels for name in ("base", "new")] == [
        ("four", "one", "three", "two", "zero"),
        ("eight", "five", "nine", "seven", "six"),
    ]


def test_a_set_elsewhere_is_taken_whole(tmp_path: Path) -> None:
    """Rows held out of the run's own data are its own matter."""
    file = parquet(tmp_path / "x.parquet", [row()] * 8)
    wanted = config(f"evaluation.sets={{other: {file}}}", "data.eval_fraction=0.5", "data.eval_split=null")
    assert [len(source) for source in read_sets(wanted, None).values()] == [8]


@pytest.mark.slow
def test_closed_set_where_every_question_offers_a_list(tmp_path: Path) -> None:
    open_ended = parquet(tmp_path / "open.parquet", [row(problem="What is it?", solution="cat")])
    words = (*B2N, f"evaluation.sets={{open: {open_ended}}}")
    said: list[str] = []
    inputs = run_preflight(config(*words), say=said.append)
    assert [(one.name, one.closed_set) for one in inputs.sets] == [("held-out", True), ("open", False)]
    assert any("open: no closed-set accuracy: 1 of 1 questions" in line for line in said)
    with pytest.raises(DataError, match="offer no list to choose from"):
        run_preflight(config(*words, "evaluation.closed_set=true"), say=said.append)
    for quiet in ("evaluation.closed_set=false", "data.mode=adaptive"):
        inputs = run_preflight(config(*B2N, quiet, "data.max_prompt_tokens=900"), say=said.append)
        assert not any(one.closed_set for one in inputs.sets)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (["evaluation.sets={H: '@test'}"], ConfigError, "needs another name"),
        (["evaluation.sets={held-out: '@test'}"], ConfigError, "needs another name"),
        (["evaluation.sets={a/b: '@test'}"], ConfigError, "needs another name"),
        (["evaluation.sets={x: '@nowhere'}"], DataError, "evaluation set x: .* has no split nowhere"),
        (["evaluation.sets={x: ./nowhere}"], DataError, "evaluation set x: .* is no data set"),
        (["checkpoint.best_by=acuracy"], ConfigError, "best_by = acuracy is not measured"),
        (["checkpoint.best_by=H"], ConfigError, "best_by = H is not measured"),
        (["checkpoint.best_by=closed_set", "evaluation.closed_set=false"], ConfigError, "is not measured"),
        (["checkpoint.best_by=new/accuracy"], ConfigError, "is not measured"),
        (["evaluation.stop_after=1", "data.eval_split=null"], ConfigError, "stop_after = 1, and nothing is evaluated"),
        (["evaluation.samples=2", "evaluation.pass_at_k=[1, 4]"], ConfigError, "no k above the samples"),
        (["evaluation.pass_at_k=[1]"], ConfigError, "no k above the samples"),
    ],
)
def test_refused_in_preflight(words: list[str], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        run_preflight(config(*words), say=lambda line: None)


@pytest.mark.parametrize("best_by", ["H", "H/closed_set", "new/macro_f1", "lenient", "held-out/closed_set"])
def test_the_best_may_be_by_any_measure_of_any_set(best_by: str) -> None:
    run_preflight(config(*B2N, f"checkpoint.best_by={best_by}"), say=lambda line: None)


def test_training_and_evaluation_of_the_digits_do_not_meet() -> None:
    wanted: Any = config(*B2N).data

    def pixels(split: str) -> set[bytes]:
        source = load(wanted, split=split)
        images = [source[index].image for index in range(len(source))]
        return {read_pixels(image).tobytes() for image in images if image is not None}

    assert not pixels("base_train") & (pixels("base_test") | pixels("new_test"))
