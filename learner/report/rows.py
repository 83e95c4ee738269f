"""Rows of files that may be old, torn or damaged, read one at a time; what could not be read is counted and named."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

Row = Mapping[str, Any]
_LARGEST, _WHOLE = 1e100, 2**53  # of a measurement, of a count


class Reader:
    """The files of one folder. `faults` names each that is missing or damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: list[str] = []

    def rows(self, name: str) -> Iterator[Row]:
        """Every line of a JSON-lines file that is an object."""
        try:
            with (self.folder / name).open(encoding="utf-8", errors="replace") as file:
                yield from self._objects(name, file)
        except OSError as error:
            self._missing(name, error)

    def json(self, name: str) -> Row:
        """The object in a JSON file; empty where there is none."""
        return self._object(name, json.loads)

    def yaml(self, name: str) -> Row:
        return self._object(name, yaml.safe_load)

    def _objects(self, name: str, lines: Iterator[str]) -> Iterator[Row]:
        bad: list[int] = []
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                yield row
            else:
                bad.append(number)
        if bad:
            self.faults.append(f"{name}: {len(bad)} lines are no JSON objects, the first is line {bad[0]}")

    def _object(self, name: str, parse: Any) -> Row:
        try:
            value = parse((self.folder / name).read_text(encoding="utf-8", errors="replace"))
        except OSError as error:
            self._missing(name, error)
            return {}
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            self.faults.append(f"{name}: unreadable ({str(error).splitlines()[0]})")
            return {}
        if not isinstance(value, dict):
            self.faults.append(f"{name}: holds no object")
            return {}
        return value

    def _missing(self, name: str, error: OSError) -> None:
        self.faults.append(f"{name}: {'not there' if isinstance(error, FileNotFoundError) else error.strerror}")


def number(value: Any) -> float:
    """A number that can be summed and drawn, else NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST < value < _LARGEST:
        return math.nan
    return float(value)


def whole(value: Any) -> int | None:
    """A number as an integer, None where it is none."""
    value = number(value)
    return int(value) if abs(value) < _WHOLE else None


def text(value: Any) -> str:
    """Text as it is; none for null; anything else as JSON would show it, in short."""
    return value if isinstance(value, str) else "" if value is None else str(value)


def mapping(value: Any) -> Row:
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
