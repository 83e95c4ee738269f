"""Image folders and lists of files, read as collections."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.config.foreign_text import parse_json
from common.data.build.collection import Collection, Picture, collect
from common.data.faults import BadRowError, refuse
from common.data.formats.class_folders import class_folders
from common.data.row import bare_label
from common.data.table import UNNAMED, reading_data
from common.errors import DataError

Splits = dict[str, list[Picture]]


def open_source(place: Path) -> Collection:
    """Read a folder with a sub-folder for each class, or a .csv or .jsonl list of files. Labels are sorted.

    Raises DataError for anything else, and for lines of a list without a file name and a label.
    """
    with reading_data(place, remedy="check the path, and who may read what lies there"):
        if place.is_dir():
            splits = folder_splits(place)
        elif place.is_file() and place.suffix in (".csv", ".jsonl"):
            splits = _read_list(place)
        else:
            raise DataError(
                f"{place} is no source of pictures",
                got="another kind of file" if os.path.lexists(place) else "no such file or folder",
                remedy="give a folder of class folders, a .csv or a .jsonl; for CoOp's sets their root, and --layout",
            )
    labels = sorted({picture.label for pictures in splits.values() for picture in pictures})
    return collect(str(place), splits, labels)


def folder_splits(place: Path) -> Splits:
    """Return the pictures of a folder of class folders by split, labelled with the names of their folders."""
    splits: Splits = {}
    for name, opener in class_folders(place, "").items():
        table = opener(name)
        assert table.root is not None
        splits[name] = [
            Picture(root=table.root, path=str(row["image"].relative_to(table.root)), label=row["solution"])
            for row in map(table.rows.__getitem__, range(len(table.rows)))
        ]
    return splits


def _read_list(place: Path) -> Splits:
    """Return the pictures of a list by split; paths are below the list's own folder."""
    splits: Splits = defaultdict(list)
    faults: list[tuple[str, BadRowError]] = []
    count = 0
    for number, row in _lines(place):
        count += 1
        try:
            path, label = _text(row, "path"), bare_label(row.get("label"))
            splits[_text(row, "split") if row.get("split") else UNNAMED].append(
                Picture(root=place.parent, path=path, label=label)
            )
        except BadRowError as fault:
            faults.append((f"line {number}", fault))
    refuse(str(place), count, faults)
    return dict(splits)


def _lines(place: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the rows of a list with the numbers of their lines."""
    with reading_data(place), place.open(encoding="utf-8-sig", newline="") as file:
        if place.suffix == ".csv":
            reader = csv.DictReader(file)
            _check_header(place, reader.fieldnames or [])
            yield from ((reader.line_num, row) for row in reader)
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _parse(line)


def _check_header(place: Path, columns: list[str] | Any) -> None:
    if missing := [name for name in ("path", "label") if name not in columns]:
        raise DataError(
            f"{place} has no column {' and no column '.join(missing)}",
            got="first line: " + (", ".join(columns) or "empty"),
            remedy="begin the file with the line path,label or path,label,split",
        )


def _parse(line: str) -> Mapping[str, Any]:
    row = parse_json(line)
    return row if isinstance(row, dict) else {}


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise BadRowError(f"{column} is {value!r}", remedy=f"give every line its {column} as text")
    return value.strip()
