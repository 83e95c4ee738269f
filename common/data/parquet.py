"""Parquet files: one, or a folder of them whose names say the splits."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from common.data.table import SPLIT_NAMES, UNNAMED, Opener, Table, is_hidden, unreadable
from common.errors import DataError

_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}.*")


def parquet_file(place: Path) -> dict[str, Opener]:
    """Return the file's rows as the only split."""
    return {UNNAMED: partial(_open, [place], place.parent)}


def parquet_folder(place: Path) -> dict[str, Opener]:
    """Return the splits by the names of files or folders; none without parquet files.

    Raises DataError when some names say a split and others do not.
    """
    files = sorted(file for file in place.rglob("*.parquet") if not is_hidden(file, place))
    by_split: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        by_split[_split_of(file.relative_to(place))].append(file)
    if UNNAMED in by_split and len(by_split) > 1:
        raise DataError(
            f"{place} mixes parquet files with and without the name of a split",
            got=", ".join(file.name for file in by_split[UNNAMED][:5]),
            remedy="name them train-00000-of-00001.parquet and so on, or set data.path to one file",
        )
    return {name: partial(_open, group, place) for name, group in by_split.items()}


def _split_of(file: Path) -> str:
    """Return the split that a name says.

    `data/base_test-00000-of-00001.parquet` -> base_test, `test/7.parquet` -> test, `part-1.parquet` -> UNNAMED.
    """
    if shard := _SHARD.fullmatch(file.stem):
        return shard[1]
    words = re.split(r"[\W_\d]+", str(file.with_suffix("")))
    return next((word for word in words if word in SPLIT_NAMES), UNNAMED)


class _ParquetRows:
    def __init__(self, files: list[Path]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._table = pa.concat_tables([pq.read_table(file, partitioning=None) for file in files])
        self.columns = tuple(self._table.column_names)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        row: dict[str, Any] = self._table.slice(index, 1).to_pylist()[0]
        return row


def _open(files: list[Path], root: Path, split: str) -> Table:
    """Read the files of one split. Raises DataError when that fails."""
    try:
        rows = _ParquetRows(files)
    except (OSError, ValueError) as error:
        raise unreadable(files[0] if len(files) == 1 else root, error) from error
    return Table(
        name=f"{files[0] if len(files) == 1 else root} ({split})",
        split=split,
        columns=rows.columns,
        rows=rows,
        root=root,
    )
