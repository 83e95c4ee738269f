"""Parquet files: one, or a folder of them whose names say the splits. A group of rows is read when it is asked for."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from common.data.formats.parquet_names import find_notes, name_splits
from common.data.formats.tree import Tree
from common.data.table import (
    UNNAMED,
    Opener,
    Table,
    read_arrow_row,
    reading_data,
    refuse_foreign,
    refuse_twin_columns,
)
from common.errors import DataError

LARGEST_GROUP = 1 << 30  # bytes of a row group in memory
KEPT = 1 << 29  # bytes of all row groups that are kept
_FEW_ROWS = 16


def parquet_file(place: Path) -> dict[str, Opener]:
    """Return the file's rows as the only split."""
    return {UNNAMED: partial(_open, [place], place.parent, ())}


def parquet_folder(tree: Tree) -> dict[str, Opener]:
    """Return the splits by the names of files or folders; none without parquet files.

    Raises DataError as `name_splits` does, and when links lead to folders outside.
    """
    place, by_split = tree.top.path, name_splits(tree)
    if not by_split:
        return {}
    tree.refuse_leaving()
    notes = find_notes(tree, by_split)
    return {name: partial(_open, group, place, notes) for name, group in by_split.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """One row group of a file: what is read and kept at a time."""

    file: Path
    index: int  # in the file
    first: int  # number of its first row in the split


class _ParquetRows:
    """Rows of several files in a row. One group of rows is in memory while it is asked for, and others as they fit."""

    def __init__(self, files: list[Path]) -> None:
        """Read the footers alone. Raises DataError for a group too large to be read, and files of unlike columns."""
        import pyarrow.parquet as pq

        self._footers: dict[Path, Any] = {}
        schemas: dict[Path, Any] = {}
        for file in files:
            with reading_data(file):
                refuse_foreign(file, remedy="write it anew as parquet")
                self._footers[file] = pq.read_metadata(file)
                schemas[file] = self._footers[file].schema.to_arrow_schema().remove_metadata()
            refuse_twin_columns(file, schemas[file].names)
        for file in files[1:]:
            _check_columns(files[0], schemas[files[0]], file, schemas[file])
        self._groups: list[_Group] = []
        self._rows = 0
        for file, footer in self._footers.items():
            for index in range(footer.num_row_groups):
                group = footer.row_group(index)
                if group.total_byte_size > LARGEST_GROUP:
                    raise _refuse_group(file, index, group.total_byte_size)
                self._groups.append(_Group(file=file, index=index, first=self._rows))
                self._rows += group.num_rows
        self.columns = tuple(schemas[files[0]].names)
        self._firsts = [group.first for group in self._groups]
        self._kept: OrderedDict[int, Any] = OrderedDict()  # tables by the number of their group, the latest last
        self._lock = Lock()  # rows are read by several threads
        self._fault: DataError | None = None  # what ended the reading of a group

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        number = bisect_right(self._firsts, range(len(self))[index]) - 1
        inside = index % len(self) - self._firsts[number]
        with reading_data(f"row {inside} of row group {self._groups[number].index} of {self._groups[number].file}"):
            return read_arrow_row(self._table(number), inside)

    def column(self, name: str) -> Iterator[Any]:
        """Yield the cells of one column; the others are not read."""
        for group in self._groups:
            with reading_data(f"column {name} of {group.file}"):
                yield from self._read(group, [name]).column(0).to_pylist()

    def _read(self, group: _Group, columns: list[str]) -> Any:
        """Read columns of a group. Raises DataError as `_read_group` does."""
        try:
            return _read_group(group, self._footers[group.file], columns)
        except DataError as error:
            self._fault = error
            raise

    def _table(self, number: int) -> Any:
        """Return the rows of a group, and forget those that were not asked for longest where a new one is read."""
        with self._lock:
            if self._fault:  # the other threads need not try
                raise self._fault
            if number not in self._kept:
                self._kept[number] = self._read(self._groups[number], list(self.columns))
                sizes = {kept: table.nbytes for kept, table in self._kept.items()}
                # Threads that read in order are in two groups at a time.
                while len(self._kept) > 2 and sum(sizes.values()) > KEPT:
                    del sizes[self._kept.popitem(last=False)[0]]
            self._kept.move_to_end(number)
            return self._kept[number]


def _check_columns(first: Path, known: Any, file: Path, schema: Any) -> None:
    """Raise DataError unless two files of a split have the same columns, of types whose cells read alike."""
    for name in (*known.names, *schema.names):
        types = [str(found.field(name).type) if name in found.names else "missing" for found in (known, schema)]
        if "missing" in types or not _reads_alike(known.field(name).type, schema.field(name).type):
            raise DataError(
                f"{file.name} has other columns than {first.name}, a file of the same split: {name} differs",
                got=f"{types[0]} in {first.name}, {types[1]} in {file.name}",
                remedy="write them anew with one schema, or give the splits names of their own",
            )


def _reads_alike(one: Any, other: Any) -> bool:
    """Whether cells of two types are the same kind of values in Python; a type of nulls alone goes with any."""
    import pyarrow.types as pt

    one, other = (kind.value_type if pt.is_dictionary(kind) else kind for kind in (one, other))
    if one.equals(other) or pt.is_null(one) or pt.is_null(other):
        return True
    if pt.is_struct(one) and pt.is_struct(other):
        names = {field.name for field in (*one, *other)}
        both = all(one.get_field_index(name) >= 0 and other.get_field_index(name) >= 0 for name in names)
        return both and all(_reads_alike(one.field(name).type, other.field(name).type) for name in names)
    lists = (pt.is_list, pt.is_large_list, pt.is_fixed_size_list)
    if any(is_list(one) for is_list in lists) and any(is_list(other) for is_list in lists):
        return _reads_alike(one.value_type, other.value_type)
    texts, numbers = (pt.is_string, pt.is_large_string), (pt.is_integer,)
    kinds = (texts, (pt.is_binary, pt.is_large_binary, pt.is_fixed_size_binary), numbers, (pt.is_floating,))
    return any(any(test(one) for test in kind) and any(test(other) for test in kind) for kind in kinds)


def _read_group(group: _Group, footer: Any, columns: list[str]) -> Any:
    """Read columns of a row group, a few rows at a time: a cell that repeats takes next to nothing in the file.

    Raises DataError when it cannot be read, or takes over `LARGEST_GROUP` in memory.
    """
    import pyarrow as pa

    with reading_data(group.file):
        try:
            return _read_batches(group, footer, columns, _FEW_ROWS)
        except pa.ArrowNotImplementedError:  # of nested columns it reads no 2 GB at a time
            return _read_batches(group, footer, columns, 1)


def _read_batches(group: _Group, footer: Any, columns: list[str], rows: int) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    batches, nbytes = [], 0
    with pq.ParquetFile(group.file, metadata=footer) as file:
        for batch in file.iter_batches(rows, row_groups=[group.index], columns=columns):
            batches.append(batch)
            nbytes += batch.nbytes
            if nbytes > LARGEST_GROUP:
                batches.clear()  # whoever holds the error holds them
                raise _refuse_group(group.file, group.index, nbytes)
        return pa.Table.from_batches(batches)


def _refuse_group(file: Path, index: int, nbytes: int) -> DataError:
    return DataError(
        f"row group {index} of {file} is too large to be read at a time",
        got=f"{nbytes / 1e9:.1f} GB or more in memory, from a file of {file.stat().st_size / 1e9:.4f} GB",
        remedy=f"write it in row groups of under {LARGEST_GROUP / 1e9:.1f} GB: row_group_size=256 of pyarrow's writer",
    )


def _open(files: list[Path], root: Path, notes: tuple[str, ...], split: str) -> Table:
    """Open the files of one split. Raises DataError when that fails."""
    with reading_data(files[0] if len(files) == 1 else root):
        rows = _ParquetRows(files)
    return Table(
        name=f"{files[0] if len(files) == 1 else root} ({split})",
        split=split,
        columns=rows.columns,
        rows=rows,
        root=root,
        notes=notes,
    )
