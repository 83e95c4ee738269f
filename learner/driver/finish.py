"""The end of a run, whatever ends it: its outcome, its summary, its report, the last lines on the screen."""

from __future__ import annotations

import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from traceback import format_exception
from types import TracebackType
from typing import Self

from common.command import ENDING, say
from common.config.schema import Config
from common.errors import RunFolderError, describe_cause
from common.storage.bucket import hurry
from learner.guard.cause import name_cause
from learner.guard.line import Line
from learner.storage.run_folder import RunFolder
from learner.tracking.model_card import write_model_card
from learner.tracking.records import Summary
from learner.tracking.tracker import Tracker

CLOSE_S = 60.0
LONGEST_TRACE = 6000  # characters


@dataclass(slots=True, kw_only=True)
class Finish:
    """The outermost context of a run, left when every part is closed: writes summary, report and model card."""

    tracker: Tracker
    folder: RunFolder
    config: Config
    started: float  # time.monotonic() of the process
    version: int  # of the weights that the learner holds: optimizer steps done
    startup_seconds: float = 0.0
    checkpoint_failures: int = 0
    stopped_early: str | None = None  # why a run that ended well did not take all its steps

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        outcome, cause = _name_outcome(kind), name_cause(error) if error else None
        more = {"trace": "".join(format_exception(error))[-LONGEST_TRACE:]} if outcome == "failed" and error else {}
        self.tracker.event("end", outcome=outcome, **(asdict(cause) if cause else {}), **more)
        summary = self.tracker.summary(
            outcome=outcome,
            cause=cause,
            steps=self.version,
            wall_seconds=time.monotonic() - self.started,
            startup_seconds=self.startup_seconds,
            weights_version=self.version,
            checkpoint_failures=self.checkpoint_failures,
            stopped_early=self.stopped_early,
        )
        report = None
        with nullcontext() if kind is None else hurry():  # whoever told a run to end does not wait for a bucket
            try:
                report = self._write_report(seconds=60.0 if kind is None else 8.0)  # nor for every figure
                if self.config.checkpoint.export and kind is None:
                    self._write_model_card(summary)
            finally:
                self.tracker.close(summary, report)  # the terminal gets its screen back whatever happens
            self._flush(failed=kind is not None)

    def _flush(self, *, failed: bool) -> None:
        """Copy the last files to the bucket, if there is one.

        Raises:
            RunFolderError: the bucket does not take them, and the run has not failed of another cause.
        """
        try:
            self.folder.flush()
        except (OSError, RunFolderError) as error:
            lost = RunFolderError(
                "the last files of the run did not reach its bucket",
                got=error,
                remedy=f"they are in {socket.gethostname()}:{self.folder.path}; start again with resume=auto",
            )
            if not failed:
                raise lost from error
            say(f"error: {lost}", file=sys.stderr)

    def _write_model_card(self, summary: Summary) -> None:
        """Write the page beside the exported model. A disk that refuses it is an event."""
        try:
            self.folder.export.mkdir(exist_ok=True)  # the model itself may be in a bucket
            write_model_card(self.folder.export, config=self.config, summary=summary)
        except OSError as error:
            self.tracker.event("model_card_failed", why=describe_cause(error))

    def _write_report(self, *, seconds: float) -> Path | None:
        """Write the page of the run. A failure is logged as an event, and changes nothing else."""
        try:
            from learner.report.write import write_report

            return write_report([self.folder.path], seconds=seconds)
        except Exception as error:  # noqa: BLE001  # any file may be damaged, and the run is over
            self.tracker.event("report_failed", why=f"{type(error).__name__}: {error}")
            return None


def _name_outcome(kind: type[BaseException] | None) -> str:
    if kind is None:
        return "finished"
    return "failed" if issubclass(kind, Exception) else "interrupted"


@contextmanager
def close_undisturbed(line: Line | None = None) -> Iterator[ExitStack]:
    """Open a stack of parts, and ignore Ctrl-C, SIGTERM, SIGHUP and the end of its grace while it closes them.

    Only a whole close leaves no process and no shared memory behind. The parent process ends one that takes CLOSE_S.
    """
    with ExitStack() as afterwards, ExitStack() as parts:
        try:
            yield parts
        finally:
            afterwards.enter_context((line or Line()).wait("the parts of the run to close", CLOSE_S))
            for number in (signal.SIGINT, *ENDING, signal.SIGALRM):
                afterwards.callback(signal.signal, number, signal.signal(number, signal.SIG_IGN))
