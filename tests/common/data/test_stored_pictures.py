"""Large pictures stay files until somebody needs their pixels, which are then the ones that a check has seen."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from common.config.schema import DataConfig
from common.data.image import read_image, read_pixels
from common.data.row import read_row
from common.data.sources import load
from common.errors import DataError
from common.types import StoredPicture
from tests.helpers.makers import encoded, huge_png, noise, parquet, row


def save(picture: Image.Image, form: str, **options: Any) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def draw(mode: str = "RGB", size: tuple[int, int] = (300, 200)) -> Image.Image:
    rng = np.random.default_rng(7)
    picture = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    if mode in ("RGBA", "LA"):
        picture.putalpha(Image.fromarray(rng.integers(0, 256, (size[1], size[0]), dtype=np.uint8)))
    return picture.convert(mode)


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(draw(), "JPEG", exif=exif)


def palette_with_transparency() -> bytes:
    return save(draw().quantize(64), "PNG", transparency=3)


def draw_png(mode: str) -> bytes:
    return save(draw(mode), "PNG")


def frames(form: str) -> bytes:
    return save(draw(), form, save_all=True, append_images=[draw(size=(300, 200)).rotate(90)])


PICTURES: dict[str, Callable[[], bytes]] = {
    **{f"exif_{number}": partial(turned, number) for number in range(1, 9)},
    **{f"png_{mode}": partial(draw_png, mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")},
    "transparent_palette": palette_with_transparency,
    "cmyk_jpeg": lambda: save(draw("CMYK"), "JPEG"),
    "grey_jpeg": lambda: save(draw("L"), "JPEG"),
    "bmp": lambda: save(draw(), "BMP"),
    "tiff_cmyk": lambda: save(draw("CMYK"), "TIFF"),
    "webp_alpha": lambda: save(draw("RGBA"), "WEBP", lossless=True),
    **{f"frames_{form}": partial(frames, form) for form in ("GIF", "PNG", "TIFF", "WEBP")},
    "small_file": lambda: encoded(size=(300, 200)),
    "small": lambda: noise((60, 60)),
}


@cache
def make_files() -> dict[str, bytes]:
    return {name: make() for name, make in PICTURES.items()}


@pytest.mark.parametrize("cache_mb", [512, 0])
@pytest.mark.parametrize("image_size", [None, 168, 64])
def test_pixels_are_those_of_the_file_read_at_once(tmp_path: Path, image_size: int | None, cache_mb: int) -> None:
    """Turned upright, laid over white, resized: whoever reads it, and whether its row is at hand or read again."""
    files = make_files()
    rows = [row(image={"bytes": data, "path": name}) for name, data in files.items()]
    data = DataConfig(
        path=parquet(tmp_path / "set.parquet", rows), image_size=image_size, eval_split=None, cache_mb=cache_mb
    )
    source = load(data, split="train")
    for index, (name, file) in enumerate(files.items()):
        wanted = read_image(file, None, size=image_size, max_megapixels=40).pixels
        image = source[index].image
        assert image is not None, name
        np.testing.assert_array_equal(read_pixels(image), wanted, err_msg=name)
        assert image.shape == wanted.shape and source.outlines[index].image_size == wanted.shape[:2]
        large = wanted.shape[0] * wanted.shape[1] >= 128 * 128
        at_hand = cache_mb > 0 and not large
        assert isinstance(image, StoredPicture) == (large or (not at_hand and len(file) >= 16384)), name


def test_pictures_in_files_of_their_own_stay_files_too(tmp_path: Path) -> None:
    (tmp_path / "set" / "cat").mkdir(parents=True)
    for number, data in enumerate((turned(6), draw_png("P"), noise((40, 40)))):
        (tmp_path / "set" / "cat" / f"{number}.png").write_bytes(data)
    (tmp_path / "set" / "dog").mkdir()
    (tmp_path / "set" / "dog" / "3.jpg").write_bytes(noise((200, 300), seed=3))
    config = DataConfig(path=str(tmp_path / "set"), question="?", image_size=None, eval_split=None, cache_mb=0)
    source = load(config, split="train")
    sizes = [(300, 200), (200, 300), (40, 40), (300, 200)]
    assert [outline.image_size for outline in source.outlines] == sizes
    with mock.patch("PIL.Image.open", side_effect=AssertionError("decoded")):
        stored = [source[index].image for index in (0, 1, 3)]
    assert all(isinstance(image, StoredPicture) for image in stored)
    assert [image.shape[:2] for image in stored if image is not None] == [sizes[0], sizes[1], sizes[3]]


def test_a_known_picture_is_not_decoded_again(tmp_path: Path) -> None:
    rows = [row(image={"bytes": noise((384, 384), seed=seed), "path": None}) for seed in range(4)]
    path = parquet(tmp_path / "set.parquet", rows)
    for image_size in (None, 384, 112):
        source = load(DataConfig(path=path, image_size=image_size, eval_split=None, cache_mb=0), split="train")
        with mock.patch("PIL.Image.open", side_effect=AssertionError("decoded")):
            assert all(isinstance(source[index].image, StoredPicture) for index in range(4))


def folder_of_one(tmp_path: Path, data: bytes) -> Path:
    file = tmp_path / "set" / "cat" / "0.jpg"
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    return file


@pytest.mark.parametrize(
    ("damaged", "why"),
    [
        (b"", "zero bytes"),
        (noise((384, 384))[:5000], "truncated"),
        (b"<html>", "HTML"),
        (huge_png(9000, 9000), "large"),
    ],
)
def test_a_picture_that_is_damaged_after_the_check_is_refused_at_the_door(
    tmp_path: Path, damaged: bytes, why: str
) -> None:
    """It never reaches an engine: what is not as it was is decoded again."""
    file = folder_of_one(tmp_path, noise((384, 384)))
    source = load(DataConfig(path=str(tmp_path / "set"), question="?", eval_split=None, cache_mb=0), split="train")
    assert isinstance(source[0].image, StoredPicture)
    file.write_bytes(damaged)
    with pytest.raises(DataError, match="row") as caught:
        source[0]
    assert "train/0" in str(caught.value) and why in str(caught.value)
    file.unlink()
    with pytest.raises(DataError, match="no such file"):
        source[0]


def test_a_picture_that_is_replaced_after_the_check_is_read_as_it_is(tmp_path: Path) -> None:
    file = folder_of_one(tmp_path, noise((384, 384)))
    data = DataConfig(path=str(tmp_path / "set"), question="?", image_size=None, eval_split=None, cache_mb=0)
    source = load(data, split="train")
    file.write_bytes(noise((200, 300), seed=5))
    image = source[0].image
    assert image is not None and image.shape == (300, 200, 3)
    np.testing.assert_array_equal(read_pixels(image), np.asarray(Image.open(file)))


@pytest.mark.parametrize("size", [(384, 384), (60, 60)])
@pytest.mark.parametrize("at", [0.2, 0.6, 0.95])
def test_a_damaged_picture_is_refused_before_anything_starts(tmp_path: Path, size: tuple[int, int], at: float) -> None:
    data = noise(size)
    rows = [row(), row(image={"bytes": data[: int(at * len(data))], "path": "1.jpg"})]
    with pytest.raises(DataError) as caught:
        load(DataConfig(path=parquet(tmp_path / "set.parquet", rows), eval_split=None), split="train")
    assert "train/1" in str(caught.value)


def test_sixteen_bits_a_channel_are_refused_as_before(tmp_path: Path) -> None:
    deep = Image.fromarray(np.arange(300 * 200, dtype=np.uint16).reshape(200, 300))
    rows = [row(image={"bytes": save(deep, "PNG"), "path": None})]
    with pytest.raises(DataError, match="pixel mode"):
        load(DataConfig(path=parquet(tmp_path / "set.parquet", rows), eval_split=None), split="train")


@pytest.mark.parametrize("image_size", [None, 168, 64])
@pytest.mark.parametrize("kind", ["L", "RGB", "CMYK", "P", "turned"])
def test_a_picture_that_lies_in_no_file_has_the_same_pixels(image_size: int | None, kind: str) -> None:
    """It becomes a file where one holds it whole."""
    picture = Image.open(BytesIO(turned(6))) if kind == "turned" else draw(kind)
    data = DataConfig(image_size=image_size)
    found = read_row(row(image=picture), row_id="train/0", root=None, data=data)
    wanted = read_image(picture, None, size=image_size, max_megapixels=40).pixels
    assert found.example.image is not None
    np.testing.assert_array_equal(read_pixels(found.example.image), wanted)
    assert found.image_size == wanted.shape[:2]
    assert isinstance(found.example.image, StoredPicture) == (image_size != 64 and kind in ("L", "RGB"))
