"""From an image cell, which may hold anything, to RGB pixels."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from common.data.content.digests import NOTHING, digest_file, digest_pixels
from common.data.content.kinds import HEAD, describe_kind, is_base64, name_format
from common.data.faults import BadRowError
from common.errors import clip, describe_fault, escape_unprintable
from common.types import Pixels, StoredPicture

FORMATS = (
    "BMP",
    "GIF",
    "JPEG",
    "PNG",
    "TIFF",
    "WEBP",
)  # PIL's others reach as far as running Ghostscript
# What is made of a smaller picture travels as easily as its file. A larger file is left unread all the same, where its
# pixels are not at hand.
SMALL_PIXELS, SMALL_FILE = 128 * 128, 16 << 10
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"})
_MAY_MOVE = frozenset({"GIF", "PNG", "TIFF", "WEBP"})  # formats with several frames or pages; MPO's second is a preview
_REPLACE = "replace the image or remove the row"
_EMBED = "embed the image bytes, or put the file inside the data folder (links may not leave it)"
# A sound PNG may carry a colour profile or a text of some MB. PIL's 1 MB for each is a guard against bombs: so is this.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # 64 MB, for all of a picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A picture that was read to its end."""

    pixels: Pixels
    digest: bytes  # of the pixels before they were resized: copies of a picture share it
    moves: bool  # it has more frames or pages than the first, which alone is read


def read_image(cell: object, root: Path | None, *, size: int | None, max_megapixels: float) -> Decoded:
    """Return the picture of a cell: encoded bytes, a path, `{bytes, path}` or a PIL image.

    The header is read first: an image over `max_megapixels` is never decoded. The image is turned upright by its EXIF
    tag and laid over white where it is transparent. It is resized to `size` x `size` (LANCZOS) unless that is None.

    Raises BadRowError for whatever cannot be read to the end, and for a path outside `root`. It says what the bytes
    are, by how they begin.
    """
    found: Image.Image | bytes | Path | None = None
    try:
        found = _find(cell, root)
        with _open(found) as image:
            _check_size(image, max_megapixels)
            moves = image.format in _MAY_MOVE and _has_frames(image)
            upright = _rgb(_turn_upright(image))
            pixels = np.asarray(upright)
            digest = digest_pixels(pixels)
            if size is not None and upright.size != (size, size):
                pixels = np.asarray(upright.resize((size, size), Image.Resampling.LANCZOS))
            return Decoded(pixels=pixels, digest=digest, moves=moves)
    except BadRowError as fault:
        raise BadRowError(f"{_name(cell, root)}{fault.reason}", remedy=fault.remedy) from fault
    except Image.DecompressionBombError as error:
        raise BadRowError(f"image too large: {error}", remedy="shrink it: Pillow decodes no more") from error
    except Exception as error:  # decoders of hostile bytes raise anything, from OSError to struct.error
        why, remedy = _explain(error, _head(found))
        raise BadRowError(f"{_name(cell, root)}image cannot be decoded{why}", remedy=remedy) from error


def is_large(height: int, width: int) -> bool:
    """Whether a picture of that size as the model gets it travels as its file, and is read where it is needed."""
    return height * width >= SMALL_PIXELS


def keep_stored(cell: object, root: Path | None, *, resize: int | None, size: tuple[int, int]) -> StoredPicture | None:
    """Return a picture without reading its pixels; None of a small one, or where the cell is no file's and cannot be.

    Args:
        size: (height, width) as the model gets it.

    Raises BadRowError where the file is gone.
    """
    found = _find(cell, root)
    if isinstance(found, Image.Image):
        png = _encode(found) if is_large(*size) else None
        return store_picture(png, resize=resize, size=size) if png else None
    try:
        data = found if isinstance(found, bytes) else found.read_bytes()
    except OSError as error:
        raise BadRowError(f"{_name(cell, root)}{describe_fault(error)}", remedy=_REPLACE) from error
    if not is_large(*size) and len(data) < SMALL_FILE:
        return None
    return store_picture(data, resize=resize, size=size)


def _encode(image: Image.Image) -> bytes | None:
    """Return the file of a picture that lies in none; None where it has more to it than pixels."""
    if image.mode not in ("L", "RGB") or image.info or image.getexif():
        return None
    file = BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def store_picture(data: bytes, *, resize: int | None, size: tuple[int, int]) -> StoredPicture:
    """Return a picture that is read later: the bytes of its file, and its (height, width) as the model gets it."""
    shape = (*size, 3)
    return StoredPicture(data=data, resize=resize, shape=shape, digest=digest_file(data, (resize, shape)))


def digest_image(image: Pixels | StoredPicture | None) -> bytes:
    """Return the digest of a picture as the model gets it; NOTHING without one."""
    if image is None:
        return NOTHING
    if isinstance(image, StoredPicture):
        return image.digest
    return hashlib.blake2b(image.tobytes(), key=repr(image.shape).encode(), digest_size=16).digest()


def read_pixels(picture: Pixels | StoredPicture, *, max_megapixels: float = math.inf) -> Pixels:
    """Return the pixels of a picture. Raises BadRowError where they cannot be read, or are not those read before."""
    if not isinstance(picture, StoredPicture):
        return picture
    pixels = read_image(picture.data, None, size=picture.resize, max_megapixels=max_megapixels).pixels
    if pixels.shape != picture.shape:
        raise BadRowError(f"image was {picture.shape} and is {pixels.shape}", remedy="leave a data set as it is")
    return pixels


def _explain(error: Exception, head: bytes) -> tuple[str, str]:
    """Return what the picture is in place of one, or what its decoder says, and the remedy."""
    if "MAX_TEXT" in describe_fault(error):
        return " (its texts or its colour profile are over 64 MB)", "save it without metadata"
    known = describe_kind(head)
    if known and (name_format(head) is None or isinstance(error, UnidentifiedImageError)):
        return f": it is {known[0]}", known[1]
    if isinstance(error, UnidentifiedImageError):
        return f": it is of no known kind, and begins {head[:16]!r}", "convert it to PNG or JPEG, or remove the row"
    return f" ({describe_fault(error)})", _REPLACE


def _head(found: Image.Image | bytes | Path | None) -> bytes:
    """Return the first bytes of what was to be read."""
    if isinstance(found, bytes):
        return found[:HEAD]
    if isinstance(found, Path):
        with suppress(OSError), found.open("rb") as file:
            return file.read(HEAD)
    return b""


def _name(cell: object, root: Path | None) -> str:
    """Return the file that a fault is in, `cats/3.jpg: `; nothing where only bytes are known."""
    path = cell.get("path") if isinstance(cell, Mapping) else cell
    if not isinstance(path, str | Path) or not str(path).strip() or is_base64(str(path)):
        return ""
    inside = root is not None and Path(path).is_absolute()
    return f"{escape_unprintable(clip(os.path.relpath(path, root) if inside else str(path)))}: "


def _find(cell: object, root: Path | None) -> Image.Image | bytes | Path:
    """Return the picture, the bytes or the file that a cell names. Raises BadRowError where it names none."""
    if isinstance(cell, Mapping):
        embedded = cell.get("bytes")
        if isinstance(embedded, str) and not is_base64(embedded):
            raise BadRowError(
                f"image has text for its bytes, which begins {embedded[:24]!r}",
                remedy="store the file's own bytes in bytes, or null there and the file's name in path",
            )
        cell = cell.get("path") if embedded is None else embedded
    if isinstance(cell, Image.Image):
        return cell
    if isinstance(cell, bytearray | memoryview):
        cell = bytes(cell)
    if isinstance(cell, bytes):
        nbytes = len(cell)
    elif isinstance(cell, str | Path):
        cell = _find_file(cell, root)
        nbytes = cell.stat().st_size
    elif isinstance(cell, list | tuple):
        raise _refuse_list(cell)
    else:
        raise BadRowError(
            "image has neither bytes nor a path" if cell is None else f"image is a {type(cell).__name__}",
            remedy="store images as PNG or JPEG bytes",
        )
    if nbytes == 0:
        raise BadRowError("image has zero bytes", remedy=_REPLACE)
    return cell


def _refuse_list(cell: Sequence[object]) -> BadRowError:
    """Return the fault of a list in place of a picture: of numbers, at whatever depth, or of other things."""
    first: object = cell
    while isinstance(first, list | tuple) and first:
        first = first[0]
    if isinstance(first, int | float):
        return BadRowError(f"image is an array of numbers, {len(cell)} long", remedy="save it as PNG or JPEG bytes")
    return BadRowError(
        f"image is a list of {len(cell)}", remedy="give every row one picture, not a list: the one it is about"
    )


def _find_file(path: str | Path, root: Path | None) -> Path:
    """Return the file behind a path. Raises BadRowError, which says so where the text is no path at all."""
    if not str(path).strip():
        raise BadRowError("image is an empty text", remedy=f"{_EMBED}; null says that a row has no picture")
    try:
        return confine(path, root)
    except BadRowError as fault:
        raise explain_path(str(path), fault) from fault


def explain_path(text: str, fault: BadRowError) -> BadRowError:
    """Return the fault of a text behind which no file is found; it says so where the text is no path at all."""
    if is_base64(text):
        return BadRowError(
            f"image is base64 text of {len(text)} characters, which begins {text[:24]!r}",
            remedy="store the bytes themselves: base64.b64decode(text) of Python gives them",
        )
    if re.match(r"[a-z][a-z0-9+.-]+://", text, re.IGNORECASE):
        return BadRowError(
            f"{fault.reason}: it is an address", remedy="fetch the pictures first, and embed their bytes"
        )
    if "\\" in text or re.match(r"[a-z]:/", text, re.IGNORECASE):
        return BadRowError(
            f"{fault.reason}: it is a path as Windows writes it",
            remedy=f"write / for each backslash, and paths from the data folder on; or {_EMBED}",
        )
    return fault


def _open(found: Image.Image | bytes | Path) -> Image.Image:
    """Open the image: its header is read, its pixels are not."""
    if isinstance(found, Image.Image):
        return found.copy()  # the caller closes what it gets
    return Image.open(BytesIO(found) if isinstance(found, bytes) else found, formats=FORMATS)


def _has_frames(image: Image.Image) -> bool:
    """Whether there is a second frame or page. What cannot be counted is not there."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # noqa: BLE001  # hostile bytes; the first frame may be sound
        return False


def _turn_upright(image: Image.Image) -> Image.Image:
    """Turn the image by its EXIF tag; one whose tags cannot be read stays as it is."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001  # PIL's reading of damaged tags raises anything; the pixels are sound
        return image


def confine(path: str | Path, root: Path | None) -> Path:
    """Return the file behind `path`, which must lie inside `root` once every link and `..` is followed.

    Raises BadRowError where it does not, or cannot be followed: a link to itself, a name of 256 letters.
    """
    why = ""
    if root is not None:
        try:
            home = root.resolve()
            file = (home / path).resolve()
            inside = file.is_relative_to(home)
            if inside and file.is_file():
                return file
            why = " (it lies outside)" if not inside else "" if file.exists() else " (no such file)"
        except Exception as error:  # noqa: BLE001  # a path may be anybody's text
            why = f" ({describe_fault(error)})"
    raise BadRowError(
        f"image path is no file inside {root or 'the data set'}{why}",
        remedy=_EMBED,
    )


def _check_size(image: Image.Image, max_megapixels: float) -> None:
    megapixels = image.width * image.height / 1e6
    if megapixels > max_megapixels:
        raise _too_large(f"{image.width}x{image.height} = {megapixels:.1f} MP, over {max_megapixels:g} MP")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode not in _MODES:  # I;16, I, F: their range is anybody's guess
        raise BadRowError(
            f"image has pixel mode {image.mode}", remedy="save it with 8 bits a channel, scaled to 0 to 255"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _too_large(reason: str) -> BadRowError:
    return BadRowError(
        f"image too large: {reason}",
        remedy="shrink it, or raise data.max_image_megapixels (--max-megapixels where a set is built)",
    )
