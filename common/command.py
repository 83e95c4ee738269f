"""How a command line ends: with an exit code, and one error that says what, got and remedy."""

from __future__ import annotations

import logging
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import TextIO

from common.errors import RollcallError, escape_lines

REFUSED, FAILED = 2, 1
_SAME_SIGNAL_S = 0.2  # a shell or `timeout` may pass on a signal that the process already got from the sender


@dataclass(slots=True)
class Command:
    """A command line at work."""

    exit_code: int = REFUSED

    def begin_work(self) -> None:
        """Tell that nothing is refused any more: an error from here on exits with FAILED."""
        self.exit_code = FAILED


class Terminated(BaseException):
    """SIGTERM arrived: unwind and close everything, as Ctrl-C does."""


class Grace:
    """Lets a run that SIGTERM ends come to a point where it can be saved, within a number of seconds.

    The first signal raises Terminated, where the run holds only once it lets go. A second one, or the end of the
    seconds, raises it at once.
    """

    def __init__(self, seconds: float) -> None:
        self.over = False  # nothing may be saved any more: a second signal came, or the time is up
        self._seconds = seconds
        self._holds = False
        self._asked_at: float | None = None  # by time.monotonic()

    def install(self) -> None:
        """Handle SIGTERM, and the timer that ends the grace."""
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGALRM, self._handle)

    def hold(self) -> None:
        """Put off what the first SIGTERM does until `release`."""
        self._holds = True

    def release(self) -> None:
        """Raise Terminated if SIGTERM came since `hold`."""
        self._holds = False
        if self._asked_at is not None:
            raise Terminated

    def end(self) -> None:
        """Stop the timer: what could be saved is saved."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
            signal.setitimer(signal.ITIMER_REAL, self._seconds)
            if not self._holds:
                raise Terminated
        elif number == signal.SIGALRM or now - self._asked_at > _SAME_SIGNAL_S:
            self.over = True
            raise Terminated


def say(text: object, *, file: TextIO | None = None) -> None:
    """Print text, its control characters escaped: a file name or a label may hold some that move the cursor.

    Everything that a command prints goes through here.
    """
    print(escape_lines(str(text)), file=file, flush=True)


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

    0 done, 1 failed, 2 refused, 130 Ctrl-C, 143 SIGTERM. A RollcallError is printed; any other error passes through.
    """
    command = Command()
    _escape_what_others_print()
    try:
        yield command
        command.exit_code = 0
    except RollcallError as error:
        say(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        command.exit_code = 128 + signal.SIGINT
    except Terminated:
        command.exit_code = 128 + signal.SIGTERM
    except SystemExit as leaving:  # ray.init answers signals itself until it is done
        if leaving.code != signal.SIGTERM:
            raise
        command.exit_code = 128 + signal.SIGTERM
