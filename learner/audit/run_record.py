"""What a run left behind, as the auditor reads it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from common.config.foreign_text import parse_json, parse_yaml
from common.config.schema import Config
from common.errors import RunFolderError, raise_as
from learner.storage.files import read_jsonl
from learner.tracking.books import BOOKS, StepBooks, read_books

Row = Mapping[str, Any]
REMEDY = "audit a run folder as a run left it; the books of before this version are none"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The files of a run."""

    folder: Path
    config: Config
    books: Sequence[StepBooks]
    metrics: Sequence[Row]
    events: Sequence[Row]
    summary: Row | None  # None: it has not ended
    running: bool  # a live process holds the folder

    @cached_property
    def starts(self) -> list[Row]:
        """The event of every start."""
        return [row for row in self.events if row["kind"] == "start"]

    @cached_property
    def attempts(self) -> list[list[Row]]:
        """The events of every start, that of its beginning first."""
        found: list[list[Row]] = []
        for row in self.events:
            if row["kind"] == "start":
                found.append([])
            if found:
                found[-1].append(row)
        return found

    @cached_property
    def steps(self) -> list[StepBooks]:
        """The rows of steps that count."""
        return [row for row in self.books if not row.skipped]

    def get_bucket_size(self, attempt: int) -> int:
        """Return the size of weight buckets in a start, by which checksums of weights may be compared."""
        return int(self.starts[attempt]["bucket_mb"]) if attempt < len(self.starts) else -1

    @property
    def finished(self) -> bool:
        """Whether the run took all its steps, and is over."""
        if self.summary is None or self.running:
            return False
        return self.summary["outcome"] == "finished" and not self.summary["stopped_early"]


def read_record(folder: Path) -> RunRecord:
    """Read the files of a run. Raises RunFolderError where one is missing, damaged, or of another version."""
    what = f"the run folder {folder} cannot be audited"
    for name in ("config.yaml", BOOKS):
        if not (folder / name).exists():
            raise RunFolderError(what, got=f"it has no {name}", remedy=REMEDY)

    with raise_as(RunFolderError, what, remedy=REMEDY):
        config = Config.model_validate(parse_yaml((folder / "config.yaml").read_text()))
        summary = folder / "summary.json"
        record = RunRecord(
            folder=folder,
            config=config,
            books=list(_read_lines(folder / BOOKS)),
            metrics=list(read_jsonl(folder / "metrics.jsonl")),
            events=list(read_jsonl(folder / "events.jsonl")),
            summary=parse_json(summary.read_text()) if summary.exists() else None,
            running=_is_held(folder / ".lock"),
        )
        _check_shape(record)
        return record


def _read_lines(path: Path) -> Iterator[StepBooks]:
    """Yield the rows of the books. What a kill cut short, at the end, is passed over.

    Raises RunFolderError naming the line of one that is damaged.
    """
    lines = path.read_text().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if line.endswith("\n"):
            with raise_as(RunFolderError, f"line {number} of {path} cannot be read", remedy=REMEDY):
                yield read_books(parse_json(line))


def _check_shape(record: RunRecord) -> None:
    """Raise KeyError, TypeError or ValueError where a file lacks what the auditor looks at."""
    for row in record.events:
        float(row["monotonic"]), float(row["wall"]), str(row["kind"])
    for row in record.starts:
        int(row["first_step"]), float(row["longest_s"]), int(row["pid"]), str(row["host"]), int(row["bucket_mb"])
    for row in record.metrics:
        [int(row[name]) for name in ("step", "groups_dispatched", "groups_trained", "groups_dropped")]
    if record.summary is not None:
        str(record.summary["outcome"]), int(record.summary["steps"]), record.summary["stopped_early"]


def _is_held(lock: Path) -> bool:
    """Return whether a live process holds the lock of a run folder."""
    if not lock.exists():
        return False
    handle = os.open(lock, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(handle)
