"""From one raw row to an Example and what was seen on the way, or to an error that says what is wrong with the row."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from common.config.schema import DataConfig
from common.data.content.digests import NOTHING, digest_columns
from common.data.faults import BadRowError
from common.data.image import Decoded, is_large, keep_stored, read_image
from common.data.table import Unreadable
from common.errors import as_utf8, clip
from common.labels.candidates import breaks_list, candidates
from common.types import Example, Pixels, StoredPicture

OWN_COLUMNS = frozenset({"problem", "image", "solution"})  # all others are handed to the rewards

NAMES_OF_NUMBERS = ": the names of a ClassLabel's numbers stand in the features of the data set, as its `names`"

_ANSWER = re.compile(r"\s*<answer>(.*?)</answer>\s*", re.DOTALL)
_UTF8 = "write it, or name the class folder, in UTF-8; under a locale that knows no UTF-8 set PYTHONUTF8=1"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_TAG = re.compile(r"</?(?:think|answer|reason)\s*>", re.IGNORECASE)
# How other trainers mark the place of a picture in a text: `<image>`, `<|image_1|>`, Qwen's three tokens in a row,
# Qwen-VL's `Picture 1: <img>a.jpg</img>`, MiniCPM-V's `(<image>./</image>)`.
_MARK = re.compile(
    r"(?:picture\s*\d*\s*:\s*)?<img>[^<]*</img>|\(?<image>\./</image>\)?"
    r"|<\|vision_start\|>\s*<\|(?:image|video)_pad\|>\s*<\|vision_end\|>|<\|(?:vision_start|vision_end|vision_pad)\|>"
    r"|<\|?(?:image|video)(?:[ _]?(?:pad|placeholder|token|soft_token|here|\d+))?\|?>"
    r"|<img_context>|<start_of_image>|\[IMG\]",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPicture:
    """The picture of a row as it was when it was decoded."""

    size: tuple[int, int]  # (height, width) as the model gets it
    file: bytes  # digest of its file


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRow:
    """A row that can be used."""

    example: Example  # its picture in its own size where it was not to be resized
    image_size: tuple[int, int] | None  # (height, width) as the model gets it; None for a text-only row
    picture: bytes  # digest of its picture; NOTHING without one
    file: bytes  # digest of the file of a picture that travels as it is stored; NOTHING of any other
    columns: bytes  # digest of its other columns
    unreadable: Mapping[str, str]  # why its cell cannot be read, by column; none of these is in the example
    moves: bool  # its picture has more frames or pages than the one that is read
    marked: bool  # a mark for the picture was taken out of its question


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """A question as it is asked, and what was read from it."""

    text: str  # without the mark for its picture
    marks: tuple[str, ...]  # as they stood in the row
    loose: bool  # a mark stands within the text
    offered: frozenset[str] | None
    size: int  # of its list


def read_row(
    row: Mapping[str, Any],
    *,
    row_id: str,
    root: Path | None,
    data: DataConfig,
    resize: bool = True,
    known: KnownPicture | None = None,
) -> ReadRow:
    """Return the row with its label out of any tags and its image decoded, and resized unless it is only checked.

    A large image that lies in a file stays as it is stored. It is decoded all the same, to see that it can be, unless
    it is known.

    A mark for the picture at one end of the question, as in "<image>\\nWhat is it?", is taken out: the chat template
    writes its own.

    Args:
        known: its image as it was when it was decoded. If the file has changed since, it is decoded again.

    Raises BadRowError for the first thing wrong with it.
    """
    unreadable = {name: cell.why for name, cell in row.items() if isinstance(cell, Unreadable)}
    for name in sorted(OWN_COLUMNS & unreadable.keys()):
        raise BadRowError(f"{name} cannot be read: {unreadable[name]}", remedy="write the data set anew")
    problem, cell = row["problem"], row.get("image")
    if not isinstance(problem, str) or not problem.strip():
        raise BadRowError("problem is empty or no text", remedy="give every row a question in column problem")
    question = _read_question(problem)
    label = bare_label(row["solution"])
    if data.check_candidates and question.offered is not None and label not in question.offered:
        why = ", which no list can hold: it has a comma or a bracket," if breaks_list(label) else ""
        raise BadRowError(
            f"label {clip(repr(label))}{why} is not among the {question.size} its question offers",
            remedy="correct the list or the label, or set data.check_candidates to false",
        )
    picture = _read_picture(cell, root, data, known, resize=resize)
    _check_marks(question, with_image=picture.size is not None)
    columns = {name: value for name, value in row.items() if name not in OWN_COLUMNS | unreadable.keys()}
    return ReadRow(
        example=Example(id=row_id, problem=question.text, image=picture.image, label=label, columns=columns),
        image_size=picture.size,
        picture=picture.pixels,
        file=picture.file,
        columns=digest_columns(columns),
        unreadable=unreadable,
        moves=picture.moves,
        marked=bool(question.marks),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Picture:
    """The picture of a row; nothing of a row without one."""

    image: Pixels | StoredPicture | None = None
    size: tuple[int, int] | None = None  # (height, width) as the model gets it
    pixels: bytes = NOTHING  # digest of its pixels, if they were read
    file: bytes = NOTHING  # digest of its file, if it can travel as that
    moves: bool = False


def _read_picture(
    cell: object, root: Path | None, data: DataConfig, known: KnownPicture | None, *, resize: bool
) -> _Picture:
    """Return the picture of a cell, which is decoded unless it is known."""
    square = data.image_size
    if known is not None:
        stored = keep_stored(cell, root, resize=square, size=known.size)
        if stored is not None and stored.digest == known.file:
            return _Picture(image=stored, size=known.size, file=stored.digest)

    large = square is not None and is_large(square, square)  # it will travel as its file: to resize it would be in vain
    decoded = _read_cell(cell, root, data, square if resize and not large else None)
    if decoded is None:
        return _Picture()
    size = (square, square) if square else (decoded.pixels.shape[0], decoded.pixels.shape[1])
    stored = keep_stored(cell, root, resize=square, size=size)
    if stored is None and resize and large:
        decoded = read_image(cell, root, size=square, max_megapixels=data.max_image_megapixels)
    return _Picture(
        image=stored if stored and is_large(*size) else decoded.pixels,
        size=size,
        pixels=decoded.digest,
        file=stored.digest if stored else NOTHING,
        moves=decoded.moves,
    )


@lru_cache(maxsize=16)  # rows share a few questions, each perhaps with a list of 10,000 classes
def _read_question(problem: str) -> _Question:
    """Read a question. Equal ones come back as one object, so that their text is held once.

    Raises BadRowError for what is no text in UTF-8.
    """
    _check_unicode("problem", problem)
    found = list(_MARK.finditer(problem)) if "<" in problem or "[IMG]" in problem.upper() else []
    text = problem
    if found:
        before, after = problem[: found[0].start()], problem[found[0].end() :]
        text = (before + after).strip() if not (before.strip() and after.strip()) else problem
    offered = candidates(text)
    return _Question(
        text=text,
        marks=tuple(match[0] for match in found),
        loose=bool(found) and text is problem,
        offered=None if offered is None else frozenset(offered),
        size=len(offered or ()),
    )


def _check_marks(question: _Question, *, with_image: bool) -> None:
    """Raise BadRowError where a mark is not the one at an end of the text, or the row has no picture to stand for."""
    if not question.marks:
        return
    if len(question.marks) > 1:
        raise BadRowError(
            f"problem holds {len(question.marks)} marks for pictures: {', '.join(question.marks[:3])}",
            remedy="leave one in column problem, or none: a row has one picture",
        )
    if question.loose or "video" in question.marks[0].lower():
        raise BadRowError(
            f"problem holds {question.marks[0]} within its text",
            remedy="take the marks out of column problem: the one picture of a row stands before its text",
        )
    if not with_image:
        raise BadRowError(
            f"problem holds {question.marks[0]}, and the row has no picture",
            remedy="give the row its picture in column image, or take the mark out of column problem",
        )
    if not question.text:
        raise BadRowError(f"problem is {question.marks[0]} alone", remedy="give every row a question in column problem")


def _read_cell(cell: object, root: Path | None, data: DataConfig, size: int | None) -> Decoded | None:
    """Return the picture of a cell; None of an empty one. Raises BadRowError for what is no picture."""
    if cell is None or (isinstance(cell, Mapping) and cell and all(part is None for part in cell.values())):
        return None
    return read_image(cell, root, size=size, max_megapixels=data.max_image_megapixels)


def bare_label(solution: object, *, column: str = "solution") -> str:
    """Return the label of a cell of `column`, out of its `<answer>` tags and without the white space around it.

    Raises BadRowError when it is no text, empty, or holds tags of its own or control characters.
    """
    if not isinstance(solution, str):
        raise BadRowError(
            f"{column} is a {type(solution).__name__}: {clip(repr(solution))}",
            remedy=f"store labels as text in column {column}" + (NAMES_OF_NUMBERS if isinstance(solution, int) else ""),
        )
    tagged = _ANSWER.fullmatch(solution)
    label = (tagged[1] if tagged else solution).strip()
    if not label:
        raise BadRowError("label is empty", remedy=f"give every row its label in column {column}")
    _check_unicode("label", label)
    if _CONTROL.search(label):
        raise BadRowError(
            f"label {clip(repr(label))} holds a line break or another control character",
            remedy="write it, or name the class folder, as one line of plain text",
        )
    if _TAG.search(label):
        raise BadRowError(
            f"label {clip(repr(label))} holds tag text",
            remedy=f"keep one <answer> block or the bare label in {column}",
        )
    return label


def _check_unicode(name: str, text: str) -> None:
    """Raise BadRowError for text that UTF-8 cannot hold, such as the name of a folder in another encoding."""
    if as_utf8(text) != text:
        raise BadRowError(f"{name} {clip(repr(text))} is no text in UTF-8", remedy=_UTF8)
