"""The README is true: its loop is the loop, its commands parse, its keys exist, its recipe is accepted."""

from __future__ import annotations

import inspect
import re
import shlex
import shutil
import textwrap
from pathlib import Path

import pytest

from common.config import cli
from common.config.schema import Config
from common.data.build.__main__ import main as build
from common.data.lint import main as lint
from common.errors import ModelError
from learner.audit.__main__ import main as audit
from learner.evaluation import args as evaluation_args
from learner.main import main, train
from learner.report.__main__ import main as report
from tests.helpers import fake_run, jobs, readme
from tests.helpers.pictures import draw_shapes


def test_the_loop_shown_is_the_loop() -> None:
    (shown,) = readme.blocks("python")
    assert textwrap.indent(shown, "    ") in inspect.getsource(train)


@pytest.mark.parametrize("command", [line for line in readme.commands() if "learner.main" in line or "ARGS=" in line])
def test_every_command_line_parses(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shapes.yaml").write_text(readme.recipe())
    (tmp_path / "deploy").symlink_to(jobs.ROOT / "deploy")
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    if words[0] == "make":
        arguments = shlex.split(words[-1].removeprefix("ARGS="))
    else:
        arguments = [word for word in words[words.index("learner.main") + 1 :] if word != "…"]
        arguments = arguments[:-1] if arguments[-1:] == ["--config"] else arguments
    assert cli.parse(arguments).config.steps


def test_every_entry_point_shown_is_tried() -> None:
    shown = {
        word for line in readme.commands() for word in line.split() if re.fullmatch(r"(learner|common)[.][\w.]+", word)
    }
    assert shown == {
        "learner.main",
        "learner.evaluate",
        "learner.report",
        "learner.audit",
        "common.data.build",
        "common.data.lint",
    }


def read_arguments(module: str) -> list[list[str]]:
    """Return the arguments of every command of the README that runs `module`."""
    lines = [shlex.split(line) for line in readme.commands() if f" {module} " in line]
    return [words[words.index(module) + 1 :] for words in lines]


@pytest.mark.slow
def test_a_folder_of_pictures_becomes_a_set_that_a_recipe_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run both commands, the second up to the cluster, and the linter between them."""
    to_build, to_lint = read_arguments("common.data.build")[0], read_arguments("common.data.lint")[0]
    (to_train,) = [words for words in read_arguments("learner.main") if "data.path=sets/photos" in words]
    draw_shapes(tmp_path / "photos", each=12)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert build(to_build) == 0
    assert lint(to_lint) == 0
    (tmp_path / "deploy").symlink_to(jobs.ROOT / "deploy")
    assert main([*to_train, "rollout.prompts_per_step=8", "--dry-run"]) == 0
    assert "3 labels" in capsys.readouterr().out


@pytest.mark.slow
def test_evaluations_and_reports_are_asked_for_as_they_are_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run folders are made up: reports need no model, and evaluations are parsed up to a missing export."""
    monkeypatch.chdir(tmp_path)
    fake_run.main(4, 0.0)
    for name in ("a", "b", "c"):
        shutil.copytree((tmp_path / "runs/latest").resolve(), tmp_path / "runs" / name)
    for words in read_arguments("learner.report"):
        assert report(words) == 0
    assert (tmp_path / "runs/latest/report.html").exists() and (tmp_path / "compare.html").exists()
    for words in read_arguments("learner.audit"):
        assert audit(words) == 2  # such a run kept no books
    first, *of_runs = read_arguments("learner.evaluate")
    assert list(evaluation_args.parse(first).models) == ["embedded:tiny"]
    for words in of_runs:  # these runs exported nothing
        with pytest.raises(ModelError, match="runs/"):
            evaluation_args.parse(words)


def test_every_configuration_key_named_exists() -> None:
    sections = {name: field.annotation for name, field in Config.model_fields.items()}
    keys = {f"{name}.{key}" for name, section in sections.items() for key in getattr(section, "model_fields", ())}
    mentioned = re.findall(rf"`(?:--)?((?:{'|'.join(sections)})\.[a-z_0-9-]+)", readme.TEXT)
    named = {key.replace("-", "_") for key in mentioned} - {"learner.main", "evaluation.json", "evaluation.md"}
    assert len(named) > 15
    assert named <= keys


@pytest.mark.slow
def test_the_recipe_is_accepted_with_a_folder_of_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_shapes(tmp_path / "pictures", each=12)
    (tmp_path / "shapes.yaml").write_text(readme.recipe())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["--config", "shapes.yaml", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "27 rows to learn from, 9 held out, 3 labels" in printed
    assert "nothing was started" in printed
    assert not (tmp_path / "runs").exists()
