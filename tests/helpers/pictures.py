"""A data set nobody has seen before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def draw_shapes(folder: Path, *, each: int) -> Path:
    """Three classes of photographs, as folders: circles, squares and triangles of all sizes and colours."""
    rng = np.random.default_rng(0)
    for label in ("circle", "square", "triangle"):
        (folder / label).mkdir(parents=True)
        for number in range(each):
            picture = Image.new("RGB", (64, 48), tuple(rng.integers(0, 90, 3).tolist()))
            x, y, size = rng.integers((4, 4, 18), (20, 10, 30)).tolist()
            box, colour = (x, y, x + size, y + size), tuple(rng.integers(140, 255, 3).tolist())
            pen = ImageDraw.Draw(picture)
            if label == "circle":
                pen.ellipse(box, fill=colour)
            elif label == "square":
                pen.rectangle(box, fill=colour)
            else:
                pen.polygon([(x, y + size), (x + size, y + size), (x + size // 2, y)], fill=colour)
            picture.save(folder / label / f"{number}.jpg")
    return folder
