"""Lists of files, .csv, .tsv or .jsonl: a line for each picture, with path, label and perhaps split."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.config.foreign_text import parse_json
from common.data.build.collection import Picture
from common.data.faults import BadRowError, refuse
from common.data.formats.split_names import read_split_name
from common.data.row import bare_label
from common.data.table import UNNAMED, count_cases, reading_data, refuse_foreign
from common.errors import DataError, clip, escape_unprintable

LISTS = (".csv", ".tsv", ".jsonl")
Splits = dict[str, list[Picture]]
_AS_UTF8 = "save it as UTF-8"
_CHECK = "check the path, and who may read what lies there"
_SAVE = "save the list as CSV in UTF-8"
_SEPARATOR = re.compile(r'"?sep=(.)"?(?:\r\n|\r|\n)', re.IGNORECASE)  # a first line for Excel
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
_MARKS |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # after UTF-32's, which begins with one
_DELIMITERS = (",", ";", "\t", "|")
# What others call the columns, for the hint alone.
_OFTEN = {
    "path": {"file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "image_id", "image_name"},
    "label": {"class", "class_name", "classname", "category", "target", "solution", "species", "name", "labels", "y"},
}


def read_list(place: Path) -> tuple[Splits, list[str]]:
    """Return the pictures of a list by split, and notes; paths are below the list's own folder.

    Cells that say one split, as `Train` and `training`, are one. Raises DataError with every line that has no path or
    label, and for a text that cannot be read.
    """
    pictures: Splits = defaultdict(list)
    faults: list[tuple[str, BadRowError]] = []
    count = 0
    for number, row in _lines(place):
        count += 1
        try:
            said = row.get("split")
            without = said is None or (isinstance(said, str) and not said.strip())
            split = UNNAMED if without else _text(row, "split")
            pictures[split].append(_picture(place.parent, row))
        except BadRowError as fault:
            faults.append((f"line {number}", fault))
    refuse(str(place), count, faults)
    if not count:
        raise DataError(f"{place} holds no rows", got="nothing below its columns", remedy="give a line a picture")
    if UNNAMED in pictures and len(pictures) > 1:
        raise DataError(
            f"{len(pictures[UNNAMED])} of {count} lines of {place} have no split",
            got="others are of " + ", ".join(sorted(filter(None, pictures))[:5]),
            remedy="give every line its split, or leave column split out",
        )
    return _join_splits(pictures)


def _picture(root: Path, row: Mapping[str, Any]) -> Picture:
    """Return the picture of a line. Raises BadRowError for cells that cannot be used."""
    surplus = row.get(None, ())  # type: ignore[call-overload]  # csv's key for the cells beyond the columns
    if surplus := [cell for cell in surplus if cell.strip()]:
        raise BadRowError(
            f"{len(surplus)} more cells than the first line",
            remedy='put a cell with a comma in it in quotes, as in a.jpg,"cat, big"',
        )
    path, label = _text(row, "path"), bare_label(row.get("label"), column="label")
    if "\\" in path and not (root / path).exists():
        path = path.replace("\\", "/")  # as Windows writes it
    return Picture(root=root, path=path, label=label)


def _join_splits(pictures: Splits) -> tuple[Splits, list[str]]:
    """Return the pictures with one name for all the names that say one split and nothing else, and notes on them."""
    joined: Splits = defaultdict(list)
    names: dict[str, list[str]] = defaultdict(list)
    for name, found in pictures.items():
        read = read_split_name(name)
        split = read.split if read is not None and read.rank == 0 else name
        joined[split] += found
        names[split].append(name)
    notes = [count_cases(f"names of one split, {split}", same) for split, same in names.items() if len(same) > 1]
    return dict(joined), notes


def _lines(place: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the rows of a list with the numbers of their lines."""
    with reading_data(place, remedy=_CHECK):
        refuse_foreign(place, remedy=_SAVE)
        text = _decode(place)
        yield from (_json_lines if place.suffix.casefold() == ".jsonl" else _csv_lines)(place, text)


def _csv_lines(place: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield as `_lines` does. Lines of empty cells are left out, as Excel writes them below a table."""
    said = _SEPARATOR.match(text)
    text, skipped = (text[said.end() :], 1) if said else (text, 0)
    line = 1
    try:
        columns, delimiter = _read_header(place, text, said[1] if said else _DELIMITERS)
        with reading_data(place, remedy=_CHECK):
            lines = io.StringIO(text, newline="")
            reader = csv.DictReader(lines, columns, delimiter=delimiter, skipinitialspace=True, strict=True)
        next(reader, None)  # the first line
        line = reader.line_num + 1
        for row in reader:
            if any("".join(cell or "").strip() for cell in row.values()):  # the surplus cells are a list
                yield reader.line_num + skipped, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{place} cannot be read from line {line + skipped} on",
            got=f"{error}",
            remedy='close the quote; a quote within a cell is written twice, as in a.jpg,"12"" disc"',
        ) from error


def _json_lines(place: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(io.StringIO(text), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, make_object=_make_row)
        except ValueError as error:
            raise DataError(
                f"{place} cannot be read",
                got=f"line {number}: {error}",
                remedy='write one object a line, as in {"path": "a.jpg", "label": "cat"}',
            ) from error
        yield number, row if isinstance(row, dict) else {}


def _make_row(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object by its keys in small letters. Raises ValueError where two of them are one of our columns."""
    names = [name.strip().casefold() for name, _ in pairs]
    if twice := _find_twice(names):
        raise ValueError(f"it has {twice} twice: " + ", ".join(f"{name}: {cell!r}" for name, cell in pairs))
    return dict(zip(names, (cell for _, cell in pairs), strict=True))


def _find_twice(names: Sequence[str]) -> str | None:
    """Return the first of our columns that is there twice."""
    return next((name for name in ("path", "label", "split") if names.count(name) > 1), None)


def _decode(place: Path) -> str:
    """Return the text of a file by its byte order mark, and without one as UTF-8. Raises DataError for another code."""
    data = place.read_bytes()
    code = next((code for mark, code in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(code)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{place} is not in UTF-8",
            got=f"byte {data[error.start]:#04x} in line {line}: perhaps Latin-1 or Windows-1252"
            if code == "utf-8"
            else f"a mark of {code.upper()}, and then {error.reason}",
            remedy=_AS_UTF8,
        ) from error
    if 0 < text.count("\0") < len(text) / 4:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{place} holds a zero byte", got=f"in line {line}", remedy="write the line anew")
    if "\0" in text:
        raise DataError(
            f"{place} is not in UTF-8",
            got="zero bytes: perhaps UTF-16 without a byte order mark",
            remedy=_AS_UTF8,
        )
    return text


def _read_header(place: Path, text: str, delimiters: Sequence[str]) -> tuple[list[str], str]:
    """Return the columns of the first line in small letters, and what stands between them.

    Raises DataError where path or label is missing.
    """
    first = io.StringIO(text, newline="")
    headers: dict[str, Sequence[str]] = {}
    for delimiter in delimiters:
        first.seek(0)
        headers[delimiter] = next(csv.reader(first, delimiter=delimiter, skipinitialspace=True), [])
    delimiter = max(delimiters, key=lambda sign: len(headers[sign]))  # the first of equals: a comma
    columns = [name.strip().casefold() for name in headers[delimiter]]
    if missing := [name for name in ("path", "label") if name not in columns]:
        hints = [f"{found} for {name}" for name in missing for found in columns if found in _OFTEN[name]]
        raise DataError(
            f"{place} has no column {' and no column '.join(missing)}",
            got="first line: " + (clip(escape_unprintable(", ".join(headers[delimiter]))) or "empty"),
            remedy="begin the file with the line path,label or path,label,split"
            + (f" (perhaps {', '.join(hints)})" if hints else ""),
        )
    if twice := _find_twice(columns):
        raise DataError(f"{place} has column {twice} twice", got=", ".join(columns), remedy="leave one of them out")
    return columns, delimiter


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        there = f" among {', '.join(row)}" if row and column not in row else ""
        raise BadRowError(f"{column} is {value!r}{there}", remedy=f"give every line its {column} as text")
    return value.strip()
