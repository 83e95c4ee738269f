"""Foreign text on a terminal: it moves no cursor, sets no title, reorders nothing, wherever it comes from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from common.command import run_command, say
from common.data import lint
from common.data.build import __main__ as build
from common.errors import DataError, ModelError
from learner import main as learner
from learner.report import __main__ as report
from tests.helpers.makers import encoded

# A title, colours, the C1 form of ESC [, a carriage return, a bell, bidi overrides, line separators, half a surrogate.
HOSTILE = "a\x1b]0;title\x07\x1b[2J\x9b31m\rb\u202ecod\u2066\u200fx\u2028y\x85z"
KEPT = "Käfer 猫 🐈 naïve"


def assert_harmless(text: str) -> None:
    strange = {sign for sign in text if not sign.isprintable() and sign != "\n"}
    assert not strange, sorted(map(ascii, strange))


def test_what_is_said_is_harmless_and_else_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"{HOSTILE}\n{KEPT}\udcff")
    out = capsys.readouterr().out
    assert_harmless(out)
    assert r"\x1b[2J\x9b31m\rb\u202ecod" in out and KEPT + r"\udcff" in out


def end_with(error: Exception) -> None:
    with run_command():
        raise error


@pytest.mark.parametrize("field", ["what", "got", "remedy"])
def test_an_error_is_harmless(capsys: pytest.CaptureFixture[str], field: str) -> None:
    parts: dict[str, Any] = {"what": "w", "got": "g", "remedy": "r"} | {field: HOSTILE}
    end_with(DataError(parts.pop("what"), **parts))
    assert_harmless(capsys.readouterr().err)
    assert len(str(ModelError("w", got="g\nh", remedy="r")).splitlines()) == 4


def test_a_crash_is_harmless() -> None:
    """An error that nobody expected is shown with its traceback, whatever its text."""
    code = f"from common.command import run_command\nwith run_command(): raise OSError({HOSTILE!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" in done.stderr and r"\x1b[2J" in done.stderr
    assert_harmless(done.stderr)


def test_logs_and_warnings_of_others_are_harmless() -> None:
    code = f"""
import logging, warnings
from common.command import run_command
with run_command():
    logging.getLogger("transformers").warning("a model of type %s", {HOSTILE!r})
    warnings.warn({HOSTILE!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert r"a model of type a\x1b]0;title" in done.stderr and "UserWarning" in done.stderr
    assert_harmless(done.stderr)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image folder whose classes and files have such names, one of them no picture."""
    for label in (HOSTILE, f"{HOSTILE} "):
        (tmp_path / "set" / label).mkdir(parents=True)
        (tmp_path / "set" / label / f"{HOSTILE}.png").write_bytes(encoded())
    (tmp_path / "set" / HOSTILE / f"{HOSTILE}2.png").write_bytes(b"no picture")
    for label in ("a\u200fc", "b\u2066m\u202ed"):  # these can be listed in a question
        (tmp_path / "good" / label).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "good" / label / f"{number}.png").write_bytes(encoded())
    return tmp_path / "set"


COMMANDS: list[tuple[Callable[[list[str]], int], list[str]]] = [
    (lint.main, ["{set}"]),
    (lint.main, ["{set}@" + HOSTILE]),
    (build.main, ["{set}", "--out", "{out}", "--shots", "all"]),
    (build.main, ["{good}", "--out", "{out}", "--shots", "all"]),
    (lint.main, ["{good}"]),
    (learner.main, ["--dry-run", "data.path={set}", "--config", "deploy/recipes/digits.yaml"]),
    (learner.main, ["--dry-run", f"model.path={HOSTILE}", "--config", "deploy/recipes/digits.yaml"]),
    (learner.main, ["--dry-run", f"{HOSTILE}=1"]),
    (learner.main, ["--config", HOSTILE]),
    (report.main, [f"/nowhere/{HOSTILE}"]),
]


@pytest.mark.parametrize(("command", "words"), COMMANDS)
def test_no_command_prints_it(
    folder: Path, capsys: pytest.CaptureFixture[str], command: Callable[[list[str]], int], words: list[str]
) -> None:
    places = {"{set}": folder, "{good}": folder.parent / "good", "{out}": folder.parent / "out"}
    given = words
    for name, place in places.items():
        given = [word.replace(name, str(place)) for word in given]
    with suppress(SystemExit):
        command(given)
    printed = capsys.readouterr()
    assert printed.out + printed.err
    assert_harmless(printed.out + printed.err)


def test_a_manifest_by_hand_is_harmless_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from common.errors import CheckpointError
    from learner.storage.checkpoint_folder import CheckpointFolder

    folder = tmp_path / "checkpoints/step-000001"
    folder.mkdir(parents=True)
    entry = {"bytes": 1, "sha256": ""}
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "step": 1, "files": {HOSTILE: entry}}))
    with pytest.raises(CheckpointError) as caught:
        CheckpointFolder(tmp_path / "checkpoints", keep=1).find_newest()
    assert_harmless(str(caught.value))
    assert caplog.messages
    assert_harmless("".join(caplog.messages))


@pytest.mark.parametrize("live", [True, False])
def test_the_console_of_a_run_is_harmless(tmp_path: Path, live: bool) -> None:
    from rich.console import Console as RichConsole

    from common.config.schema import Config
    from learner.tracking.console import LineConsole
    from learner.tracking.live import LiveConsole
    from learner.tracking.records import History

    out = StringIO()
    config = Config(name=HOSTILE)
    console = (
        LiveConsole(config, RichConsole(file=out, no_color=True, force_terminal=False, width=100))
        if live
        else LineConsole(config, out)
    )
    console.open(str(tmp_path / HOSTILE), History(), first_step=0)
    console.phase(HOSTILE, 1.0)
    console.evaluation(1, {HOSTILE: {"accuracy": 0.5}})
    console.event(HOSTILE, {"why": HOSTILE})
    console.close([HOSTILE])
    assert os.linesep in out.getvalue()
    assert_harmless(out.getvalue())
