"""What stands in the place of a picture is named by what it is; what is sound is read, whatever it carries."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from common.config.schema import DataConfig
from common.data.faults import BadRowError
from common.data.image import Decoded, read_image
from common.data.sources import ExampleSource, load
from common.errors import DataError
from tests.helpers.makers import encoded, noise, parquet, row, unlike

FILES: dict[str, tuple[bytes, str, str]] = {
    "HEIC": (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(60), "a HEIC picture", "convert"),
    "AVIF": (b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00" + bytes(60), "an AVIF picture", "convert"),
    "MP4": (b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00" + bytes(60), "a video (MP4 or MOV)", "frames"),
    "WebM": (b"\x1aE\xdf\xa3" + bytes(60), "a video (Matroska or WebM)", "frames"),
    "AVI": (b"RIFF\x00\x00\x00\x00AVI LIST" + bytes(60), "a video (AVI)", "frames"),
    "LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n",
        "a Git LFS pointer",
        "git lfs pull",
    ),
    "HTML page": (b"\n<!DOCTYPE html><html><body>404 Not Found</body></html>", "an HTML page", "fetch"),
    "XML answer": (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "an XML document", "fetch"),
    "SVG": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing", "convert"),
    "bare SVG": (b"<svg width='1'/>", "an SVG drawing", "convert"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF document", "export its pages"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "a PostScript document", "convert"),
    "Thumbs.db": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(60), "Thumbs.db", "remove"),
    ".DS_Store": (b"\x00\x00\x00\x01Bud1" + bytes(60), ".DS_Store", "remove"),
    "zip": (b"PK\x03\x04" + bytes(60), "a zip archive", "unpack"),
    "numpy": (b"\x93NUMPY\x01\x00v\x00" + bytes(60), "a numpy array", "PNG or JPEG"),
    "JPEG 2000": (b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(60), "a JPEG 2000 picture", "convert"),
    "JPEG XL": (b"\xff\x0a" + bytes(60), "a JPEG XL picture", "convert"),
    "Photoshop": (b"8BPS\x00\x01" + bytes(60), "a Photoshop document", "convert"),
    "PNM": (encoded(form="PPM"), "a PNM picture", "convert"),
    "zeros": (bytes(5000), "nothing but zero bytes", "fetch"),
    "text": (b"hello there", "text, which begins 'hello there'", "remove"),
    "base64": (base64.b64encode(unlike("b")), "base64 text", "b64decode"),
    "header alone": (encoded()[:12], "a damaged PNG", "fetch"),
    "unknown": (b"\x01\x02\x03\x04\xfe\xff" * 20, "no known kind", "convert"),
}


def read(cell: object, root: Path | None = None) -> Decoded:
    return read_image(cell, root, size=None, max_megapixels=40.0)


def refusal(cell: object, root: Path | None = None) -> BadRowError:
    with pytest.raises(BadRowError) as caught:
        read(cell, root)
    return caught.value


@pytest.mark.parametrize("where", ["bytes", "file", "embedded"])
@pytest.mark.parametrize(("data", "what", "remedy"), FILES.values(), ids=FILES.keys())
def test_a_file_that_is_no_picture_is_named(tmp_path: Path, where: str, data: bytes, what: str, remedy: str) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    cell: dict[str, Any] = {"bytes": data, "file": "a.jpg", "embedded": {"bytes": data, "path": "a.jpg"}}
    fault = refusal(cell[where], tmp_path)
    assert what in fault.reason and remedy in fault.remedy
    assert "object at 0x" not in fault.reason and len(fault.reason) <= 400
    assert ("a.jpg: " in fault.reason) == (where != "bytes")


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=80), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF"]))
def test_any_bytes_give_a_picture_or_one_short_fault(data: bytes, start: bytes) -> None:
    reason = ""
    try:
        read(start + data)
    except BadRowError as fault:
        reason = fault.reason
    assert len(reason) <= 400 and "object at 0x" not in reason


LONG = base64.b64encode(bytes(range(256)) * 5000).decode()
TEXTS = {
    "base64": (LONG, f"base64 text of {len(LONG)} characters"),
    "data URI": (f"data:image/png;base64,{LONG}", "base64 text of"),
    "address": ("https://example.org/a.png", "it is an address"),
    "long text": ("a. " * 500_000, "is no file inside"),
    "NUL": ("a\0b.png", "is no file inside"),
    "empty text": ("", "image is an empty text"),
    "blank path": ({"bytes": None, "path": " "}, "image is an empty text"),
    "text for bytes": ({"bytes": "abc", "path": "x"}, "text for its bytes, which begins 'abc'"),
    "base64 for bytes": ({"bytes": LONG, "path": "x"}, "base64 text of"),
    "nested numbers": (np.zeros((8, 8, 3), np.uint8).tolist(), "an array of numbers"),
    "flat numbers": (list(encoded()), "an array of numbers"),
    "numbers for bytes": ({"bytes": list(encoded()), "path": None}, "an array of numbers"),
    "fractions": ([[0.5, 0.25]], "an array of numbers"),
    "empty list": ([], "a list of 0"),
    "list of names": (["a.png"], "a list of 1"),
    "Windows": (r"images\0.png", "as Windows writes it"),
    "Windows drive": (r"C:\pics\0.jpg", "as Windows writes it"),
    "drive with slashes": ("C:/pics/0.jpg", "as Windows writes it"),
    "bucket": ("hf://datasets/a/b.png", "it is an address"),
    "list": ([{"bytes": encoded()}, {"bytes": encoded()}], "a list of 2"),
    "number": (7, "image is a int"),
}


@pytest.mark.parametrize(("cell", "what"), TEXTS.values(), ids=TEXTS.keys())
def test_a_cell_that_is_no_picture_is_named_in_a_few_words(tmp_path: Path, cell: object, what: str) -> None:
    fault = refusal(cell, tmp_path)
    assert what in fault.reason and len(fault.reason) <= 400 and fault.reason.lstrip(": ") == fault.reason


def test_an_error_of_a_whole_column_of_base64_is_short(tmp_path: Path) -> None:
    rows = [row(image=LONG, solution=label) for label in ("cat", "dog")]
    with pytest.raises(DataError, match="base64") as caught:
        load(DataConfig(path=parquet(tmp_path / "set.parquet", rows)), split="train")
    assert len(str(caught.value)) < 1500


def test_a_label_of_megabytes_is_clipped_with_its_length(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(DataConfig(path=parquet(tmp_path / "set.parquet", [row(solution="x" * 2_000_000)])), split="train")
    assert "(2000002 characters)" in str(caught.value) and "is not among the 2" in str(caught.value)
    assert len(str(caught.value)) < 1500


def with_text(size: int) -> PngImagePlugin.PngInfo:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("note", "x" * size, zip=True)
    return notes


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


RED = Image.new("RGB", (12, 8), "red")
SOUND: dict[str, Callable[[], bytes]] = {
    "colour profile of 3 MB": lambda: saved(RED, "PNG", icc_profile=np.random.default_rng(0).bytes(3_000_000)),
    "compressible profile": lambda: saved(RED, "PNG", icc_profile=bytes(5_000_000)),
    "text of 4 MB": lambda: saved(RED, "PNG", pnginfo=with_text(4_000_000)),
    "JPEG with a profile": lambda: saved(RED, "JPEG", icc_profile=np.random.default_rng(0).bytes(1_500_000)),
    "CMYK JPEG": lambda: saved(RED.convert("CMYK"), "JPEG"),
    "EXIF without sense": lambda: saved(RED, "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff"),
    "interlaced": lambda: saved(RED, "PNG", interlace=1),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("make", SOUND.values(), ids=SOUND.keys())
def test_a_sound_picture_is_read_whatever_it_carries(make: Callable[[], bytes]) -> None:
    pixels = read(make()).pixels.astype(int)
    assert pixels.shape == (8, 12, 3)
    assert abs(pixels - [255, 0, 0]).max() <= 3


def test_a_bomb_of_text_is_refused_by_name() -> None:
    packed = zlib.compress(bytes(100 << 20), 9)
    body = b"note\0\0" + packed
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    whole = encoded()
    assert "over 64 MB" in refusal(whole[:33] + chunk + whole[33:]).reason


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_taken_with_a_note(tmp_path: Path, form: str) -> None:
    blue = Image.new("RGB", (12, 8), "blue")
    options = {"lossless": True} if form == "WEBP" else {}
    moving = saved(RED, form, save_all=True, append_images=[blue], **options)
    still = saved(blue, form, **options)
    found = read(moving)
    assert found.moves and not read(still).moves
    assert (found.pixels == [255, 0, 0]).all()
    rows = [row(image={"bytes": moving, "path": None}), row(image={"bytes": still, "path": None}, solution="dog")]
    assert [note.partition(": ")[2] for note in enter(tmp_path, rows).notes] == [
        "1 of 2 pictures have several frames or pages: the first is taken"
    ]


def enter(tmp_path: Path, rows: list[dict[str, Any]]) -> ExampleSource:
    return load(DataConfig(path=parquet(tmp_path / "set.parquet", rows), image_size=8), split="train")


ASKED = "What is it?\nPlease choose one from list [ cat, dog]."
MARKS = [
    "<image>",
    "<image>\n",
    "<IMAGE> ",
    "<|image_pad|>",
    "<|vision_start|><|image_pad|><|vision_end|>",
    "<|image_1|>\n",
]
MARKS += [
    "<image_1>",
    "<|image|>",
    "<start_of_image>",
    "Picture 1: <img>a.jpg</img>\n",
    "<img>b.png</img>",
    "(<image>./</image>)\n",
]


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_for_the_picture_is_taken_out_with_a_note(tmp_path: Path, mark: str, at_end: bool) -> None:
    problem = f"{ASKED}{mark}" if at_end else f"{mark}{ASKED}"
    source = enter(tmp_path, [row(problem=problem), row(solution="dog", problem=ASKED)])
    assert [outline.problem for outline in source.outlines] == [ASKED, ASKED]
    assert source[0].problem == ASKED
    assert "1 of 2 questions hold a mark for their picture" in source.notes[0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"problem": f"Look at <image>: {ASKED}"}, "problem holds <image> within its text"),
        ({"problem": f"<image><image>{ASKED}"}, "problem holds 2 marks for pictures: <image>, <image>"),
        ({"problem": f"<image><image>\n{ASKED}"}, "problem holds 2 marks"),
        ({"problem": f"<image>{ASKED}<image>"}, "problem holds 2 marks"),
        ({"problem": f"Picture 1: <img>a.jpg</img>\nPicture 2: <img>b.jpg</img>\n{ASKED}"}, "problem holds 2 marks"),
        ({"problem": f"See <img>a.jpg</img>: {ASKED}"}, "problem holds <img>a.jpg</img> within its text"),
        ({"problem": f"<video>{ASKED}"}, "problem holds <video>"),
        ({"problem": f"<image>{ASKED}", "image": None}, "and the row has no picture"),
        ({"problem": "<image>"}, "problem is <image> alone"),
    ],
)
def test_a_mark_that_stands_for_something_else_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match="1 of 2 rows") as caught:
        enter(tmp_path, [row(solution="dog"), row(**changes)])
    assert reason in str(caught.value.got) and "column problem" in caught.value.remedy


def test_other_words_in_angle_brackets_stay(tmp_path: Path) -> None:
    problem = f"Is it <b>an image</b> or <img>? 3 < 4 > 2 {ASKED}"
    assert enter(tmp_path, [row(problem=problem)]).outlines[0].problem == problem


def test_the_pixels_alone_name_a_picture() -> None:
    image = Image.open(BytesIO(noise()))
    same = [saved(image, "PNG"), saved(image, "PNG", compress_level=1, pnginfo=with_text(9)), saved(image, "BMP")]
    same += [saved(image, "WEBP", lossless=True), saved(image.convert("RGBA"), "PNG")]
    assert len({read(data).digest for data in same}) == 1
    assert read(same[0]).digest == read_image(same[0], None, size=5, max_megapixels=40.0).digest
    other = np.array(image)
    other[3, 4, 1] ^= 1
    assert read(saved(Image.fromarray(other), "PNG")).digest != read(same[0]).digest
