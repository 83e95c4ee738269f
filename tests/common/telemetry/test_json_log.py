"""One JSON object a line, whatever is logged."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from common.telemetry.json_log import ActorLog, make_line, open_log


@contextmanager
def open_log_here() -> Iterator[ActorLog]:
    """The log of an actor; the handlers of this process are put back. Pytest changes them between fixture and test."""
    root, own = logging.getLogger(), logging.getLogger("rollcall")
    handlers, level = list(root.handlers), own.level
    try:
        yield open_log("a-run", "engine-0")
    finally:
        root.handlers[:] = handlers
        own.setLevel(level)


def read(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_line_says_who_when_and_at_which_step(capsys: pytest.CaptureFixture[str]) -> None:
    with open_log_here() as log:
        log.write("weights loaded", step=7, seconds=0.5, path=Path("x"))
        log.write("two\nlines", step=None, level=logging.ERROR)
    first, second = read(capsys)
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "INFO",
        "run": "a-run",
        "actor": "engine-0",
        "step": 7,
        "message": "weights loaded",
        "seconds": 0.5,
        "path": "x",
    }
    assert (second["level"], second["step"], second["message"]) == ("ERROR", None, "two\nlines")


def test_warnings_of_libraries_are_lines_too_with_their_traces(capsys: pytest.CaptureFixture[str]) -> None:
    with open_log_here():
        try:
            int("broken")
        except ValueError:
            logging.getLogger("a.library").warning("failed at %d", 3, exc_info=True)
        logging.getLogger("a.library").info("nobody wants to know")
    (row,) = read(capsys)
    assert (row["message"], row["logger"], row["actor"]) == ("failed at 3", "a.library", "engine-0")
    assert "ValueError: invalid literal" in row["trace"]


def test_what_is_no_json_is_written_so_that_it_is() -> None:
    fields = {"loss": float("nan"), "gaps": [float("inf"), 1.0], "run": "another"}
    row = json.loads(make_line("a", "driver", "m", time=0.0, level="INFO", step=None, fields=fields))
    assert (row["loss"], row["gaps"], row["run"]) == (None, [None, 1.0], "a")
    assert row["time"] == "1970-01-01T00:00:00.000+00:00"
