"""`python -m learner.evaluate`: what it refuses, what it writes, and that it writes the same when run again."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from learner.driver.places import Places
from learner.evaluate import main
from learner.evaluation.args import parse
from learner.evaluation.measures import measure
from learner.evaluation.results import make_answer_rows, make_cls_rl_json, make_matrix, make_table
from learner.evaluation.verdicts import Answer, ClosedScores, Verdict
from tests.helpers import sets, warm_python
from tests.helpers.makers import parquet, row

TINY = ["--model", "embedded:tiny"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "no model is named"),
        (["--model"], "--model has no value"),
        (["--model", ""], "--model is empty"),
        (["--model="], "--model is empty"),
        ([*TINY, "--data", " "], "--data is empty"),
        ([*TINY, "--dry_run"], "there is no option --dry_run"),
        (["--model", "{run}/config.yaml"], "--model .*/config.yaml is a file"),
        ([*TINY, "--out", "/dev/null/x"], r"--out: (.|\n)*/dev/null/x"),
        (["--model", "some/nowhere", "--data", "@test"], "model.path was changed but no recipe was given"),
        (
            ["--config", "deploy/recipes/digits.yaml", "--model", "./nowhere", "--data", "@test"],
            "there is no ./nowhere",
        ),
        ([*TINY, "--data", "@nowhere"], "has no split nowhere"),
        ([*TINY, "--data", "{open}", "--data", "{halves}@nosplit", "--dry-run"], "has no split nosplit"),
        ([*TINY, "--data", "{halves}@nosplit"], "has no split nosplit"),
        ([*TINY, "--plan"], "an evaluation takes no --plan"),
        ([*TINY, "--print-config"], "an evaluation takes no --print-config"),
        ([*TINY, "--data", "{empty}"], "evaluation set empty: .* has no rows"),
        ([*TINY, "--data", "@test", "--data", "x/test@test"], "two sets have one name"),
        ([*TINY, "--data", ""], "--data is empty"),
        ([*TINY, "--data="], "--data is empty"),
        ([*TINY, "--data", "H=@test"], "needs another name"),
        ([*TINY, "data.eval_split=null"], "there is nothing to evaluate on"),
        ([*TINY, "--samples", "2", "evaluation.pass_at_k=[4]"], "no k above the samples"),
        ([*TINY, "--data", "{open}", "--closed-set"], "1 of 1 questions of set open offer no list"),
        ([*TINY, "--data", "@test", "--data", "@new_test", "--cls-rl-format", "x.json"], "answers of one model to one"),
        ([*TINY, "--cls-rl-format", "x.json"], "1 models and 0 sets"),
        ([*TINY, "--seed-format=x.json"], "--seed-format is now called --cls-rl-format"),
        ([*TINY, "--data", "@test", "data.max_prompt_tokens=3"], "over 3"),
        ([*TINY, "--data", "x={long}"], "labels of x cannot be used"),
        (["--model", "{run}"], "the run .* has no model to evaluate"),
        (["--model", "{adapted}"], "an adapter alone"),
        (["--model", "{run}/checkpoints/step-000003"], "is a checkpoint, which only its run can read"),
    ],
)
def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    places = {
        "empty": parquet(tmp_path / "empty.parquet", [row()]),
        "long": parquet(tmp_path / "long.parquet", [row(solution="an unheard-of creature", problem="What?")]),
        "open": parquet(tmp_path / "open.parquet", [row(problem="What?")]),
        "halves": str(tmp_path / "halves"),
        "run": str(tmp_path / "run"),
        "adapted": str(tmp_path / "adapted"),
    }
    for name in ("train", "test"):
        parquet(tmp_path / f"halves/{name}.parquet", [row()])
    empty(Path(places["empty"]))
    for name in ("run", "adapted"):
        (tmp_path / name / "export").mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("name: x\n")
    (tmp_path / "adapted/export/adapter_config.json").write_text("{}")
    (tmp_path / "run/checkpoints/step-000003").mkdir(parents=True)
    assert main([f"--out={tmp_path}/out", *(word.format(**places) for word in words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "remedy: " in error and "Traceback" not in error
    assert re.search(says, error), error
    assert not (tmp_path / "out").exists()


def test_a_dry_run_checks_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learner.driver.cluster.connect", lambda *_, **__: pytest.fail("Ray was asked"))
    out = tmp_path / "out"
    assert main([*TINY, "--data", "@test", f"--out={out}", "--dry-run"]) == 0
    assert "a dry run: nothing was started" in capsys.readouterr().out
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").touch()
    assert main([*TINY, "--data", "@test", f"--out={out}", "--dry-run"]) == 2


def test_a_folder_that_holds_something_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").touch()
    assert main([*TINY, "--data", "@test", f"--out={tmp_path}"]) == 2
    assert "the run folder is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def empty(file: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(file).slice(0, 0), file)


def test_a_ctrl_c_that_is_swallowed_while_engines_start_ends_the_evaluation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As Ray does, and before anybody waits for an engine."""
    done = []

    class Fleet:
        def __init__(self, *_: object, **__: object) -> None:
            with suppress(BaseException):
                signal.raise_signal(signal.SIGINT)

        def ready(self) -> None:
            done.append("ready")

        def close(self) -> None:
            done.append("closed")

    places = Places(engines=(), learner=None, rewards=())
    monkeypatch.setattr("learner.driver.cluster.connect", lambda *_: nullcontext())
    monkeypatch.setattr("learner.driver.places.reserve_places", lambda *_, **__: nullcontext(places))
    monkeypatch.setattr("learner.driver.hosts.check_hosts", lambda *_: None)
    monkeypatch.setattr("learner.driver.hosts.share_model", lambda path, *_, **__: path)
    monkeypatch.setattr("rollout.fleet.fleet.RolloutFleet", Fleet)
    alarm = signal.getsignal(signal.SIGALRM)
    assert main([*TINY, "--data", "@test", "--out", str(tmp_path / "out")]) == 130
    assert done == ["closed"]
    signal.signal(signal.SIGALRM, alarm)


def test_a_run_brings_its_export_and_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "run/export").mkdir(parents=True)
    (tmp_path / "run/export/config.json").write_text("{}")
    (tmp_path / "run/config.yaml").write_text(
        "data: {image_size: 77}\nlora: {rank: 4}\nlearner: {beta: 0.1}\nseed: 9\n"
    )
    for name in ("run", "run/export"):
        asked = parse(["--model", str(tmp_path / name), "--data", "x=a/b@c", "seed=3", "--samples=8"])
        (config,) = asked.models.values()
        assert config.model.path == str(tmp_path / "run/export")
        assert (config.data.image_size, config.seed, config.evaluation.samples) == (77, 3, 8)
        assert (config.lora.rank, config.learner.beta, config.model.revision) == (0, 0.0, None)
        assert config.evaluation.sets == {"x": "a/b@c"} and not asked.held_out


def test_sets_are_named_after_their_half_their_place_or_their_split() -> None:
    places = [
        "embedded:digits@test",
        "a/dtd-4shot-b2n@base_test",
        "a/b@new_test",
        "x/mnist@test",
        "@train",
        "y/z.parquet",
    ]
    asked = parse([*TINY, *(word for place in places for word in ("--data", place))])
    (config,) = asked.models.values()
    assert list(config.evaluation.sets) == ["digits", "base", "new", "mnist", "train", "z"]


def test_without_sets_the_configurations_own_are_evaluated() -> None:
    asked = parse([*TINY, "--config", "deploy/recipes/digits-b2n.yaml"])
    (config,) = asked.models.values()
    assert asked.held_out and config.evaluation.sets == {"base": "@base_test", "new": "@new_test"}


def verdicts() -> list[Verdict]:
    right = Answer(
        text="<answer>tiger shark</answer>", strict=False, lenient=True, well_formed=True, named="tiger shark"
    )
    wrong = Answer(text="cat|dog\u202e", strict=False, lenient=False, well_formed=True, named="")
    scores = ClosedScores(candidates=("tiger", "cat"), logprobs=(-1.0, -2.0), lengths=(1, 1))
    return [
        Verdict(id="test/0", problem="A?", label="tiger", listed=True, greedy=right, samples=(wrong,), closed=scores),
        Verdict(id="test/1", problem="B?", label="cat", listed=True, greedy=wrong, samples=(right,), closed=scores),
    ]


def test_the_format_of_cls_rl_is_lenient_and_in_percent() -> None:
    assert make_cls_rl_json(verdicts()) == {
        "accuracy": 50.0,
        "results": [
            {
                "question": "A?",
                "ground_truth": "tiger",
                "model_output": "<answer>tiger shark</answer>",
                "extracted_answer": "tiger shark",
                "correct": True,
            },
            {
                "question": "B?",
                "ground_truth": "cat",
                "model_output": "cat|dog\u202e",
                "extracted_answer": "cat|dog\u202e",
                "correct": False,
            },
        ],
    }


def test_an_answer_is_a_line_and_the_greedy_one_has_the_scores() -> None:
    first, second = make_answer_rows("m", "s", verdicts()[0])
    assert (first["sample"], first["named"], first["strict"], first["lenient"]) == (0, "tiger shark", False, True)
    assert (first["closed_set"], first["logprobs"]) == ("tiger", {"tiger": -1.0, "cat": -2.0})
    assert (second["sample"], second["named"]) == (1, None) and "logprobs" not in second


def test_tables() -> None:
    lines = [{"model": m, **measure(verdicts(), name=s).row} for m in ("a|b", "c\n") for s in ("x", "y")]
    table = list(make_table(lines))
    assert table[0].startswith("| model | set | rows | accuracy | lenient | closed set | macro f1 |")
    assert table[0].endswith("| majority at/1 | pass at/1 |")
    assert table[2].startswith("| a\\|b | x | 2 | 0.000 (0.000-0.000) | 0.500 (0.000-1.000) | 0.500 (")
    assert "\n" not in "".join(table) and {line.replace("\\|", "").count("|") for line in table} == {14}
    assert make_matrix(lines) == [
        "| accuracy | x | y |\n|---|---|---|\n| a\\|b | 0.000 | 0.000 |\n| c\\n | 0.000 | 0.000 |"
    ]
    assert make_matrix(lines[:2]) == []


def run(out: Path, *words: str) -> Path:
    command = [*warm_python.COMMAND, "-m", "learner.evaluate", "--out", str(out), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "error" not in done.stderr
    return out


@pytest.mark.engine
def test_a_matrix_of_three_real_sets_and_the_same_again(tmp_path: Path, digits_model: Path) -> None:
    """Two models, one made for the first set. To both the textures' labels are single bytes, and candidates all the
    same. Alone, and asked again, a model gives the very bytes."""
    digits = sets.write_digits(tmp_path / "digits", per_class=8, test_per_class=2)
    places = [digits, sets.write_mnist(tmp_path / "mnist", per_class=8, test_per_class=2)]
    places.append(sets.write_textures(tmp_path / "textures", crops=4, test_crops=4, size=32))
    words = ["--config", "deploy/recipes/digits.yaml", f"data.path={digits}", "data.max_prompt_tokens=400"]
    words += ["rollout.max_completion_tokens=8", "rollout.cpus_per_engine=0.5", "learner.cpus_per_rank=0.5"]
    words += [*TINY, *(word for place in places for word in ("--data", f"{place}@test"))]
    both = run(tmp_path / "both", *words, "--model", str(digits_model), "--samples", "4")
    found = json.loads((both / "evaluation.json").read_text())
    assert [(line["model"], line["set"], line["rows"]) for line in found["lines"]] == [
        (model, name, rows)
        for model in ("embedded:tiny", str(digits_model))
        for name, rows in (("digits", 20), ("mnist", 20), ("textures", 12))
    ]
    for line in found["lines"]:
        assert line["closed_set"] is not None and 0 <= line["brier"] <= 2
        assert line["pass_at"].keys() == line["majority_at"].keys() == {"1", "2", "4"}
        assert line["pass_at"]["1"] <= line["pass_at"]["2"] <= line["pass_at"]["4"]
    assert found["lines"][0]["invalid_rate"] < 0.5  # it was made for these
    assert "| accuracy | digits | mnist | textures |" in (both / "evaluation.md").read_text()
    answers = (both / "answers.jsonl").read_bytes()
    assert len(answers.splitlines()) == 2 * 52 * 5
    assert len({about["weights"] for about in found["models"].values()}) == 2
    again = run(tmp_path / "again", *words, "--samples", "4")
    expected = [line for line in answers.splitlines() if json.loads(line)["model"] == "embedded:tiny"]
    assert (again / "answers.jsonl").read_bytes().splitlines() == expected
    _assert_scores_are_the_engines(expected)


def _assert_scores_are_the_engines(lines: list[bytes]) -> None:
    """Labels of one token: where greedy decoding says one, it is the learner's choice among the candidates."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    said = [row for row in rows if row["sample"] == 0 and row["set"] == "digits" and row["named"]]
    assert said
    agreeing = [row for row in said if row["named"] == row["closed_set"]]
    assert len(agreeing) / len(said) > 0.9
