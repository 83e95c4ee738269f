"""How a command line begins and ends: its output, its signals, its exit code, and one error of what, got and remedy."""

from __future__ import annotations

import errno
import io
import logging
import math
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TextIO

from common.errors import ConfigError, RollcallError, escape_lines, raise_as
from common.storage.temporary import settle_user

REFUSED, FAILED = 2, 1
ENDING = (signal.SIGTERM, signal.SIGHUP)  # asked to end: by a scheduler, by a terminal that is closed
_SAME_SIGNAL_S = 0.2  # a shell or `timeout` may pass on a signal that the process already got from the sender


@dataclass(slots=True)
class Command:
    """A command line at work."""

    exit_code: int = REFUSED
    outlives_output: bool = False

    def begin_work(self) -> None:
        """Tell that nothing is refused any more: an error from here on exits with FAILED."""
        self.exit_code = FAILED

    def outlive_output(self) -> None:
        """Go on when nobody takes what is printed any more: the results are files."""
        self.outlives_output = True


class Terminated(BaseException):
    """A signal of ENDING arrived: unwind and close everything, as Ctrl-C does."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(number)
        self.number = number


class OutputLost(BaseException):
    """Nobody takes what is printed any more, and there is nothing else to do."""

    def __init__(self, why: OSError) -> None:
        super().__init__(why)
        self.why = why


class Grace:
    """Lets a run that SIGTERM or SIGHUP ends come to a point where it can be saved, within a number of seconds.

    The first signal raises Terminated, where the run holds only once it lets go. A second one, or the end of the
    seconds, raises it at once. Ctrl-C raises KeyboardInterrupt at once. A library that catches everything may swallow
    what was raised, as Ray does while its actors start: `release` then raises it again.
    """

    def __init__(self, seconds: float) -> None:
        self.over = False  # nothing may be saved any more: a second signal came, or the time is up
        self._seconds = seconds
        self._holds = False
        self._asked_at: float | None = None  # by time.monotonic()
        self._number = int(signal.SIGTERM)  # that asked
        self._interrupted = False  # by Ctrl-C
        self._raise_once = _RaiseOnce()

    def install(self) -> None:
        """Handle the signals of ENDING that are not ignored, as SIGHUP is under nohup, and the end of the grace."""
        for number in (*ENDING, signal.SIGALRM):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._handle)
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as where a shell put the run aside
            signal.signal(signal.SIGINT, self._interrupt)

    def hold(self) -> None:
        """Put off what the first signal does until `release`."""
        self._holds = True

    def release(self) -> None:
        """Raise Terminated if a signal came since `hold`, and KeyboardInterrupt if that of a Ctrl-C was lost."""
        self._holds = False
        if self._interrupted:
            raise KeyboardInterrupt
        if self._asked_at is not None:
            raise Terminated(self._number)

    def end(self) -> None:
        """Stop the timer: what could be saved is saved."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupted = True
        self._raise_once(number, frame)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at, self._number = now, number
            signal.setitimer(signal.ITIMER_REAL, self._seconds)
            if not self._holds:
                raise Terminated(number)
        elif number == signal.SIGALRM or now - self._asked_at > _SAME_SIGNAL_S:
            self.over = True
            raise Terminated(self._number)


class _Output(io.FileIO):
    """Standard output or standard error. What nobody takes any more is dropped, after a word on it.

    Without `outlives_output` of the command it is the end of the command.
    """

    def __init__(self, number: int, command: Command | None) -> None:
        super().__init__(number, "w", closefd=False)
        self._command = command  # None: standard error, which stops nothing

    def write(self, data: Any, /) -> int:
        """Write bytes, and return how many were taken; all of them where they are dropped."""
        try:
            return super().write(data)
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            if self._command and not self._command.outlives_output:
                raise OutputLost(error) from None
            if self._command:
                say(
                    f"warning: nobody takes what is printed any more ({error.strerror}); the work goes on",
                    file=sys.stderr,
                )
            return memoryview(data).nbytes


def occupy_standard_files() -> None:
    """Open a null device for each closed one of stdin, stdout and stderr: a file of ours in its place would be printed
    into."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


@contextmanager
def _set_up_output(command: Command) -> Iterator[None]:
    """Print as `_Output` does, and escape what the encoding of the terminal lacks. What a test put in place stays."""
    occupy_standard_files()
    before = sys.stdout, sys.stderr
    if sys.stdout in (None, sys.__stdout__):
        sys.stdout = _wrap(1, command, before[0])
    if sys.stderr in (None, sys.__stderr__):
        sys.stderr = _wrap(2, None, before[1])
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _wrap(number: int, command: Command | None, old: TextIO | None) -> TextIO:
    """Return a text stream on a descriptor, in the encoding of the old one."""
    if old is not None:
        old.flush()
    raw = io.BufferedWriter(_Output(number, command))
    encoding = old.encoding if old is not None else "utf-8"
    return io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace", line_buffering=True)


def say(text: object, *, file: TextIO | None = None) -> None:
    """Print text, its control characters escaped: a file name or a label may hold some that move the cursor.

    Everything that a command prints goes through here.
    """
    print(escape_lines(str(text)), file=file, flush=True)


def read_path(text: str, option: str = "") -> Path:
    """Return a path of a command line; `~` and `~name` are homes. Raises ConfigError for what can be no path."""
    with raise_as(ConfigError, f"{option} {text!r} is no path".strip(), remedy="check it"):
        if not text or "\0" in text:
            raise ValueError("it holds a NUL" if text else "it is empty")
        return Path(text).expanduser()


class _EscapedRecord(logging.LogRecord):
    """A line of anybody's log, as `say` would print it."""

    def getMessage(self) -> str:  # noqa: N802  # logging's own name
        return escape_lines(super().getMessage())


def _escape_what_others_print() -> None:
    """Let crashes, warnings and the logs of third parties be printed as `say` prints."""
    sys.excepthook = _show_crash
    logging.setLogRecordFactory(_EscapedRecord)
    shown = warnings.formatwarning
    if shown.__module__ == "warnings":
        warnings.formatwarning = lambda *args, **kwargs: escape_lines(shown(*args, **kwargs))


def _show_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of an error that nobody caught, as `say` prints."""
    say("".join(traceback.format_exception(kind, error, trace)).rstrip(), file=sys.stderr)


@contextmanager
def run_command() -> Iterator[Command]:
    """Do the work of a command line inside this block; after it `exit_code` says how the work ended.

    0 done, 1 failed, 2 refused, 129 SIGHUP, 130 Ctrl-C, 143 SIGTERM. 141 where the reader of what it prints has gone
    away, as of any program that SIGPIPE ends. A RollcallError is printed; any other error passes through.
    """
    command = Command()
    _escape_what_others_print()
    with _set_up_output(command):
        try:
            settle_user()
            with _end_by_signals():
                try:
                    yield command
                finally:
                    sys.stdout.flush()
            command.exit_code = 0
        except RollcallError as error:
            say(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            command.exit_code = 128 + signal.SIGINT
        except Terminated as ending:
            command.exit_code = 128 + ending.number
        except OutputLost as lost:
            command.exit_code = _end_unheard(lost.why)
        except SystemExit as leaving:  # ray.init answers signals itself until it is done
            if leaving.code != signal.SIGTERM:
                raise
            command.exit_code = 128 + signal.SIGTERM


@contextmanager
def _end_by_signals() -> Iterator[None]:
    """Raise Terminated for the signals of ENDING within the block, and KeyboardInterrupt for Ctrl-C.

    What was ignored before stays so.
    """
    with ExitStack() as undo:
        if threading.current_thread() is threading.main_thread():
            raise_once = _RaiseOnce()
            for number in (*ENDING, signal.SIGINT):
                if (before := signal.getsignal(number)) != signal.SIG_IGN:
                    undo.callback(signal.signal, number, before)
                    signal.signal(number, raise_once)
        yield


class _RaiseOnce:
    """A handler that raises what a signal asks for, once where it comes twice: shells and parents pass signals on."""

    def __init__(self) -> None:
        self._last: dict[int, float] = {}  # when it raised, by signal

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._last.get(number, -math.inf) < _SAME_SIGNAL_S:
            return
        self._last[number] = now
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


def _end_unheard(why: OSError) -> int:
    """Return the exit code of a command that cannot print: a reader that went away is no error."""
    if why.errno == errno.EPIPE:
        return 128 + signal.SIGPIPE
    say(
        f"error: what is to be printed cannot be written\n  got:    {why.strerror}\n  remedy: print to another place",
        file=sys.stderr,
    )
    return FAILED
