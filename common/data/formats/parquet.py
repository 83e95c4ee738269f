"""Parquet files: one, or a folder of them whose names say the splits. A group of rows is read when it is asked for."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from common.data.formats.split_names import OWN_SPLITS, answers, read_split_name, refuse_twins, word_of_split
from common.data.formats.tree import Tree
from common.data.table import UNNAMED, Opener, Table, count_cases, reading_data, refuse_foreign, refuse_twin_columns
from common.errors import DataError

LARGEST_GROUP = 1 << 30  # bytes of a row group in memory
KEPT = 1 << 29  # bytes of all row groups that are kept
_FEW_ROWS = 16
_OTHER_ROWS = (".csv", ".tsv", ".jsonl", ".arrow")  # files that may hold rows too
_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}.*")


def parquet_file(place: Path) -> dict[str, Opener]:
    """Return the file's rows as the only split."""
    return {UNNAMED: partial(_open, [place], place.parent, ())}


def parquet_folder(tree: Tree) -> dict[str, Opener]:
    """Return the splits by the names of files or folders; none without parquet files.

    Raises DataError when some names say a split and others do not, two of them say one split, or links lead to folders
    outside.
    """
    place = tree.top.path
    by_split = _group_by_split([file for file in tree.top.all_files(".parquet") if is_parquet(file)], place)
    if UNNAMED in by_split and len(by_split) > 1:
        raise DataError(
            f"{place} mixes parquet files with and without the name of a split",
            got=", ".join(file.name for file in by_split[UNNAMED][:5]),
            remedy="name them train-00000-of-00001.parquet and so on, or set data.path to one file",
        )
    refuse_twins(str(place), by_split)
    if not by_split:
        return {}
    tree.refuse_leaving()
    notes = _notes(tree, by_split)
    return {name: partial(_open, group, place, notes) for name, group in by_split.items()}


def is_parquet(file: Path) -> bool:
    """Whether it is a parquet file by its name, in any case."""
    return file.suffix.casefold() == ".parquet" and file.is_file()


def _notes(tree: Tree, by_split: Mapping[str, Sequence[Path]]) -> tuple[str, ...]:
    """Return a line for each kind of thing that may be taken for rows and is none, or joins what may be apart."""
    place = tree.top.path
    lists = tree.top.all_files(*_OTHER_ROWS)
    pictures = [folder.path for folder in tree.top.filled if not folder.all_files(".parquet")]
    hidden = [path for path in tree.hidden if path.suffix.casefold() == ".parquet" or path.is_dir()]
    kinds = {
        "hidden files and folders are left out": hidden,
        "links to folders that are read already are left out": tree.again,
        "lists beside the parquet files are left out": lists,
        "folders beside the parquet files are read only where rows name their files": pictures,
    }
    lines = [
        count_cases(what, sorted(str(path.relative_to(place)) for path in paths))
        for what, paths in kinds.items()
        if paths
    ]
    for split, files in by_split.items():
        names = sorted({_naming_part(file.relative_to(place)) for file in files})
        if split != UNNAMED and len(names) > 1:
            lines.append(count_cases(f"files of several names are one split, {split}", names))
    if own := sorted(name for name in by_split if read_split_name(name) and not answers(name, by_split)):
        lines.append(count_cases(OWN_SPLITS, own))
    return tuple(lines)


def _group_by_split(files: Iterable[Path], place: Path) -> dict[str, list[Path]]:
    """Return the files by what their names say of the split, as the names say it; UNNAMED where they say nothing.

    `Test/7.parquet` is of Test, `base_test.parquet` of base_test. `cars_train.parquet` is of train: unless that is
    there as such, then it is a split of its own name.
    """
    by_name: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        by_name[_naming_part(file.relative_to(place))].append(file)
    words = {name: word_of_split(name) for name in by_name}
    sure = {words[name] for name in by_name if (read := read_split_name(name)) is not None and read.is_sure}
    by_split: dict[str, list[Path]] = defaultdict(list)
    for name, found in by_name.items():
        read = read_split_name(name)
        apart = words[name] in sure and read is not None and not read.is_sure
        whole = apart or any(
            _SHARD.fullmatch(file.stem) for file in found
        )  # what others name with care is a split of its own
        by_split[name if whole else words[name]] += found
    return dict(by_split)


def _naming_part(file: Path) -> str:
    """Return the part of a path that says the split: a folder, or the name of the file without the number of its part.

    `data/train-00000-of-00001.parquet` -> train, `test/data-00000-of-00001.parquet` -> test, `a_7.parquet` -> a.
    """
    shard = _SHARD.fullmatch(file.stem)
    if shard and word_of_split(shard[1]):
        return shard[1]
    return next(filter(word_of_split, file.parts[:-1]), shard[1] if shard else _without_numbers(file.stem))


def _without_numbers(stem: str) -> str:
    """Return the name of a file without the number of its part: `train-0003` and `train_part2` are `train`."""
    return re.sub(r"([\W_]*(part|shard)?[\W_]*\d+)+$", "", stem) or stem


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
            row: dict[str, Any] = self._table(number).slice(inside, 1).to_pylist()[0]
            return row

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
