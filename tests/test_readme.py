"""The README is true: its loop is the loop, its commands parse, its files are written, its recipe is accepted."""

from __future__ import annotations

import inspect
import re
import shlex
import textwrap
from pathlib import Path

import pytest

from common import cli
from learner.main import main, train
from tests import jobs, readme
from tests.pictures import draw_shapes


def test_the_loop_shown_is_the_loop() -> None:
    (shown,) = readme.blocks("python")
    assert textwrap.indent(shown, "    ") in inspect.getsource(train)


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^(\w+):", (jobs.ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {command.split()[1] for command in readme.commands() if command.startswith("make ")}
    assert {"train", "test", "lint"} <= named <= targets


@pytest.mark.parametrize("command", [line for line in readme.commands() if "learner.main" in line or "ARGS=" in line])
def test_every_command_line_parses(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shapes.yaml").write_text(readme.recipe())
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    if words[0] == "make":
        arguments = shlex.split(words[-1].removeprefix("ARGS="))
        if words[1] == "test":
            assert arguments == ["-m", "not engine"]
            return
    else:
        arguments = [word for word in words[words.index("learner.main") + 1 :] if word != "…"]
        arguments = arguments[:-1] if arguments[-1:] == ["--config"] else arguments
    assert cli.parse(arguments).config.steps


def test_every_file_named_exists() -> None:
    for path in re.findall(r"`((?:deploy|learner|rollout|common|tests)/[\w./-]+)`", readme.TEXT):
        assert (jobs.ROOT / path).exists(), path


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
