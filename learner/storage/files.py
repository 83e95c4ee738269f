"""Files that are whole or absent, even if the process that writes them is killed."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common.config.foreign_text import parse_json
from common.storage.json_values import replace_nonfinite

_CHUNK = 1 << 16  # bytes


def sync_folder(folder: Path) -> None:
    """Write the entries of a folder to disk, so that new files and renames survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or the next start, sees the old text or the new one.

    Raises OSError, also where a device, a pipe or a socket lies there: a rename would put the file in its place.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "no plain file", str(path))
    fresh = path.with_name(f".{path.name}.new")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSON-lines file; none if it is absent. A line that a kill cut short is passed over."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = parse_json(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


def keep_steps(path: Path, wanted: Callable[[int], bool]) -> None:
    """Rewrite a JSON-lines file with the rows whose `step` is wanted. Raises OSError."""
    keep_rows(path, lambda row: isinstance(row.get("step"), int) and wanted(row["step"]))


def keep_rows(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite a JSON-lines file with the rows that are wanted. Raises OSError."""
    if path.exists():
        replace_text(path, "".join(json.dumps(row) + "\n" for row in read_jsonl(path) if wanted(row)))


def append_whole(path: Path, data: bytes) -> None:
    """Append `data` in one write, or raise OSError (a full disk) and append nothing. No later kill loses it."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(handle).st_size
        if os.write(handle, data) < len(data):  # the disk filled up in the middle of it
            os.ftruncate(handle, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(handle)


def cut_unfinished_line(path: Path) -> None:
    """Cut off what stands behind the last whole line of a file: a kill may have left it. Raises OSError."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        place, tail = end, b""
        while place and b"\n" not in tail:
            place = max(0, place - _CHUNK)
            file.seek(place)
            tail = file.read(_CHUNK)
        whole = place + tail.rfind(b"\n") + 1
        if whole < end:
            file.truncate(whole)


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Append one row. NaN and infinity, which are no JSON numbers, become null, a path or error its text.

    Raises OSError.
    """
    append_whole(path, json.dumps(replace_nonfinite(row), allow_nan=False, default=str).encode() + b"\n")
