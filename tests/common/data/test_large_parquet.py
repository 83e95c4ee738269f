"""Parquet is read a row group at a time: memory follows the group, not the set."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.data.formats import parquet as module
from common.data.formats.parquet import parquet_file, parquet_folder
from common.data.formats.tree import read_tree
from common.data.table import UNNAMED
from common.errors import DataError
from tests.helpers.makers import QUESTION, encoded

MEGABYTE = 1 << 20
# Loads the set of a file and prints the error it ends in, and the peak of memory over that of its imports, in MB.
LOADING = """
import json, resource, sys
from common.config.schema import DataConfig
from common.data.sources import load
from common.errors import DataError
import pyarrow.parquet, PIL.Image
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
before, said = peak(), None
try: load(DataConfig(path=sys.argv[1]), split="train")
except DataError as error: said = str(error)
print(json.dumps([said, peak() - before]))
"""


def write_bomb(file: Path, *, groups: int, rows: int, dictionary: bool) -> Path:
    """`groups` row groups of `rows` rows whose pictures are 4 MB of zeros each."""
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("problem", pa.string()), ("image", struct), ("solution", pa.string())])
    row = {"problem": QUESTION, "image": {"bytes": bytes(4 * MEGABYTE), "path": None}, "solution": "cat"}
    batch = pa.RecordBatch.from_pylist([row] * 8, schema=schema)
    with pq.ParquetWriter(
        file, schema, compression="zstd", use_dictionary=dictionary, dictionary_pagesize_limit=64 * MEGABYTE
    ) as writer:
        for _ in range(groups):
            writer.write_table(pa.Table.from_batches([batch] * (rows // 8)), row_group_size=rows)
    return file


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"groups": 1, "rows": 1000, "dictionary": False}, "row group 0 of .* is too large"),
        ({"groups": 1, "rows": 1000, "dictionary": True}, "row group 0 of .* is too large"),
        ({"groups": 64, "rows": 16, "dictionary": False}, "1024 of 1024 rows"),
    ],
    ids=["one group", "one cell that repeats", "many groups"],
)
def test_a_file_that_unpacks_to_four_gigabytes_never_does(tmp_path: Path, shape: dict[str, Any], said: str) -> None:
    file = write_bomb(tmp_path / "bomb.parquet", **shape)
    assert file.stat().st_size < MEGABYTE
    done = subprocess.run(
        [sys.executable, "-c", LOADING, str(file)], capture_output=True, text=True, check=True, timeout=120
    )
    error, grown = json.loads(done.stdout)
    assert re.match(said, error) and str(file) in error
    assert grown < 1500, f"{grown} MB"


def rows_of() -> list[dict[str, Any]]:
    """Rows that differ in length and in what is null."""
    return [
        {
            "problem": QUESTION,
            "image": {"bytes": encoded(size=(8 + number % 5, 8)), "path": None},
            "solution": f"label {number}",
            "note": None if number % 3 else [str(number)] * (number % 4),
        }
        for number in range(157)
    ]


def test_rows_are_those_of_pyarrow_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over two files of ragged groups, with room for few of them."""
    monkeypatch.setattr(module, "KEPT", 3000)
    table = pa.Table.from_pylist(rows_of())
    pq.write_table(table.slice(0, 100), tmp_path / "train-00000-of-00002.parquet", row_group_size=30)
    pq.write_table(table.slice(100), tmp_path / "train-00001-of-00002.parquet", row_group_size=7)
    opened = parquet_folder(read_tree(tmp_path))["train"]("train")
    assert len(opened.rows) == 157 and opened.columns == tuple(table.column_names)
    wanted = table.to_pylist()
    for number in [0, 156, 29, 30, 99, 100, 5, 106, 107, *range(157), -1]:
        assert opened.rows[number] == wanted[number]
    assert list(opened.column("solution")) == table["solution"].to_pylist()
    with pytest.raises(IndexError):
        opened.rows[157]


def test_a_part_that_is_damaged_is_named_when_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "set.parquet"
    pq.write_table(pa.Table.from_pylist(rows_of()), file, row_group_size=50)
    data = bytearray(file.read_bytes())
    data[100:4000] = bytes(3900)
    file.write_bytes(data)
    opened = parquet_file(file)[UNNAMED]("train")
    with pytest.raises(DataError, match=r"set\.parquet cannot be read"):
        opened.rows[0]


def test_files_of_other_columns_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"problem": ["a"], "solution": ["b"]}), tmp_path / "train-00000-of-00002.parquet")
    pq.write_table(pa.table({"problem": ["a"], "solution": [1]}), tmp_path / "train-00001-of-00002.parquet")
    with pytest.raises(DataError, match="other columns than"):
        parquet_folder(read_tree(tmp_path))["train"]("train")
