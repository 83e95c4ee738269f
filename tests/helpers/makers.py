"""Data sets made on the fly."""

from __future__ import annotations

import hashlib
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

QUESTION = "What is it?\nPlease choose one from list [ cat, dog]."


def encoded(color: str = "red", *, size: tuple[int, int] = (12, 8), mode: str = "RGB", form: str = "PNG") -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, color).convert(mode).save(buffer, form)
    return buffer.getvalue()


def noise(size: tuple[int, int] = (64, 64), *, seed: int = 0) -> bytes:
    """A JPEG whose second half holds something."""
    buffer = BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """The header of a large PNG and no pixels: decoding it would fail, so a refusal for its size came first."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


def row(**changes: Any) -> dict[str, Any]:
    return {"problem": QUESTION, "image": {"bytes": encoded(), "path": None}, "solution": "cat", "note": "n"} | changes


def parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def image_folder(root: Path, counts: dict[str, int]) -> str:
    """Class folders of so many pictures, no two alike."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.png").write_bytes(unlike(f"{name}/{number}"))
    return str(root)


def unlike(name: str) -> bytes:
    """A PNG of 12 x 8 pixels that no other name has."""
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
