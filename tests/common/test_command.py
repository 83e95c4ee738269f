"""What ends a command line, as its exit code and as what a user sees of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from common.command import Grace, Terminated, run_command
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


@pytest.fixture
def grace() -> Iterator[Grace]:
    """Half a second, installed."""
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGALRM)]
    made = Grace(0.5)
    made.install()
    yield made
    made.end()
    for number, handler in before:
        signal.signal(number, handler)


def test_sigterm_is_an_exit_code_too(grace: Grace) -> None:
    with run_command() as command:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert command.exit_code == 143
    assert not grace.over, "there is time to save"


def test_sigterm_waits_for_what_is_held(grace: Grace) -> None:
    done = []
    grace.hold()
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)  # passed on twice by a shell: one signal
    done.append("step")
    with pytest.raises(Terminated):
        grace.release()
    assert done == ["step"]
    assert not grace.over
    grace.end()
    time.sleep(0.6)  # the timer does not fire any more


def test_nothing_happens_without_a_signal(grace: Grace) -> None:
    grace.hold()
    grace.release()


def test_a_second_sigterm_does_not_wait(grace: Grace) -> None:
    grace.hold()
    signal.raise_signal(signal.SIGTERM)
    time.sleep(0.3)
    with pytest.raises(Terminated):
        signal.raise_signal(signal.SIGTERM)
    assert grace.over


def test_the_grace_runs_out(grace: Grace) -> None:
    grace.hold()
    signal.raise_signal(signal.SIGTERM)
    began = time.monotonic()
    with pytest.raises(Terminated):
        time.sleep(5)
    assert 0.4 < time.monotonic() - began < 2
    assert grace.over


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit(2), ZeroDivisionError()])
def test_anything_else_passes_through(error: BaseException) -> None:
    with pytest.raises(type(error)), run_command():
        raise error
