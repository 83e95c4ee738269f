"""Splits as parquet files, which Rollcall reads, and `datasets` with the pictures as images."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from common.data.build.collection import Picture
from common.data.build.stored import THREADS, Reader, Stored
from common.errors import as_utf8

_ROWS = 256  # in one row group, which is held in memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row before its picture is read."""

    picture: Picture
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A parquet file that is complete."""

    rows: int
    sha256: str


def write_split(folder: Path, name: str, rows: Sequence[Row], read: Reader) -> Written:
    """Write `<name>-00000-of-00001.parquet`, without the rows that the reader adds to its faults."""
    import pyarrow.parquet as pq

    file = folder / f"{name}-00000-of-00001.parquet"
    schema = _schema()
    with file.open("wb") as target, pq.ParquetWriter(target, schema) as writer:  # pyarrow takes UTF-8 names alone
        for group in _groups(rows, read):
            writer.write_batch(_batch(group, schema))
    with file.open("rb") as written:
        return Written(rows=len(rows), sha256=hashlib.file_digest(written, "sha256").hexdigest())


def _groups(rows: Sequence[Row], read: Reader) -> Iterator[list[dict[str, Any]]]:
    """Yield the cells of `_ROWS` rows at a time; their pictures are read in threads."""
    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS, "read") as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the reader's limit decides
        warnings.simplefilter("ignore", UserWarning)  # PIL on tags it cannot read
        for start in range(0, len(rows), _ROWS):
            group = rows[start : start + _ROWS]
            images = pool.map(read, [row.picture for row in group])
            yield [_cells(row, image) for row, image in zip(group, images, strict=True) if image]


def _cells(row: Row, image: Stored) -> dict[str, Any]:
    return {
        "problem": row.problem,
        "image": {"bytes": image.data, "path": as_utf8(row.picture.path)},
        "image_width": image.width,
        "image_height": image.height,
        "solution": row.picture.label,
    }


def _schema() -> Any:
    """Return the schema of the columns; its metadata tells `datasets` that `image` holds images."""
    from datasets import Features, Value
    from datasets import Image as ImageFeature

    text, number = Value("string"), Value("int64")
    columns = {"problem": text, "image": ImageFeature(), "image_width": number, "image_height": number}
    return Features({**columns, "solution": text}).arrow_schema


def _batch(group: list[dict[str, Any]], schema: Any) -> Any:
    import pyarrow as pa

    return pa.RecordBatch.from_pylist(group, schema=schema)
