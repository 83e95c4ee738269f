"""Log lines in JSON: one object a line, with run, step, actor and time, on the standard output of an actor.

    {"time": "2026-01-31T12:00:00.123+00:00", "level": "INFO", "run": "a", "actor": "engine-0", "step": 7,
     "message": "weights loaded", "seconds": 0.013}

Ray keeps the output of every process in a file, which a collector of a cluster's logs reads; so does `worker_logs` of
the driver, when a run ends.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from common.storage.json_values import replace_nonfinite

LOGGER = "rollcall"


class JsonLines(logging.Formatter):
    """Formats a record as one line."""

    def __init__(self, run: str, actor: str) -> None:
        super().__init__()
        self._run, self._actor = run, actor

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        fields = dict(getattr(record, "fields", {}))
        if record.name != LOGGER:
            fields["logger"] = record.name
        if record.exc_info:
            fields["trace"] = self.formatException(record.exc_info)
        return make_line(
            self._run,
            self._actor,
            record.getMessage(),
            time=record.created,
            level=record.levelname,
            step=getattr(record, "step", None),
            fields=fields,
        )


def make_line(
    run: str, actor: str, message: str, *, time: float, level: str, step: int | None, fields: dict[str, Any]
) -> str:
    """Return one line. What JSON does not know is written as text; `fields` cannot take the place of the others."""
    given = {
        "time": datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds"),
        "level": level,
        "run": run,
        "actor": actor,
        "step": step,
        "message": message,
    }
    others = {name: value for name, value in fields.items() if name not in given}
    return json.dumps(replace_nonfinite(given | others), allow_nan=False, default=str)


class ActorLog:
    """What an actor writes down."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def write(self, message: str, *, step: int | None, level: int = logging.INFO, **fields: Any) -> None:
        """Write a line.

        Args:
            step: that it belongs to; None: to none.
        """
        self._logger.log(level, message, extra={"step": step, "fields": fields})


def open_log(run: str, actor: str) -> ActorLog:
    """Open the log of this process, which is one actor's. Warnings of libraries go there too."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines(run, actor))
    logging.getLogger().handlers[:] = [handler]
    logger = logging.getLogger(LOGGER)
    logger.setLevel(logging.INFO)
    return ActorLog(logger)
