"""Pictures as a set keeps them: their own bytes where these are PNG or JPEG, after one reading to the end."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

from PIL import Image

from common.data.build.collection import Picture
from common.data.faults import BadRowError
from common.data.image import FORMATS, confine, read_image
from common.errors import describe_fault

_KEPT = {"PNG": "PNG", "JPEG": "JPEG", "MPO": "JPEG"}  # MPO: a JPEG with another behind it, as phones write them


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
        self.faults: dict[Picture, BadRowError] = {}

    def __call__(self, picture: Picture) -> Stored | None:
        """Return the file's own bytes. Encode them anew when the format is another, or a side is over `max_side`.

        Return None for what cannot be read to the end, or lies outside the picture's root: it is added to `faults`.
        """
        try:
            return self._read(picture)
        except BadRowError as fault:
            self.faults[picture] = fault
            return None

    def _read(self, picture: Picture) -> Stored:
        """Read one picture to its end. Raises BadRowError when that fails."""
        file = confine((picture.root / picture.path).absolute(), picture.home or picture.root)
        try:
            data = file.read_bytes()
        except Exception as error:
            raise BadRowError(f"cannot be read: {describe_fault(error)}", remedy="make the file readable") from error
        found = read_image({"bytes": data}, None, size=None, max_megapixels=self._max_megapixels)
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            form = _KEPT.get(image.format or "")
        height, width = found.pixels.shape[:2]
        if form and (self._max_side is None or max(width, height) <= self._max_side):
            return Stored(data=data, width=width, height=height)
        self.rewritten.add(picture)
        return _encode(Image.fromarray(found.pixels), form or "PNG", self._max_side or max(width, height))


def _encode(image: Image.Image, form: str, side: int) -> Stored:
    image.thumbnail((side, side), Image.Resampling.LANCZOS)  # never makes it larger
    buffer = BytesIO()
    image.save(buffer, form, **({"quality": 95} if form == "JPEG" else {}))
    return Stored(data=buffer.getvalue(), width=image.width, height=image.height)
