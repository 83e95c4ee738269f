"""A split as it lies on disk: rows by number, images not yet decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class Rows(Protocol):
    """A sequence of rows. Reading one may cost a disk access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One split of a data set, unchecked."""

    name: str  # for messages: where it came from
    split: str  # first half of every row's id
    columns: tuple[str, ...]
    rows: Rows
    root: Path | None  # image paths must lie inside it; None: only embedded images
