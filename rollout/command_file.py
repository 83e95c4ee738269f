"""How somebody changes the number of engines of a run that is under way: two small files in its run folder.

    RUN/engines        what is wanted: a number, or `auto`. Anybody who may write there writes it
    RUN/engines.json   what the run makes of it: its `FleetState`, written whenever that changes

Whoever sees the run folder, from any host or in a bucket, can so talk to the run without a connection to its cluster.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.config.foreign_text import parse_json
from common.storage.bucket import BucketFolder
from common.storage.output import Place

COMMAND, STATE = "engines", "engines.json"
MOST_ENGINES = 1024  # that a command may ask for; of a run that names a range, its `max`
AUTO = "auto"  # the command that gives the number back to the wait share
LONGEST = 100  # characters of a command
DISK_S, BUCKET_S = 0.5, 5.0  # between two looks


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetState:
    """The engines of a fleet, counted: what a command that changes their number waits for."""

    command: str  # the last that was read, as it was written; "" before any
    refused: str  # why that one is not followed; "" where it is
    wanted: int
    serving: int
    starting: int  # in a place of their own
    waiting: int  # for a place
    draining: int


@dataclass(frozen=True, slots=True)
class CommandFile:
    """The two files of a run."""

    place: Place  # the run folder

    @property
    def every_s(self) -> float:
        """The seconds between two looks."""
        return DISK_S if isinstance(self.place, Path) else BUCKET_S

    def write(self, command: str) -> None:
        """Let the run follow a command. Raises OSError."""
        self._write(COMMAND, command + "\n")

    def read(self) -> str:
        """Return the command, as it was written; "" where there is none. Raises OSError."""
        return self._read(COMMAND)[:LONGEST].strip()

    def write_state(self, state: FleetState) -> None:
        """Say what the run makes of it. Raises OSError."""
        self._write(STATE, json.dumps({"wall": time.time(), **asdict(state)}) + "\n")

    def read_state(self) -> Mapping[str, Any]:
        """Return what the run says, and `wall`, when it said so; empty where it said nothing yet. Raises OSError."""
        try:
            found = parse_json(self._read(STATE) or "{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _read(self, name: str) -> str:
        try:
            data = self.place.read(name) if isinstance(self.place, BucketFolder) else (self.place / name).read_bytes()
        except FileNotFoundError:
            return ""
        return data.decode("utf-8", "replace")

    def _write(self, name: str, text: str) -> None:
        if isinstance(self.place, BucketFolder):
            self.place.write(name, text.encode())
            return
        fresh = self.place / f".{name}-{secrets.token_hex(4)}"
        try:
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(self.place / name)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise


def read_command(text: str, engines: int | Mapping[Any, int]) -> int | None:
    """Return the number of engines that a command asks for; None for `auto`.

    Args:
        engines: `rollout.engines` of the run.

    Raises:
        ValueError: it is no number, or out of bounds.
    """
    if text == AUTO:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"{text[:20]!r} is neither a number nor {AUTO}")
    count = int(text)
    least, most = (1, MOST_ENGINES) if isinstance(engines, int) else (engines["min"], engines["max"])
    if not least <= count <= most:
        bounds = "" if isinstance(engines, int) else f", as rollout.engines = {{min: {least}, max: {most}}} says"
        raise ValueError(f"{count} engines are not between {least} and {most}{bounds}")
    return count
