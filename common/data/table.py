"""A split as it lies on disk: rows by number, with images that are not decoded yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from common.data.content.kinds import HEAD, describe_foreign
from common.errors import DataError, clip, describe_fault, escape_unprintable, raise_as

UNNAMED = ""  # the only split of a place that does not name its splits
_NAMED = 3  # cases named in a note; the rest are counted


class Rows(Protocol):
    """A sequence of rows; to read one may cost a disk access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One split of a data set, before any check."""

    name: str  # for messages: where it came from
    split: str  # first half of every row's id
    columns: tuple[str, ...]
    rows: Rows
    root: Path | None  # image paths must lie inside it; None: only embedded images
    notes: tuple[str, ...] = ()  # a line for each thing that lies in the place and is in no row of any split

    def column(self, name: str) -> Iterator[Any]:
        """Yield the cells of one column; the others are not read where the rows can do without."""
        if hasattr(self.rows, "column"):
            return iter(self.rows.column(name))
        return (self.rows[index][name] for index in range(len(self.rows)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A cell that Python cannot hold, such as a time in a zone that nobody knows."""

    why: str


def read_arrow_row(table: Any, index: int) -> dict[str, Any]:
    """Return a row of an Arrow table by column; what Python cannot hold is `Unreadable`."""
    alone = table.slice(index, 1)
    try:
        row: dict[str, Any] = alone.to_pylist()[0]
    except Exception:  # noqa: BLE001  # of some cell: each is read by itself
        row = {name: _read_cell(alone.column(name)) for name in alone.column_names}
    return row


def _read_cell(column: Any) -> Any:
    try:
        return column[0].as_py()
    except Exception as error:  # noqa: BLE001  # pyarrow raises anything, from OverflowError to UnicodeDecodeError
        return Unreadable(why=f"{describe_fault(error)} (a cell of {clip(str(column.type))})")


Opener = Callable[[str], Table]  # takes the name the split goes by in row ids


def count_cases(what: str, cases: Sequence[str]) -> str:
    """Return a line that counts cases and names the first: `links (5): a, b, c and 2 more`."""
    more = f" and {len(cases) - _NAMED} more" if len(cases) > _NAMED else ""
    return f"{what} ({len(cases)}): {', '.join(map(escape_unprintable, cases[:_NAMED]))}{more}"


def refuse_twin_columns(place: object, columns: Sequence[str]) -> None:
    """Raise DataError where two columns have one name: of a row, only one of their cells would be read."""
    if twins := sorted({name for name in columns if columns.count(name) > 1}):
        raise DataError(
            f"{place} has two columns of one name: {', '.join(twins[:_NAMED])}",
            got="columns: " + ", ".join(columns),
            remedy="write the data set anew without one of them, or rename it",
        )


def refuse_foreign(file: Path, *, remedy: str) -> None:
    """Raise DataError for a file of rows that is another kind of file by its content: a workbook, a web page."""
    with reading_data(file, remedy="check who may read it"), file.open("rb") as opened:
        head = opened.read(HEAD)
    is_sound = head.startswith(b"PAR1") and file.suffix.casefold() == ".parquet"
    if not is_sound and (found := describe_foreign(head, remedy)):
        raise DataError(f"{file} is not what its name says", got=f"it is {found[0]}", remedy=found[1])


def reading_data(place: object, *, remedy: str = "write the data set anew") -> AbstractContextManager[None]:
    """Let anything that goes wrong while foreign data are read be one DataError that names the place."""
    return raise_as(DataError, f"{place} cannot be read", remedy=remedy)
