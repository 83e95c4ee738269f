"""How a command line ends: with an exit code, and one error that says what, got and remedy."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from common.errors import RollcallError

REFUSED, FAILED = 2, 1


@dataclass(slots=True)
class Command:
    """A command line at work."""

    exit_code: int = REFUSED

    def begin_work(self) -> None:
        """Tell that nothing is refused any more: an error from here on exits with FAILED."""
        self.exit_code = FAILED


class Terminated(BaseException):
    """SIGTERM arrived: unwind and close everything, as Ctrl-C does."""


def raise_terminated(number: int, frame: FrameType | None) -> NoReturn:
    """Handle SIGTERM: `signal.signal(signal.SIGTERM, raise_terminated)`."""
    raise Terminated


@contextmanager
def run_command() -> Iterator[Command]:
    """Do the work of a command line inside this block; after it `exit_code` says how the work ended.

    0 done, 1 failed, 2 refused, 130 Ctrl-C, 143 SIGTERM. A RollcallError is printed; any other error passes through.
    """
    command = Command()
    try:
        yield command
        command.exit_code = 0
    except RollcallError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        command.exit_code = 128 + signal.SIGINT
    except Terminated:
        command.exit_code = 128 + signal.SIGTERM
    except SystemExit as leaving:  # ray.init answers signals itself until it is done
        if leaving.code != signal.SIGTERM:
            raise
        command.exit_code = 128 + signal.SIGTERM
