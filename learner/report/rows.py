"""Read files that may be old, torn or damaged, one row at a time. What cannot be read is counted and named."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from common.config.foreign_text import parse_json, parse_yaml
from common.errors import describe_fault

Row = Mapping[str, Any]
_LARGEST_FILE = 1 << 28  # characters of a file that is one object
_LONGEST_LINE = 1 << 26  # characters; the rest of a longer one is a line by itself, and damaged
_LARGEST, _WHOLE = 1e100, 2**53  # beyond these a measurement, or a count, is damage


class Reader:
    """Reads the files of one folder. `faults` names each that is missing or damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: list[str] = []

    def read_rows(self, name: str) -> Iterator[Row]:
        """Yield every line of a JSON-lines file that is an object."""
        try:
            with self._open(name) as file:
                yield from self._parse_lines(name, iter(lambda: file.readline(_LONGEST_LINE), ""))
        except OSError as error:
            self._note_missing(name, error)

    def read_json(self, name: str) -> Row:
        """Return the object in a JSON file; an empty one where there is none."""
        return self._read_object(name, parse_json)

    def read_yaml(self, name: str) -> Row:
        """Return the mapping in a YAML file; an empty one where there is none."""
        return self._read_object(name, parse_yaml)

    def _parse_lines(self, name: str, lines: Iterator[str]) -> Iterator[Row]:
        bad: list[int] = []
        for number, line in enumerate(lines, start=1):
            try:
                row = parse_json(line)
            except ValueError:
                row = None
            if isinstance(row, dict):
                yield row
            else:
                bad.append(number)
        if bad:
            self.faults.append(f"{name}: {len(bad)} lines are no JSON objects, the first is line {bad[0]}")

    def _read_object(self, name: str, parse: Any) -> Row:
        try:
            with self._open(name) as file:
                value = parse(file.read(_LARGEST_FILE))
        except OSError as error:
            self._note_missing(name, error)
            return {}
        except Exception as error:  # noqa: BLE001  # the file may be anybody's
            self.faults.append(f"{name}: unreadable ({describe_fault(error)})")
            return {}
        if not isinstance(value, dict):
            self.faults.append(f"{name}: holds no object")
            return {}
        return value

    def _open(self, name: str) -> TextIO:
        """Open a file that ends: no pipe or device, which may give nothing for ever. Raises OSError."""
        file = self.folder / name
        if file.exists() and not file.is_file():
            raise OSError(errno.EINVAL, "no plain file")
        return file.open(encoding="utf-8", errors="replace")

    def _note_missing(self, name: str, error: OSError) -> None:
        self.faults.append(f"{name}: {'not there' if isinstance(error, FileNotFoundError) else error.strerror}")


def as_number(value: Any) -> float:
    """Return a number that can be summed and drawn, else NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST < value < _LARGEST:
        return math.nan
    return float(value)


def as_whole(value: Any) -> int | None:
    """Return a number as an integer, None for anything else."""
    value = as_number(value)
    return int(value) if abs(value) < _WHOLE else None


def as_text(value: Any) -> str:
    """Return text as it is, "" for null, and `str` of anything else."""
    return value if isinstance(value, str) else "" if value is None else str(value)


def as_mapping(value: Any) -> Row:
    """Return a mapping as it is, an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, an empty one for anything else."""
    return value if isinstance(value, list) else []
