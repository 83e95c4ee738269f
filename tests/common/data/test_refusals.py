"""Rows and images that are refused, and how the error says so."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.config.schema import DataConfig
from common.data.faults import BadRowError
from common.data.image import read_image
from common.data.sources import ExampleSource, load
from common.errors import DataError
from tests.helpers.makers import QUESTION, encoded, huge_png, image_folder, noise, parquet, row


def enter(tmp_path: Path, rows: list[dict[str, Any]], **changes: object) -> ExampleSource:
    path = parquet(tmp_path / "set.parquet", rows)
    return load(DataConfig.model_validate({"path": path, "image_size": 16} | changes), split="train")


def embedded(data: bytes) -> dict[str, Any]:
    return {"bytes": data, "path": "a.png"}


BAD = {
    "zero-byte": (row(image=embedded(b"")), "image has zero bytes"),
    "no image": (row(image=embedded(b"<html>")), "image cannot be decoded"),
    "truncated": (row(image=embedded(noise()[:-900])), "image cannot be decoded .OSError: .*truncated"),
    "41 MP": (row(image=embedded(huge_png(8200, 5000))), "8200x5000 = 41.0 MP, over 40 MP"),
    "bomb": (row(image=embedded(huge_png(60000, 60000))), "image too large"),
    "16 bits": (row(image=embedded(encoded(mode="I;16"))), "pixel mode I;16"),
    "other format": (row(image=embedded(encoded(form="PPM"))), "image cannot be decoded"),
    "empty label": (row(solution="  "), "label is empty"),
    "empty tags": (row(solution="<answer> </answer>"), "label is empty"),
    "tag text": (row(solution="<answer>cat</answer></answer>"), "holds tag text"),
    "think text": (row(solution="cat <think>"), "holds tag text"),
    "null label": (row(solution=None), "solution is a NoneType"),
    "not offered": (row(solution="Cat"), "label 'Cat' is not among the 2"),
    "empty problem": (row(problem=""), "problem is empty"),
}


@pytest.mark.parametrize(("bad", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_row_is_refused_by_name(tmp_path: Path, bad: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=f"train/1: .*{reason}") as caught:
        enter(tmp_path, [row(), bad, row()])
    assert str(caught.value).startswith("1 of 3 rows of ")
    assert caught.value.remedy


def test_all_bad_rows_are_counted_and_the_first_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="9 of 10 rows") as caught:
        enter(tmp_path, [row(), *[row(solution="bird")] * 5, *[row(image=embedded(b""))] * 4])
    assert "train/1" in str(caught.value.got) and "train/6" not in str(caught.value.got)
    assert str(caught.value.got).endswith("and 4 more")
    assert "data.check_candidates" in caught.value.remedy and "replace the image" in caught.value.remedy


def test_candidates_need_not_be_checked(tmp_path: Path) -> None:
    assert enter(tmp_path, [row(solution="bird")], check_candidates=False).labels == ("bird",)


def test_megapixel_limit_is_an_option(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="over 1e-05 MP"):
        enter(tmp_path, [row()], max_image_megapixels=1e-5)


@pytest.mark.parametrize(
    ("renamed", "hint"),
    [({"solution": "solutions"}, "'solutions' for 'solution'"), ({"image": "images"}, "'images' for 'image'")],
)
def test_missing_column_names_what_there_is(tmp_path: Path, renamed: dict[str, str], hint: str) -> None:
    with pytest.raises(DataError, match=f"has no column {next(iter(renamed))}") as caught:
        enter(tmp_path, [{renamed.get(key, key): value for key, value in row().items()}])
    assert "note" in str(caught.value.got) and hint in caught.value.remedy


def test_images_under_another_name_are_not_taken_for_a_text_only_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no column image"):
        enter(tmp_path, [{"problem": QUESTION, "solution": "cat", "photo": encoded()}])


@pytest.mark.parametrize(
    ("name", "own"),
    [
        *((name, "solution") for name in ("label", "labels", "answer", "class", "target", "category", "gt", "text")),
        *((name, "image") for name in ("img", "images", "Image", "picture", "photo", "image_path", "file_name")),
        *((name, "problem") for name in ("question", "prompt", "instruction", "PROBLEM")),
    ],
)
def test_a_column_by_another_usual_name_is_hinted_at(tmp_path: Path, name: str, own: str) -> None:
    with pytest.raises(DataError, match=f"has no column .*{own}") as caught:
        enter(tmp_path, [{name if key == own else key: value for key, value in row().items()}])
    assert f"{name!r} for {own!r}" in caught.value.remedy


@pytest.mark.parametrize("name", ["solution", "label"])
def test_labels_as_numbers_are_named_as_such(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as caught:
        enter(tmp_path, [{name if key == "solution" else key: value for key, value in row(solution=3).items()}])
    assert "text" in caught.value.remedy and "names of a ClassLabel" in caught.value.remedy


def test_a_text_only_set_may_name_files(tmp_path: Path) -> None:
    assert enter(tmp_path, [{"problem": QUESTION, "solution": "cat", "file_name": "a.txt"}])[0].image is None


def test_empty_set(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([row()]).slice(0, 0), tmp_path / "set.parquet")
    with pytest.raises(DataError, match="has no rows"):
        load(DataConfig(path=str(tmp_path / "set.parquet")), split="train")


@pytest.mark.parametrize("path", ["../secret.png", "{outside}", "link.png", "http://127.0.0.1:9/a.png", "folder"])
def test_a_path_never_leaves_the_data_folder(tmp_path: Path, path: str) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded())
    root = tmp_path / "set"
    (root / "folder").mkdir(parents=True)
    (root / "link.png").symlink_to(secret)
    with pytest.raises(BadRowError, match="is no file inside"):
        read_image({"bytes": None, "path": path.format(outside=secret)}, root, size=None, max_megapixels=40.0)


def test_a_path_inside_the_data_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded())
    source = enter(tmp_path, [row(image={"bytes": None, "path": "a.png"})])
    assert source[0].image is not None


def test_a_symlink_in_an_image_folder_may_not_leave_it(tmp_path: Path) -> None:
    folder = Path(image_folder(tmp_path / "set", {"cat": 1, "dog": 1}))
    (tmp_path / "secret.png").write_bytes(encoded())
    (folder / "dog" / "9.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match=r"train/2: dog/9.png: image path is no file inside"):
        load(DataConfig(path=str(folder)), split="train")


def test_a_stray_file_in_a_class_folder_is_not_passed_over(tmp_path: Path) -> None:
    folder = Path(image_folder(tmp_path, {"cat": 1, "dog": 1}))
    (folder / "cat" / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"train/1: cat/notes.txt: image cannot be decoded"):
        load(DataConfig(path=str(folder)), split="train")


def read(data: bytes, **changes: Any) -> Any:
    return read_image(data, None, **{"size": None, "max_megapixels": 40.0} | changes).pixels


@pytest.mark.parametrize(
    ("mode", "form"), [("RGB", "JPEG"), ("RGBA", "PNG"), ("P", "PNG"), ("CMYK", "TIFF"), ("L", "WEBP")]
)
def test_every_mode_becomes_rgb(mode: str, form: str) -> None:
    pixels = read(encoded("white", mode=mode, form=form))
    assert pixels.shape == (8, 12, 3) and pixels.dtype == np.uint8 and pixels.min() > 250


def test_exif_turns_the_image_upright() -> None:
    image = Image.new("RGB", (12, 8))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    buffer = BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    assert read(buffer.getvalue()).shape == (12, 8, 3)


def test_resized_to_a_square() -> None:
    assert read(encoded(), size=5).shape == (5, 5, 3)
