"""Columns of a table by their names: those that are needed, and one that reward functions cannot get."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from PIL import Image

from common.data.row import NAMES_OF_NUMBERS, OWN_COLUMNS
from common.data.table import Table
from common.errors import DataError

COMPLETIONS = "completions"  # the first parameter of every reward function of Rollcall
_OFTEN = {  # what other people call our columns
    "problem": {"question", "prompt", "instruction", "query"},
    "image": {"img", "images", "picture", "photo", "file_name", "image_path"},
    "solution": {
        *("label", "labels", "answer", "class", "class_name", "target", "category"),
        *("gt", "ground_truth", "reward_model", "text"),
    },
}


def check_columns(table: Table) -> None:
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
    pictures = [found for found in _close("image", others) if found.casefold() != "file_name"]
    if "image" not in table.columns and (pictures or _image_like(table.rows[0])):
        missing.append("image")
    if missing:
        close = {name: _close(name, others) for name in missing}
        hints = [f"{found!r} for {name!r}" for name in missing for found in close[name]]
        numbers = any(isinstance(table.rows[0].get(found), int) for found in close.get("solution", ()))
        raise DataError(
            f"{table.name} has no column {' and no column '.join(missing)}",
            got="columns: " + ", ".join(table.columns),
            remedy="rename columns to problem, image, solution"
            + (f" (perhaps {', '.join(hints)})" if hints else "")
            + (f"; labels are text{NAMES_OF_NUMBERS}" if numbers else ""),
        )


def _close(name: str, others: Sequence[str]) -> list[str]:
    """Return the columns that may be meant: those that other people call so, else the one of nearest spelling."""
    often = [other for other in others if other.casefold() in {name, *_OFTEN[name]}]
    return often or difflib.get_close_matches(name, others, n=1, cutoff=0.7)


def _image_like(row: Mapping[str, object]) -> bool:
    return any(
        isinstance(cell, Image.Image | bytes) or (isinstance(cell, Mapping) and "bytes" in cell)
        for cell in row.values()
    )


def doubt_columns(name: str, columns: Sequence[str]) -> list[str]:
    """Return a warning where a column of `name` has the name of what every reward function is called with."""
    if COMPLETIONS not in columns:
        return []
    return [f"warning: {name} has a column {COMPLETIONS}: with it no reward function can be called; rename or drop it"]
