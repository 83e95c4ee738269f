"""The embedded data set: scikit-learn's 1797 handwritten digits in CLS-RL columns, whole and in halves by class.

The file is read out of the installed package without importing it (scikit-learn takes seconds, the file 30 ms).
Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.config.schema import OBJECT_QUESTION
from common.data.split import base_and_new, hold_out
from common.data.table import Table
from common.errors import DataError
from common.labels.candidates import with_candidates

NAME = "embedded:digits"
LABELS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
)
_BASE, _NEW = base_and_new(LABELS)
# The tiny model's tokenizer knows these questions. Training never sees new_train: the model is made with it.
OFFERED = {
    "train": LABELS,
    "test": LABELS,
    "base_train": _BASE,
    "base_test": _BASE,
    "new_train": _NEW,
    "new_test": _NEW,
}
TEST_ROWS = 400  # of 1797, stratified and fixed
_BRIGHTEST = 16  # the file counts ink in 4x4 blocks: 0 to 16


def digits(split: str) -> Table:
    """Return a split: `train` (1397 rows), `test` (400), or the rows of either with half of the classes, `base_train`.

    The question offers the split's own classes. Images are 8x8 grey, 0 to 255.

    Raises DataError when scikit-learn is not installed.
    """
    pixels, labels = _read()
    held_out = hold_out(labels, TEST_ROWS / len(labels))
    offered, tested = OFFERED[split], split.endswith("test")
    rows = [
        _row(pixels[i], label, offered)
        for i, label in enumerate(labels)
        if (i in held_out) == tested and label in offered
    ]
    return Table(
        name=f"{NAME} ({split})",
        split=split,
        columns=tuple(rows[0]),
        rows=rows,
        root=None,
    )


def _row(pixels: np.ndarray[Any, np.dtype[np.uint8]], label: str, offered: Sequence[str]) -> dict[str, Any]:
    height, width = pixels.shape
    return {
        "problem": with_candidates(OBJECT_QUESTION, offered),
        "image": Image.fromarray(pixels),
        "image_width": width,
        "image_height": height,
        "solution": label,
    }


def _read() -> tuple[np.ndarray[Any, np.dtype[np.uint8]], list[str]]:
    """Return pixels (1797, 8, 8) and labels."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataError(
            f"{NAME} is a file of scikit-learn",
            got="no scikit-learn",
            remedy="run `make setup`, or set data.path",
        )
    with gzip.open(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)  # (1797, 65): 64 pixels and the digit
    pixels = np.rint(table[:, :-1] * (255 / _BRIGHTEST)).astype(np.uint8).reshape(-1, 8, 8)
    return pixels, [LABELS[digit] for digit in table[:, -1]]
