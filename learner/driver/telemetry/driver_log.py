"""`logs/driver.jsonl`: every step and event of the driver as a line, in the form of the actors' own logs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.telemetry.json_log import make_line
from learner.storage.disk import Disk
from learner.storage.files import append_whole
from learner.tracking.records import StepRecord

LOGS = "logs"  # in the run folder
SERIOUS = ("lost", "failed", "refused", "given_up")  # ends of the names of events that are warnings


class DriverLog:
    """Follows a tracker. A disk that hangs is waited for as long as the tracker waits for it."""

    def __init__(self, run_folder: Path, run: str, *, step: int) -> None:
        """Go on after so many steps."""
        self._path, self._run, self._step, self._disk = run_folder / LOGS / "driver.jsonl", run, step, Disk()

    def step(self, record: StepRecord) -> None:
        """Write a line about a step. Raises OSError."""
        self._step = record.step + 1
        seconds = {name: round(value, 4) for name, value in record.seconds.items()}
        self._write("step", record.step, {"reward": record.reward, "seconds": seconds})

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Write a line about an event. Raises OSError."""
        self._write(kind, fields.get("step", self._step), dict(fields))

    def _write(self, message: str, step: int, fields: dict[str, Any]) -> None:
        level = "WARNING" if message.endswith(SERIOUS) else "INFO"
        line = make_line(self._run, "driver", message, time=time.time(), level=level, step=step, fields=fields)
        self._disk.write(lambda: self._append(line))

    def _append(self, line: str) -> None:
        self._path.parent.mkdir(exist_ok=True)
        append_whole(self._path, f"{line}\n".encode())
