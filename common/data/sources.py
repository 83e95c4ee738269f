"""Checked examples of a split: it is read whole, or refused with every bad row counted."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from PIL import Image

from common.config.schema import DataConfig
from common.data.content.columns import check_columns
from common.data.content.digests import NOTHING
from common.data.faults import BadRowError, refuse
from common.data.formats.split_names import pick_split
from common.data.places import find_splits
from common.data.row import KnownPicture, ReadRow, read_row
from common.data.split import hold_out
from common.data.table import UNNAMED, Table, reading_data
from common.errors import DataError, clip, escape_unprintable
from common.lru import ByteLRU
from common.types import Example

_THREADS = min(8, os.cpu_count() or 1)
_CHUNK = 16  # rows that a thread reads at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """A row without its image: enough to check prompts and labels."""

    id: str
    problem: str
    label: str
    image_size: tuple[int, int] | None  # (height, width) as the model gets it; None for a text-only row
    picture: bytes = NOTHING  # digest of the picture as it lies there; NOTHING for a text-only row
    file: bytes = NOTHING  # digest of the file of a picture that can travel as that; NOTHING of any other
    columns: bytes = NOTHING  # digest of the other columns


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    """What the reading of all rows gave."""

    outlines: tuple[Outline, ...]
    notes: tuple[str, ...]  # a line for each thing in the rows that is not used
    left_out: Mapping[str, str]  # the first cell that cannot be read and why, by column


class ExampleSource:
    """Checked examples by number. Images are kept up to `data.cache_mb`, else read again."""

    def __init__(self, table: Table, rows: Sequence[int], data: DataConfig, *, checked: _Checked | None = None) -> None:
        """Read and decode rows `rows` of `table` once, unless they are `checked` already.

        Raises DataError naming the rows that cannot be used, or where a column of pictures holds none.
        """
        self.name, self.split = table.name, table.split
        self._table, self._rows, self._data = table, rows, data
        self._cache: ByteLRU[int, Example] = ByteLRU(data.cache_mb * 2**20)
        checked = checked or self._check_all()
        self.outlines, self.notes = checked.outlines, (*table.notes, *checked.notes)
        self.labels: tuple[str, ...] = tuple(sorted({outline.label for outline in self.outlines}))
        self.left_out = checked.left_out
        self.columns = tuple(name for name in table.columns if name not in checked.left_out)
        self._checked_notes = checked.notes

    def __len__(self) -> int:
        return len(self.outlines)

    def __getitem__(self, index: int) -> Example:
        """Return an example. Raises DataError when its image could be read at first and now cannot."""
        index = range(len(self))[index]
        example = self._cache.get(index)
        if example is None:
            example = self.keep(index, self._read(index))
        if self.left_out:
            columns = {name: cell for name, cell in example.columns.items() if name not in self.left_out}
            example = replace(example, columns=columns)
        return example

    def select(self, indices: Sequence[int]) -> ExampleSource:
        """Return the examples of these numbers as a source of their own. Nothing is read again."""
        outlines = tuple(self.outlines[index] for index in indices)
        checked = _Checked(outlines=outlines, notes=self._checked_notes, left_out=self.left_out)
        part = ExampleSource(self._table, [self._rows[index] for index in indices], self._data, checked=checked)
        for number, index in enumerate(indices):
            if example := self._cache.get(index):
                part.keep(number, example)
        return part

    def describe(self, index: int) -> str:
        """Return the id of an example, with the file of its picture where that is known: `train/7 (cat/3.png)`."""
        cell = self._table.rows[self._rows[index]].get("image")
        path = cell.get("path") if isinstance(cell, Mapping) else cell
        if not isinstance(path, str | Path):
            return self._id(index)
        root = self._table.root
        shown = os.path.relpath(path, root) if root is not None and Path(path).is_absolute() else str(path)
        return f"{self._id(index)} ({escape_unprintable(clip(shown, 80))})"

    def _check_all(self) -> _Checked:
        """Read every row once, in threads. Raises one DataError with every bad row."""
        outlines: list[Outline] = []
        faults: list[tuple[str, BadRowError]] = []
        left_out: dict[str, str] = {}
        marked = moving = 0
        starts = range(0, len(self._rows), _CHUNK)
        with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS, "decode") as pool:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # data.max_image_megapixels decides
            warnings.simplefilter("ignore", UserWarning)  # PIL on tags it cannot read
            for index, outcome in enumerate(chain.from_iterable(pool.map(self._try_chunk, starts))):
                if isinstance(outcome, BadRowError):
                    faults.append((self._id(index), outcome))
                    continue
                if self._is_kept(index):
                    self.keep(index, outcome.example)
                outlines.append(_outline(outcome))
                for name, why in outcome.unreadable.items():
                    left_out.setdefault(name, f"{self._id(index)}: {why}")
                marked, moving = marked + outcome.marked, moving + outcome.moves
        refuse(self.name, len(self._rows), faults)
        if "image" in self._table.columns and not any(outline.picture for outline in outlines):
            raise DataError(
                f"none of the {len(outlines)} rows of {self.name} has a picture",
                got="a column image without a value in any row",
                remedy="give the rows their pictures, or drop the column: a set without it is a text-only one",
            )
        notes = [
            (marked, "questions hold a mark for their picture, as <image>, which is taken out"),
            (moving, "pictures have several frames or pages: the first is taken"),
        ]
        said = [f"{self.name}: {count} of {len(outlines)} {what}" for count, what in notes if count]
        said += [f"{self.name}: column {name} is left out, for {why}" for name, why in left_out.items()]
        return _Checked(outlines=tuple(outlines), notes=tuple(said), left_out=left_out)

    def _is_kept(self, index: int) -> bool:
        """Whether the check keeps the example of that number: to resize the others would be in vain."""
        size = self._data.image_size
        return size is None or (index + 1) * size * size * 3 <= self._data.cache_mb * 2**20

    def _try_chunk(self, start: int) -> list[ReadRow | BadRowError]:
        """Check the rows from `start` on. Those that are not kept lose their pictures here."""
        found: list[ReadRow | BadRowError] = []
        for index in range(start, min(start + _CHUNK, len(self._rows))):
            kept = self._is_kept(index)
            outcome = self._try(index, resize=kept)
            if isinstance(outcome, ReadRow) and not kept:
                outcome = replace(outcome, example=replace(outcome.example, image=None))
            found.append(outcome)
        return found

    def _try(self, index: int, *, resize: bool = True, known: KnownPicture | None = None) -> ReadRow | BadRowError:
        """Return the row of that number, or the fault it has."""
        try:
            return read_row(
                self._table.rows[self._rows[index]],
                row_id=self._id(index),
                root=self._table.root,
                data=self._data,
                resize=resize,
                known=known,
            )
        except BadRowError as fault:
            return BadRowError(fault.reason, remedy=fault.remedy)  # anew: the old one's traceback holds the whole row

    def _read(self, index: int) -> Example:
        outline = self.outlines[index]
        known = (
            KnownPicture(size=outline.image_size, file=outline.file) if outline.image_size and outline.file else None
        )
        outcome = self._try(index, known=known)
        if isinstance(outcome, BadRowError):
            refuse(self.name, len(self), [(self._id(index), outcome)])
            raise outcome
        return outcome.example

    def keep(self, index: int, example: Example) -> Example:
        """Remember an example for the next access, as far as `data.cache_mb` goes."""
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
    if split == data.split and data.eval_fraction:
        return _divide(data)[0]
    return _read_whole(_open(data.path, split, data, unnamed=True), data)


def load_held_out(data: DataConfig) -> ExampleSource | None:
    """Read the rows to evaluate on, a share of `data.split` or `data.eval_split`; return None without evaluation.

    Raises DataError as `load` does.
    """
    _refuse_two_places(data)
    if data.eval_fraction:
        return _divide(data)[1]
    if data.eval_split is None:
        return None
    elsewhere = data.eval_path is not None and data.eval_path != data.path
    return _read_whole(_open(data.eval_path or data.path, data.eval_split, data, unnamed=elsewhere), data)


def load_both(data: DataConfig) -> tuple[ExampleSource, ExampleSource | None]:
    """Read the rows to train on and those to evaluate on, each once, as `load` and `load_held_out` do."""
    _refuse_two_places(data)
    if data.eval_fraction:
        return _divide(data)
    return load(data, split=data.split), load_held_out(data)


def _refuse_two_places(data: DataConfig) -> None:
    if data.eval_fraction and data.eval_path:
        raise DataError(
            "two places are named for the held-out rows",
            got=f"data.eval_fraction = {data.eval_fraction:g} and data.eval_path = {data.eval_path}",
            remedy="set data.eval_fraction to 0 or data.eval_path to null",
        )


def _divide(data: DataConfig) -> tuple[ExampleSource, ExampleSource]:
    """Read `data.split` and return what is left to train on and the share that is held out.

    The rows of one picture stay on one side.

    Raises DataError when no row is held out.
    """
    source = _read_whole(_open(data.path, data.split, data, unnamed=True), data)
    labels = [outline.label for outline in source.outlines]
    pictures = [outline.picture for outline in source.outlines]
    held_out = hold_out(labels, data.eval_fraction, pictures)
    if not held_out:
        raise DataError(
            f"data.eval_fraction = {data.eval_fraction:g} holds out no row of {source.name}",
            got=f"{len(labels)} rows of {len(source.labels)} labels and {len(set(pictures))} different pictures",
            remedy="raise data.eval_fraction, or give data.eval_path or data.eval_split",
        )
    return source.select([row for row in range(len(source)) if row not in held_out]), source.select(sorted(held_out))


def _read_whole(table: Table, data: DataConfig) -> ExampleSource:
    return ExampleSource(table, range(len(table.rows)), data)


def _open(path: str, split: str, data: DataConfig, *, unnamed: bool) -> Table:
    """Open a split and check its columns.

    `unnamed`: the only split of a place that names none will do. For evaluation beside training it would not.
    """
    splits = find_splits(path, data.question)
    name = pick_split(path, splits, split)
    opener = splits.get(UNNAMED if name is None and unnamed else name or split)
    if opener is None:
        names = "splits: " + ", ".join(sorted(splits)) if UNNAMED not in splits else "a single split without a name"
        notes = [note for name in sorted(splits)[:1] for note in splits[name](name).notes]
        raise DataError(
            f"{path} has no split {split}",
            got="; ".join([names, *notes]),
            remedy="set data.split and data.eval_split to splits that exist; to evaluate, hold out a share with "
            "data.eval_fraction or set data.eval_path; data.eval_split: null evaluates nothing",
        )
    with reading_data(path):
        table = opener(split)
    check_columns(table)
    return table


def _outline(row: ReadRow) -> Outline:
    example = row.example
    return Outline(
        id=example.id,
        problem=example.problem,
        label=example.label,
        image_size=row.image_size,
        picture=row.picture,
        file=row.file,
        columns=row.columns,
    )
