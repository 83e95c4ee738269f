"""Files that are whole or absent, whatever kills the process that writes them."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def sync_folder(folder: Path) -> None:
    """Make creations and renames inside a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or the next start, sees the old one or the new one. Raises OSError."""
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
    """Rows of a JSON-lines file; none if it is absent. A line torn by a kill is passed over."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            yield row


def keep_steps(path: Path, wanted: Callable[[int], bool]) -> None:
    """Rewrite a JSON-lines file with the rows whose `step` is wanted. Raises OSError."""
    if path.exists():
        replace_text(path, "".join(json.dumps(row) + "\n" for row in read_jsonl(path) if wanted(row["step"])))


def append_whole(path: Path, data: bytes) -> None:
    """Append in one write, all or (OSError: a full disk) nothing. The kernel has it on return: no kill loses it."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(handle).st_size
        if os.write(handle, data) < len(data):  # the disk filled up in the middle of it
            os.ftruncate(handle, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(handle)


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Append one row. NaN and infinity, which are no JSON numbers, become null, a path or error its text.

    Raises OSError.
    """
    append_whole(path, json.dumps(finite(row), allow_nan=False, default=str).encode() + b"\n")


def finite(value: Any) -> Any:
    """The same value with every NaN and infinity in it replaced by None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not -float("inf") < value < float("inf") else value
