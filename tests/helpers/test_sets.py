"""The small real sets hold what they say, and no picture is in both halves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.formats.digits import LABELS as DIGITS
from tests.helpers.sets import TEXTURES, write_digits, write_mnist, write_textures


@pytest.mark.parametrize(
    ("write", "labels", "size"), [(write_digits, DIGITS, 8), (write_mnist, DIGITS, 28), (write_textures, TEXTURES, 64)]
)
def test_a_set_has_so_many_pictures_of_each_label(
    write: Callable[[Path], Path], labels: tuple[str, ...], size: int, tmp_path: Path
) -> None:
    folder = write(tmp_path / "set")
    for split, count in (("train", 40), ("test", 10)):
        assert {label.name for label in (folder / split).iterdir()} == {*labels}
        for label in labels:
            files = sorted((folder / split / label).iterdir())
            assert [file.name for file in files] == [f"{number:03}.png" for number in range(count)]
            pictures = np.stack([np.asarray(Image.open(file)) for file in files])
            assert pictures.shape == (count, size, size) and pictures.std() > 5
    train, test = ({file.read_bytes() for file in (folder / split).rglob("*.png")} for split in ("train", "test"))
    assert not train & test
