"""What ends a command line, as its exit code and as what a user sees of it."""

from __future__ import annotations

import os
import signal

import pytest

from common.command import raise_terminated, run_command
from common.errors import DataError

REFUSAL = DataError("a row is bad", got="row 3", remedy="mend it")


@pytest.mark.parametrize(
    ("error", "begun", "code", "told"),
    [
        (None, False, 0, ""),
        (None, True, 0, ""),
        (REFUSAL, False, 2, f"error: {REFUSAL}\n"),
        (REFUSAL, True, 1, f"error: {REFUSAL}\n"),
        (KeyboardInterrupt(), False, 130, ""),
        (KeyboardInterrupt(), True, 130, ""),
        (SystemExit(15), True, 143, ""),  # as Ray leaves on SIGTERM while it starts
    ],
)
def test_exit_codes(
    capsys: pytest.CaptureFixture[str], error: BaseException | None, begun: bool, code: int, told: str
) -> None:
    with run_command() as command:
        if begun:
            command.begin_work()
        if error:
            raise error
    assert (command.exit_code, capsys.readouterr().err) == (code, told)


def test_sigterm_is_an_exit_code_too() -> None:
    before = signal.signal(signal.SIGTERM, raise_terminated)
    try:
        with run_command() as command:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert command.exit_code == 143


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit(2), ZeroDivisionError()])
def test_anything_else_passes_through(error: BaseException) -> None:
    with pytest.raises(type(error)), run_command():
        raise error
