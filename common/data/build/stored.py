"""Pictures as a set keeps them: their own bytes where these are PNG or JPEG, after one reading to the end."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

from common.data.build.collection import Picture
from common.data.faults import BadRowError
from common.data.image import FORMATS, confine, explain_path, read_image
from common.errors import describe_fault
from common.types import Pixels

_KEPT = {"PNG": "PNG", "JPEG": "JPEG", "MPO": "JPEG"}  # MPO: a JPEG with another behind it, as phones write them
_NAME_A_FILE = (
    "name picture files inside the folder of the list or the set (links may not leave it): fetch what lies at an "
    "address, decode base64 text into files"
)
THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Encoded bytes, and the size of the picture when it is upright."""

    data: bytes
    width: int
    height: int


class Reader:
    """Reads pictures for storing, in any number of threads. A picture in two splits counts once."""

    def __init__(self, *, max_side: int | None, max_megapixels: float) -> None:
        """Scale pictures over `max_side` down to it, and take those over `max_megapixels` for faults."""
        self._max_side, self._max_megapixels = max_side, max_megapixels
        self.rewritten: set[Picture] = set()
        self.moving: set[Picture] = set()  # of several frames or pages
        self.faults: dict[Picture, BadRowError] = {}
        self.digests: dict[Picture, bytes] = {}  # of the pixels of each picture that was read
        self._sizes: dict[Picture, tuple[int, int]] = {}  # (width, height) of those whose own bytes are kept

    def look(self, pictures: Sequence[Picture]) -> list[bytes]:
        """Return the digest of each picture, as they are before any is written; empty for one that cannot be read.

        That is no fault yet: the picture may not be drawn.
        """
        with warnings.catch_warnings(), ThreadPoolExecutor(THREADS, "look") as pool:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the reader's limit decides
            warnings.simplefilter("ignore", UserWarning)  # PIL on tags it cannot read
            return list(pool.map(self._look, pictures))

    def __call__(self, picture: Picture) -> Stored | None:
        """Return the file's own bytes. Encode them anew when the format is another, or a side is over `max_side`.

        Return None for what cannot be read to the end, or lies outside the picture's root: it is added to `faults`.
        """
        try:
            return self._read(picture)
        except BadRowError as fault:
            self.faults[picture] = fault
            return None

    def _look(self, picture: Picture) -> bytes:
        try:
            self._decode(picture, self._fetch(picture))
        except BadRowError:
            return b""
        return self.digests[picture]

    def _read(self, picture: Picture) -> Stored:
        """Read one picture to its end, unless that was done. Raises BadRowError when that fails."""
        data = self._fetch(picture)
        if size := self._sizes.get(picture):
            return Stored(data=data, width=size[0], height=size[1])
        pixels, form = self._decode(picture, data)
        if size := self._sizes.get(picture):
            return Stored(data=data, width=size[0], height=size[1])
        self.rewritten.add(picture)
        return _encode(Image.fromarray(pixels), form or "PNG", self._max_side or max(pixels.shape[:2]))

    def _fetch(self, picture: Picture) -> bytes:
        """Return the bytes of a file. Raises BadRowError."""
        try:
            file = confine((picture.root / picture.path).absolute(), picture.home or picture.root)
        except BadRowError as fault:
            raise BadRowError(explain_path(picture.path, fault).reason, remedy=_NAME_A_FILE) from fault
        try:
            return file.read_bytes()
        except Exception as error:
            raise BadRowError(f"cannot be read: {describe_fault(error)}", remedy="make the file readable") from error

    def _decode(self, picture: Picture, data: bytes) -> tuple[Pixels, str | None]:
        """Return the pixels and the format to keep, and remember what is known then. Raises BadRowError."""
        found = read_image({"bytes": data}, None, size=None, max_megapixels=self._max_megapixels)
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            form = _KEPT.get(image.format or "")
        height, width = found.pixels.shape[:2]
        self.digests[picture] = found.digest
        if found.moves:
            self.moving.add(picture)
        if form and (self._max_side is None or max(width, height) <= self._max_side):
            self._sizes[picture] = (width, height)
        return found.pixels, form


def _encode(image: Image.Image, form: str, side: int) -> Stored:
    image.thumbnail((side, side), Image.Resampling.LANCZOS)  # never makes it larger
    buffer = BytesIO()
    image.save(buffer, form, **({"quality": 95} if form == "JPEG" else {}))
    return Stored(data=buffer.getvalue(), width=image.width, height=image.height)
