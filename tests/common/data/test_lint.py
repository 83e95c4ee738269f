"""The linter as a command, on what lies on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.data.lint import main
from common.labels.candidates import with_candidates
from tests.helpers.makers import image_folder, noise, parquet, row


def test_warnings_leave_a_set_usable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = image_folder(tmp_path, {"train/tiger": 2, "train/tiger shark": 1, "test/tiger": 1})
    assert main([folder]) == 0
    out = capsys.readouterr().out
    assert "(train): 3 rows, 2 labels" in out and "(test): 1 rows, 1 labels" in out
    assert "warning: labels inside others as words" in out and "(1): 'tiger' in 'tiger shark'" in out
    assert main([f"{folder}@test"]) == 0
    assert "(train)" not in capsys.readouterr().out


def test_errors_refuse_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = image_folder(tmp_path, {"Cat": 1, "cat": 1})
    assert main([folder]) == 0
    assert main([folder, "--mode", "think"]) == 2
    assert "'Cat' / 'cat'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(image={"bytes": noise()[:-900], "path": None}), "image cannot be decoded"),
        (row(solution="bird"), "'bird' is not among the 2"),
        (row(problem=with_candidates("?", ["a, b", "c"]), solution="a, b"), "no list can hold: it has a comma"),
        (row(solution="cat</answer>"), "holds tag text"),
    ],
)
def test_what_stops_a_run_stops_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: dict[str, object], message: str
) -> None:
    assert main([parquet(tmp_path / "set.parquet", [row(), bad])]) == 2
    assert message in capsys.readouterr().err


def test_a_column_that_no_reward_function_can_be_called_with_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([parquet(tmp_path / "a.parquet", [row() | {"completions": "x"}])]) == 0
    assert "a column completions: with it no reward function can be called" in capsys.readouterr().out
    assert main([parquet(tmp_path / "b.parquet", [row() | {"completion": "x"}])]) == 0
    assert "completion" not in capsys.readouterr().out


def test_a_model_counts_tokens(digits_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["embedded:digits@test", "--model", str(digits_model), "--image-size", "56"]
    assert main(words) == 0
    assert "tokens of a label: 1 ('eight') to 1 ('zero')" in capsys.readouterr().out
    assert main([*words, "--max-prompt-tokens", "16"]) == 2
    assert "prompt of 17 tokens is over 16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "bounds"),
    [
        (("--image-size", "0"), ">= 4 and <= 4096"),
        (("--image-size", "-4"), ">= 4 and <= 4096"),
        (("--image-size", "100000"), ">= 4 and <= 4096"),
        (("--max-prompt-tokens", "0"), "integer >= 1"),
    ],
)
def test_an_option_out_of_bounds_is_named(
    words: tuple[str, str], bounds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["embedded:digits@test", *words]) == 2
    said = capsys.readouterr().err
    assert f"= {words[1]} ({words[0]}): must be" in said and bounds in said


@pytest.mark.parametrize("place", ["", "@test", " "])
def test_an_empty_path_is_not_the_current_folder(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image_folder(tmp_path, {"test/cat": 1, "test/dog": 1})
    monkeypatch.chdir(tmp_path)
    assert main([place]) == 2
    assert "is no path: it is empty" in capsys.readouterr().err
    assert main([".@test"]) == 0
