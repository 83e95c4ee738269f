"""What ends a command line, as its exit code and as what a user sees of it."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from common.command import ENDING, Grace, OutputLost, Terminated, run_command
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
        (Terminated(), False, 143, ""),
        (Terminated(signal.SIGHUP), True, 129, ""),
        (OutputLost(BrokenPipeError(errno.EPIPE, "Broken pipe")), False, 141, ""),
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
    """Half a second, installed, as in a terminal: where the tests run in the background, a Ctrl-C is ignored."""
    before = [(number, signal.getsignal(number)) for number in (*ENDING, signal.SIGALRM, signal.SIGINT)]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    made = Grace(0.5)
    made.install()
    yield made
    made.end()
    for number, handler in before:
        signal.signal(number, handler)


@pytest.fixture
def heeds_hangups() -> Iterator[None]:
    """SIGHUP ends this process, even where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("heeds_hangups")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_is_an_exit_code_too(number: int, code: int) -> None:
    """Of every command: no default action leaves what it was writing."""
    before = [signal.getsignal(one) for one in ENDING]
    closed = []
    with run_command() as command:
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            closed.append(number)
    assert (command.exit_code, closed) == (code, [number])
    assert [signal.getsignal(one) for one in ENDING] == before


@pytest.mark.usefixtures("heeds_hangups")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_within_the_grace_is_that_exit_code(grace: Grace, number: int, code: int) -> None:
    with run_command() as command:
        grace.install()
        grace.hold()
        signal.raise_signal(number)
        grace.release()
    assert command.exit_code == code
    assert not grace.over, "there is time to save"
    grace.end()


def test_a_ctrl_c_that_a_library_swallows_ends_the_run_at_its_next_rest(grace: Grace) -> None:
    with run_command() as command:
        grace.install()
        with suppress(BaseException):  # as a library does that catches everything
            signal.raise_signal(signal.SIGINT)
        grace.hold()
        grace.release()
    assert command.exit_code == 130


def test_an_ignored_ctrl_c_stays_ignored(grace: Grace) -> None:
    """A shell has it so for what it runs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    grace.install()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


@pytest.mark.parametrize("graceful", [False, True])
def test_under_nohup_a_hangup_is_nothing(graceful: bool) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    alarm = signal.getsignal(signal.SIGALRM)
    try:
        with run_command() as command:
            if graceful:
                Grace(0.5).install()
            signal.raise_signal(signal.SIGHUP)
        assert command.exit_code == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
        signal.signal(signal.SIGALRM, alarm)


def test_quit_and_broken_pipes_are_as_python_has_them() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGQUIT, signal.SIGPIPE)]
    with run_command():
        assert [signal.getsignal(number) for number in (signal.SIGQUIT, signal.SIGPIPE)] == before


@pytest.mark.parametrize("graceful", [False, True])
def test_a_ctrl_c_that_is_passed_on_disturbs_no_close(graceful: bool) -> None:
    """The parent of a run passes on what a group of processes may have got already."""
    before, alarm = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)
    closed = []
    with run_command() as command:
        if graceful:
            Grace(0.5).install()
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)
            closed.append(True)
    assert (command.exit_code, closed) == (130, [True])
    assert signal.getsignal(signal.SIGINT) == before
    signal.signal(signal.SIGALRM, alarm)


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
