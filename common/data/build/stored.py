"""A picture as it is kept in a set: read to the end once, then its own bytes wherever they are PNG or JPEG."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

from PIL import Image

from common.data.build.collection import Picture
from common.data.faults import BadRowError
from common.data.image import FORMATS, confine, read_image

_KEPT = {"PNG": "PNG", "JPEG": "JPEG", "MPO": "JPEG"}  # MPO: a JPEG with another behind it, as phones write them


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Encoded bytes, and the size of the picture upright."""

    data: bytes
    width: int
    height: int


class Reader:
    """Pictures to what is stored of them. A picture may be in two splits, and counts once; any number of threads."""

    def __init__(self, *, max_side: int | None, max_megapixels: float) -> None:
        """Pictures over `max_side` are scaled down to it, those over `max_megapixels` are faults."""
        self._max_side, self._max_megapixels = max_side, max_megapixels
        self.rewritten: set[Picture] = set()
        self.faults: dict[Picture, BadRowError] = {}

    def __call__(self, picture: Picture) -> Stored | None:
        """The file's bytes as they are; as PNG (JPEG where it was one) when it is another format or over `max_side`.

        None for what cannot be read to the end, and for a file outside the picture's root: it is among the faults.
        """
        try:
            return self._read(picture)
        except BadRowError as fault:
            self.faults[picture] = fault
            return None

    def _read(self, picture: Picture) -> Stored:
        file = confine(picture.path, picture.root)
        try:
            data = file.read_bytes()
        except OSError as error:
            raise BadRowError(f"cannot be read: {error.strerror}", remedy="make the file readable") from error
        pixels = read_image({"bytes": data}, None, size=None, max_megapixels=self._max_megapixels)
        with Image.open(BytesIO(data), formats=FORMATS) as opened:
            form = _KEPT.get(opened.format or "")
        height, width = pixels.shape[:2]
        if form and (self._max_side is None or max(width, height) <= self._max_side):
            return Stored(data=data, width=width, height=height)
        self.rewritten.add(picture)
        return _encode(Image.fromarray(pixels), form or "PNG", self._max_side or max(width, height))


def _encode(image: Image.Image, form: str, side: int) -> Stored:
    image.thumbnail((side, side), Image.Resampling.LANCZOS)  # never makes it larger
    buffer = BytesIO()
    image.save(buffer, form, **({"quality": 95} if form == "JPEG" else {}))
    return Stored(data=buffer.getvalue(), width=image.width, height=image.height)
