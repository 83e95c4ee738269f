"""What bytes or a text are that were given for a picture, by how they begin; and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Mapping

HEAD = 4096  # bytes that decide

_CONVERT = "convert it to PNG or JPEG"
_REMOVE = "remove the file or row: it holds no picture"
_FETCH = "fetch the picture again: this page came in its place"
_BRANDS: Mapping[bytes, str] = {  # of ISO media files, at byte 8
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"), "a HEIC picture, as phones save"),
    **dict.fromkeys((b"avif", b"avis"), "an AVIF picture"),
    b"crx ": "a raw picture of a camera (CR3)",
}
_POINTER = b"version https://git-lfs"
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (_POINTER, "a Git LFS pointer, not the file itself", "run `git lfs pull` where the data was cloned"),
    (b"%PDF", "a PDF document", "export its pages as PNG or JPEG"),
    (b"%!PS", "a PostScript document", _CONVERT),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 picture", _CONVERT),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 picture", _CONVERT),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL picture", _CONVERT),
    (b"\xff\x0a", "a JPEG XL picture", _CONVERT),
    (b"8BPS", "a Photoshop document", _CONVERT),
    (b"\x00\x00\x01\x00", "a Windows icon", _CONVERT),
    (b"DDS ", "a DDS texture", _CONVERT),
    (b"v/1\x01", "an OpenEXR picture", _CONVERT),
    (b"qoif", "a QOI picture", _CONVERT),
    (b"FUJIFILM", "a raw picture of a camera", _CONVERT),
    (b"SIMPLE  =", "a FITS picture", _CONVERT),
    (b"\x89HDF", "an HDF5 file", _CONVERT),
    (b"\x93NUMPY", "a numpy array", "save its picture as PNG or JPEG"),
    (b"\x80\x04\x95", "a pickle", "save the picture as PNG or JPEG"),
    (b"\x80\x05\x95", "a pickle", "save the picture as PNG or JPEG"),
    (b"PAR1", "a parquet file", _REMOVE),
    (b"PK\x03\x04", "a zip archive", "unpack it"),
    (b"\x1f\x8b", "a gzip archive", "unpack it"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it"),
    (b"Rar!", "a RAR archive", "unpack it"),
    (b"\xfd7zXZ", "an xz archive", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it"),
    (b"\xd0\xcf\x11\xe0", "a document of Microsoft's, as Thumbs.db is", _REMOVE),
    (b"\x00\x05\x16\x07", "a resource file of macOS", _REMOVE),
    (b"Bud1", "a .DS_Store of macOS", _REMOVE),
    (b"\x00\x00\x00\x01Bud1", "a .DS_Store of macOS", _REMOVE),
    (b"\x1aE\xdf\xa3", "a video (Matroska or WebM)", "take frames out of it"),
    (b"\x00\x00\x01\xba", "a video (MPEG)", "take frames out of it"),
    (b"\x00\x00\x01\xb3", "a video (MPEG)", "take frames out of it"),
    (b"FLV", "a video (FLV)", "take frames out of it"),
    (b"OggS", "an Ogg sound or video", _REMOVE),
    (b"ID3", "a sound", _REMOVE),
    (b"fLaC", "a sound", _REMOVE),
)
_PICTURES: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
)
_BASE64 = re.compile(r"\s*(data:[\w/+.-]+;base64,)?[A-Za-z0-9+/_-]{64,}={0,2}\s*", re.ASCII)
_DECODE = "store the bytes themselves: base64.b64decode(text) of Python gives them"


def describe_kind(head: bytes) -> tuple[str, str] | None:
    """Return what the bytes are that begin so, and the remedy; None where they tell nothing.

    `%PDF-1.7` gives ("a PDF document", "export its pages as PNG or JPEG").
    """
    if not head.strip(b"\0"):
        return ("nothing but zero bytes", "fetch the picture again") if head else ("zero bytes", "fetch it again")
    if head[4:8] == b"ftyp":
        found = _BRANDS.get(head[8:12])
        return (found, _CONVERT) if found else ("a video (MP4 or MOV)", "take frames out of it")
    if head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"WAVE"):
        return ("a video (AVI)", "take frames out of it") if head[8:12] == b"AVI " else ("a sound", _REMOVE)
    if re.match(rb"P[1-7]\s", head):
        return "a PNM picture", _CONVERT
    for magic, what, remedy in _MAGIC:
        if head.startswith(magic):
            return what, remedy
    if form := name_format(head):
        return f"a damaged {form}", "fetch the picture again, or remove the row"
    return _describe_text(head)


def describe_foreign(head: bytes, remedy: str) -> tuple[str, str] | None:
    """Return what a file is that should hold rows, by how it begins, and the remedy; None where it may hold them.

    A workbook gives ("a zip archive, as a workbook of a spreadsheet is", "unpack it, or " + `remedy`). Text may hold
    rows, unless it is a web page or a pointer.
    """
    text = None if head.startswith(_POINTER) else _describe_text(head)  # its first letters may be those of a picture
    found = text or describe_kind(head)
    if not head or found is None or found[0].startswith("text"):
        return None
    what = "a zip archive, as a workbook of a spreadsheet is" if head.startswith(b"PK") else found[0]
    if found[1] == _FETCH:
        return what, "fetch the file again: this page came in its place"
    # The other remedies are for pictures.
    return what, f"{found[1]}, or {remedy}" if found[1].startswith(("run `git lfs", "unpack")) else remedy


def name_format(head: bytes) -> str | None:
    """Return the format of a picture that Rollcall reads, by how it begins: `PNG`; None for all else."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return next((form for magic, form in _PICTURES if head.startswith(magic)), None)


def is_base64(text: str) -> bool:
    """Whether a text is that of encoded bytes, by its beginning: a path has dots, and no 64 letters in a row."""
    return _BASE64.match(text[:HEAD]) is not None and "." not in text[:HEAD]


def _describe_text(head: bytes) -> tuple[str, str] | None:
    try:
        text = head.decode("utf-8-sig", errors="strict" if len(head) < HEAD else "ignore")
    except UnicodeDecodeError:
        return None
    if not text.isprintable() and any(ord(sign) < 32 and sign not in "\t\r\n\f\x1b" for sign in text):
        return None
    start = text.lstrip().lower()
    if "<svg" in start and start.startswith(("<svg", "<?xml", "<!doctype svg", "<!--")):
        return "an SVG drawing", _CONVERT
    if start.startswith(("<!doctype html", "<html", "<head", "<body")):
        return "an HTML page", _FETCH
    if start.startswith("<?xml"):
        return "an XML document", _FETCH if "error" in start else _REMOVE
    if is_base64(text):
        return "base64 text", _DECODE
    return f"text, which begins {text[:40]!r}", _REMOVE
