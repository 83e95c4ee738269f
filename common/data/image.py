"""From an image cell, which may hold anything, to RGB pixels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from common.data.faults import BadRowError
from common.errors import describe_fault
from common.types import Pixels

FORMATS = (
    "BMP",
    "GIF",
    "JPEG",
    "PNG",
    "TIFF",
    "WEBP",
)  # PIL's others reach as far as running Ghostscript
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"})
_REPLACE = "replace the image or remove the row"


def read_image(cell: object, root: Path | None, *, size: int | None, max_megapixels: float) -> Pixels:
    """Return pixels (height, width, 3) of a cell: encoded bytes, a path, `{bytes, path}` or a PIL image.

    The header is read first: an image over `max_megapixels` is never decoded. The image is turned upright by its EXIF
    tag and laid over white where it is transparent. It is resized to `size` x `size` (LANCZOS) unless that is None.

    Raises BadRowError for whatever cannot be read to the end, and for a path outside `root`.
    """
    try:
        with _open(cell, root) as image:
            _check_size(image, max_megapixels)
            return np.asarray(_square(_rgb(ImageOps.exif_transpose(image)), size))
    except BadRowError as fault:
        raise BadRowError(f"{_name(cell, root)}{fault.reason}", remedy=fault.remedy) from fault
    except Image.DecompressionBombError as error:
        raise _too_large(str(error)) from error
    except Exception as error:  # decoders of hostile bytes raise anything, from OSError to struct.error
        raise BadRowError(
            f"{_name(cell, root)}image cannot be decoded ({describe_fault(error)})",
            remedy=_REPLACE,
        ) from error


def _name(cell: object, root: Path | None) -> str:
    """Return the file that a fault is in, `cats/3.jpg: `; nothing where only bytes are known."""
    path = cell.get("path") if isinstance(cell, Mapping) else cell
    if not isinstance(path, str | Path):
        return ""
    inside = root is not None and Path(path).is_absolute()
    return f"{os.path.relpath(path, root) if inside else path}: "


def _open(cell: object, root: Path | None) -> Image.Image:
    """Open the image: its header is read, its pixels are not."""
    if isinstance(cell, Mapping):
        embedded = cell.get("bytes")
        cell = cell.get("path") if embedded is None else embedded
    if isinstance(cell, Image.Image):
        return cell.copy()  # the caller closes what it gets
    source: BytesIO | Path
    if isinstance(cell, bytes):
        source, nbytes = BytesIO(cell), len(cell)
    elif isinstance(cell, str | Path):
        source = confine(cell, root)
        nbytes = source.stat().st_size
    else:
        raise BadRowError(
            f"image is a {type(cell).__name__}",
            remedy="store images as PNG or JPEG bytes",
        )
    if nbytes == 0:
        raise BadRowError("image has zero bytes", remedy=_REPLACE)
    return Image.open(source, formats=FORMATS)


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
        remedy="embed the image bytes, or put the file inside the data folder (links may not leave it)",
    )


def _check_size(image: Image.Image, max_megapixels: float) -> None:
    megapixels = image.width * image.height / 1e6
    if megapixels > max_megapixels:
        raise _too_large(f"{image.width}x{image.height} = {megapixels:.1f} MP, over {max_megapixels:g} MP")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode not in _MODES:  # I;16, I, F: their range is anybody's guess
        raise BadRowError(f"image has pixel mode {image.mode}", remedy="save it with 8 bits a channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _square(image: Image.Image, size: int | None) -> Image.Image:
    if size is None or image.size == (size, size):
        return image
    return image.resize((size, size), Image.Resampling.LANCZOS)


def _too_large(reason: str) -> BadRowError:
    return BadRowError(
        f"image too large: {reason}",
        remedy="shrink it, or raise data.max_image_megapixels (--max-megapixels where a set is built)",
    )
