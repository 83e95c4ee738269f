"""Checked examples of a split: it is read whole, or refused with every bad row counted."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from common.config.schema import DataConfig
from common.data.faults import BadRowError, refuse
from common.data.formats.split_names import pick_split
from common.data.places import find_splits
from common.data.row import OWN_COLUMNS, bare_label, read_row
from common.data.split import hold_out
from common.data.table import UNNAMED, Table, reading_data
from common.errors import DataError
from common.lru import ByteLRU
from common.types import Example

_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """A row without its image: enough to check prompts and labels."""

    id: str
    problem: str
    label: str
    image_size: tuple[int, int] | None  # (height, width) as the model gets it; None for a text-only row


class ExampleSource:
    """Checked examples by number. Decoded images are kept up to `data.cache_mb`, else decoded on access."""

    def __init__(self, table: Table, rows: Sequence[int], data: DataConfig) -> None:
        """Read and decode rows `rows` of `table` once. Raises DataError naming the rows that cannot be used."""
        self.name = table.name
        self.notes = table.notes
        self._table, self._rows, self._data = table, rows, data
        self._cache: ByteLRU[int, Example] = ByteLRU(data.cache_mb * 2**20)
        self.outlines: tuple[Outline, ...] = self._check_all()
        self.labels: tuple[str, ...] = tuple(sorted({outline.label for outline in self.outlines}))

    def __len__(self) -> int:
        return len(self.outlines)

    def __getitem__(self, index: int) -> Example:
        """Return an example. Raises DataError when its image could be read at first and now cannot."""
        index = range(len(self))[index]
        example = self._cache.get(index)
        if example is None:
            example = self._keep(index, self._read(index))
        return example

    def _check_all(self) -> tuple[Outline, ...]:
        """Read every row once, in threads. Raises one DataError with every bad row."""
        outlines: list[Outline] = []
        faults: list[tuple[str, BadRowError]] = []
        with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS, "decode") as pool:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # data.max_image_megapixels decides
            for index, outcome in enumerate(pool.map(self._try, range(len(self._rows)))):
                if isinstance(outcome, BadRowError):
                    faults.append((self._id(index), outcome))
                else:
                    outlines.append(_outline(self._keep(index, outcome)))
        refuse(self.name, len(self._rows), faults)
        return tuple(outlines)

    def _try(self, index: int) -> Example | BadRowError:
        """Return the example of a row, or the fault it has."""
        try:
            return read_row(
                self._table.rows[self._rows[index]],
                row_id=self._id(index),
                root=self._table.root,
                data=self._data,
            )
        except BadRowError as fault:
            return BadRowError(fault.reason, remedy=fault.remedy)  # anew: the old one's traceback holds the whole row

    def _read(self, index: int) -> Example:
        outcome = self._try(index)
        if isinstance(outcome, BadRowError):
            refuse(self.name, len(self), [(self._id(index), outcome)])
            raise outcome
        return outcome

    def _keep(self, index: int, example: Example) -> Example:
        self._cache.put(index, example, 0 if example.image is None else example.image.nbytes)
        return example

    def _id(self, index: int) -> str:
        return f"{self._table.split}/{self._rows[index]}"


def say_notes(sources: Iterable[ExampleSource], say: Callable[[str], None]) -> None:
    """Say what was left out of the places of these splits, each line once."""
    for note in dict.fromkeys(note for source in sources for note in source.notes):
        say(f"note: {note}")


def load(data: DataConfig, *, split: str) -> ExampleSource:
    """Read `split` of `data.path`, without the rows held out when it is `data.split` and `data.eval_fraction` > 0.

    Raises DataError: nothing there, no such split, a missing column, no rows, or unusable rows.
    """
    table = _open(data.path, split, data, unnamed=True)
    if split != data.split or not data.eval_fraction:
        return ExampleSource(table, range(len(table.rows)), data)
    held_out = _held_out_rows(table, data.eval_fraction)
    return ExampleSource(table, [row for row in range(len(table.rows)) if row not in held_out], data)


def load_held_out(data: DataConfig) -> ExampleSource | None:
    """Read the rows to evaluate on, a share of `data.split` or `data.eval_split`; return None without evaluation.

    Raises DataError as `load` does.
    """
    if data.eval_fraction and data.eval_path:
        raise DataError(
            "two places are named for the held-out rows",
            got=f"data.eval_fraction = {data.eval_fraction:g} and data.eval_path = {data.eval_path}",
            remedy="set data.eval_fraction to 0 or data.eval_path to null",
        )
    if data.eval_fraction:
        table = _open(data.path, data.split, data, unnamed=True)
        return ExampleSource(table, sorted(_held_out_rows(table, data.eval_fraction)), data)
    if data.eval_split is None:
        return None
    elsewhere = data.eval_path is not None and data.eval_path != data.path
    table = _open(data.eval_path or data.path, data.eval_split, data, unnamed=elsewhere)
    return ExampleSource(table, range(len(table.rows)), data)


def _open(path: str, split: str, data: DataConfig, *, unnamed: bool) -> Table:
    """Open a split and check its columns.

    `unnamed`: the only split of a place that names none will do. For evaluation beside training it would not.
    """
    splits = find_splits(path, data.question)
    name = pick_split(path, splits, split)
    opener = splits.get(UNNAMED if name is None and unnamed else name or split)
    if opener is None:
        raise DataError(
            f"{path} has no split {split}",
            got="splits: " + ", ".join(sorted(splits)) if UNNAMED not in splits else "a single split without a name",
            remedy="set data.split and data.eval_split to splits that exist; to evaluate, hold out a share with "
            "data.eval_fraction or set data.eval_path; data.eval_split: null evaluates nothing",
        )
    with reading_data(path):
        table = opener(split)
    _check_columns(table)
    return table


def _check_columns(table: Table) -> None:
    """Raise DataError for a table without rows or without a column that is needed, naming columns that are close."""
    if not len(table.rows):
        raise DataError(
            f"{table.name} has no rows",
            got="0 rows",
            remedy="choose another data.path or split",
        )
    others = [name for name in table.columns if name not in OWN_COLUMNS]
    missing = [name for name in ("problem", "solution") if name not in table.columns]
    # A set without images is a text-only one, unless its images go by another name.
    if "image" not in table.columns and (_close("image", others) or _image_like(table.rows[0])):
        missing.append("image")
    if missing:
        hints = [f"{found!r} for {name!r}" for name in missing for found in _close(name, others)]
        raise DataError(
            f"{table.name} has no column {' and no column '.join(missing)}",
            got="columns: " + ", ".join(table.columns),
            remedy="rename columns to problem, image, solution" + (f" (perhaps {', '.join(hints)})" if hints else ""),
        )


def _close(name: str, others: Sequence[str]) -> list[str]:
    return difflib.get_close_matches(name, others, n=1, cutoff=0.7)


def _image_like(row: Mapping[str, object]) -> bool:
    return any(
        isinstance(cell, Image.Image | bytes) or (isinstance(cell, Mapping) and "bytes" in cell)
        for cell in row.values()
    )


def _held_out_rows(table: Table, fraction: float) -> frozenset[int]:
    """Return the numbers of the rows that are held out. Raises DataError for bad labels, or when there are none."""
    labels: list[str] = []
    faults: list[tuple[str, BadRowError]] = []
    for number, solution in enumerate(table.column("solution")):
        try:
            labels.append(bare_label(solution))
        except BadRowError as fault:
            faults.append((f"{table.split}/{number}", fault))
    refuse(table.name, len(table.rows), faults)
    rows = hold_out(labels, fraction)
    if not rows:
        raise DataError(
            f"data.eval_fraction = {fraction:g} holds out no row of {table.name}",
            got=f"{len(labels)} rows of {len(set(labels))} labels",
            remedy="raise data.eval_fraction, or give data.eval_path or data.eval_split",
        )
    return rows


def _outline(example: Example) -> Outline:
    size = None if example.image is None else example.image.shape[:2]
    return Outline(id=example.id, problem=example.problem, label=example.label, image_size=size)
