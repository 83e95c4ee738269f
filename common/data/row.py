"""From one raw row to an Example, or to an error that says what is wrong with the row."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config.schema import DataConfig
from common.data.faults import BadRowError
from common.data.image import read_image
from common.errors import as_utf8
from common.labels.candidates import breaks_list, candidates
from common.types import Example

OWN_COLUMNS = frozenset({"problem", "image", "solution"})  # all others are handed to the rewards

_ANSWER = re.compile(r"\s*<answer>(.*?)</answer>\s*", re.DOTALL)
_UTF8 = "write it, or name the class folder, in UTF-8; under a locale that knows no UTF-8 set PYTHONUTF8=1"
_TAG = re.compile(r"</?(?:think|answer|reason)\s*>", re.IGNORECASE)


def read_row(row: Mapping[str, Any], *, row_id: str, root: Path | None, data: DataConfig) -> Example:
    """Return the row with its label out of any tags and its image decoded and resized.

    Raises BadRowError for the first thing wrong with it.
    """
    problem = row["problem"]
    if not isinstance(problem, str) or not problem.strip():
        raise BadRowError(
            "problem is empty or no text",
            remedy="give every row a question in column problem",
        )
    label = bare_label(row["solution"])
    _check_unicode("problem", problem)
    offered = candidates(problem) if data.check_candidates else None
    if offered is not None and label not in offered:
        why = ", which no list can hold: it has a comma or a bracket," if breaks_list(label) else ""
        raise BadRowError(
            f"label {label!r}{why} is not among the {len(offered)} its question offers",
            remedy="correct the list or the label, or set data.check_candidates to false",
        )
    cell = row.get("image")
    image = (
        None if cell is None else read_image(cell, root, size=data.image_size, max_megapixels=data.max_image_megapixels)
    )
    columns = {name: value for name, value in row.items() if name not in OWN_COLUMNS}
    return Example(id=row_id, problem=problem, image=image, label=label, columns=columns)


def bare_label(solution: object, *, column: str = "solution") -> str:
    """Return the label of a cell of `column`, out of its `<answer>` tags and without the white space around it.

    Raises BadRowError when it is no text, empty, or holds tags of its own.
    """
    if not isinstance(solution, str):
        raise BadRowError(
            f"{column} is a {type(solution).__name__}: {solution!r}",
            remedy=f"store labels as text in column {column}",
        )
    tagged = _ANSWER.fullmatch(solution)
    label = (tagged[1] if tagged else solution).strip()
    if not label:
        raise BadRowError("label is empty", remedy=f"give every row its label in column {column}")
    _check_unicode("label", label)
    if _TAG.search(label):
        raise BadRowError(
            f"label {label!r} holds tag text",
            remedy=f"keep one <answer> block or the bare label in {column}",
        )
    return label


def _check_unicode(name: str, text: str) -> None:
    """Raise BadRowError for text that UTF-8 cannot hold, such as the name of a folder in another encoding."""
    if as_utf8(text) != text:
        raise BadRowError(f"{name} {text!r} is no text in UTF-8", remedy=_UTF8)
