"""Every format gives the same examples; splits and held-out rows are what the configuration says."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.config.schema import DataConfig
from common.data.formats.digits import LABELS
from common.data.image import read_pixels
from common.data.sources import ExampleSource, load, load_held_out
from common.errors import DataError
from common.labels.candidates import candidates
from tests.helpers.makers import QUESTION, encoded, image_folder, noise, parquet, row


def config(path: str, **changes: object) -> DataConfig:
    return DataConfig.model_validate({"path": path, "image_size": 16, "eval_split": None} | changes)


def ids(source: ExampleSource | None) -> set[str]:
    assert source is not None
    return {source[index].id for index in range(len(source))}


def test_digits_have_fixed_stratified_halves() -> None:
    data = DataConfig(image_size=56)
    train, test = load(data, split="train"), load_held_out(data)
    assert test is not None
    assert (len(train), len(test)) == (1397, 400)
    assert set(Counter(outline.label for outline in test.outlines).values()) <= {38, 39, 40, 41}
    assert train.labels == tuple(sorted(candidates(train[0].problem) or ()))
    assert train[0].image is not None
    image = read_pixels(train[0].image)
    assert image.shape == (56, 56, 3) and image.dtype == np.uint8 and image.max() > 200
    assert train[0].columns == {"image_width": 8, "image_height": 8}
    pictures = {
        read_pixels(example.image).tobytes() for example in (train[i] for i in range(1397)) if example.image is not None
    }
    assert not any(read_pixels(test[i].image).tobytes() in pictures for i in range(400))  # type: ignore[arg-type]


def test_reading_data_imports_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "ray", "datasets", "pyarrow", "sklearn", "pandas", "vllm", "deepspeed"]
    code = f"""
import sys
import common.data.stream, common.models.prompts
from common.config.schema import DataConfig
from common.data.sources import load
load(DataConfig(image_size=56), split="test")
assert not (found := [m for m in {heavy} if m in sys.modules]), found"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_parquet_file(tmp_path: Path) -> None:
    rows = [
        row(),
        row(image={"bytes": noise(), "path": "x.jpg"}, solution=" <answer> dog </answer>\n"),
        row(image=None),
    ]
    source = load(config(parquet(tmp_path / "set.parquet", rows)), split="train")
    assert [source[i].id for i in range(3)] == ["train/0", "train/1", "train/2"]
    assert [source[i].label for i in range(3)] == ["cat", "dog", "cat"]
    assert source.labels == ("cat", "dog")
    assert source[0].columns == {"note": "n"}
    assert source[1].image is not None and source[1].image.shape == (16, 16, 3)
    assert source[2].image is None and source.outlines[2].image_size is None


def test_parquet_folder_names_its_splits(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "train-00000-of-00002.parquet", [row()])
    parquet(tmp_path / "data" / "train-00001-of-00002.parquet", [row(solution="dog")])
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [row(note="held out")])
    data = config(str(tmp_path), eval_split="test")
    assert ids(load(data, split="train")) == {"train/0", "train/1"}
    held_out = load_held_out(data)
    assert held_out is not None and [held_out[i].columns["note"] for i in range(len(held_out))] == ["held out"]


@pytest.mark.parametrize("names", [("a.parquet", "b.parquet"), ("part-1.parquet", "part-2.parquet")])
def test_parquet_folder_without_split_names_is_one_split(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        parquet(tmp_path / name, [row()])
    assert len(load(config(str(tmp_path)), split="train")) == 2


def test_parquet_folder_half_named_is_refused(tmp_path: Path) -> None:
    for name in ("train.parquet", "extra.parquet"):
        parquet(tmp_path / name, [row()])
    with pytest.raises(DataError, match=r"extra\.parquet"):
        load(config(str(tmp_path)), split="train")


@pytest.mark.parametrize("named", [True, False])
def test_saved_to_disk(tmp_path: Path, named: bool) -> None:
    import datasets

    datasets.disable_progress_bars()
    rows = [row(image=Image.new("RGBA", (9, 5), (255, 0, 0, 0))), row(image=Image.new("L", (5, 9)), solution="dog")]
    columns = {key: [line[key] for line in rows] for key in rows[0]}
    found = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    (datasets.DatasetDict({"train": found, "test": found}) if named else found).save_to_disk(str(tmp_path / "set"))
    source = load(config(str(tmp_path / "set")), split="train")
    assert [source[i].label for i in range(2)] == ["cat", "dog"]
    assert source[0].image is not None and (read_pixels(source[0].image) == 255).all()  # transparent: white
    assert source[1].image is not None and read_pixels(source[1].image).max() == 0
    assert source[1].columns == {"note": "n"}


def test_image_folder(tmp_path: Path) -> None:
    source = load(config(image_folder(tmp_path, {"dog": 2, "cat": 1}), question="Which?"), split="train")
    assert [source[i].label for i in range(3)] == ["cat", "dog", "dog"]
    assert source[0].problem == "Which?\nPlease choose one from list [ cat, dog]."


def test_a_relative_path_is_as_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_folder(tmp_path / "set", {"cat": 1})
    monkeypatch.chdir(tmp_path)
    assert load(config("set"), split="train")[0].image is not None


def test_image_folder_with_splits_offers_every_class_in_each(tmp_path: Path) -> None:
    image_folder(tmp_path / "train", {"cat": 1, "dog": 2})
    image_folder(tmp_path / "test", {"cat": 1})
    held_out = load_held_out(config(str(tmp_path), eval_split="test"))
    assert held_out is not None and len(held_out) == 1
    assert candidates(held_out[0].problem) == ["cat", "dog"]


def test_text_only_set(tmp_path: Path) -> None:
    rows = [{"problem": "2 or 3?", "solution": "3"}]
    source = load(config(parquet(tmp_path / "set.parquet", rows)), split="train")
    assert source[0].image is None and source[0].columns == {}


@pytest.mark.parametrize("fraction", [0.1, 0.34, 0.5])
def test_held_out_share_is_disjoint_and_complete(tmp_path: Path, fraction: float) -> None:
    data = config(image_folder(tmp_path, {"cat": 9, "dog": 4, "eel": 1}), eval_fraction=fraction)
    train, held_out = ids(load(data, split="train")), ids(load_held_out(data))
    assert not train & held_out
    assert train | held_out == {f"train/{number}" for number in range(14)}
    assert "train/13" in train  # the only eel
    assert ids(load_held_out(data)) == held_out


def test_held_out_split_elsewhere(tmp_path: Path) -> None:
    here, there = (parquet(tmp_path / name, [row(note=name)]) for name in ("a.parquet", "b.parquet"))
    held_out = load_held_out(config(here, eval_path=there, eval_split="test"))
    assert held_out is not None and (held_out[0].id, held_out[0].columns["note"]) == ("test/0", "b.parquet")
    assert load_held_out(config(here)) is None


def test_two_places_for_held_out_rows_are_refused(tmp_path: Path) -> None:
    path = image_folder(tmp_path, {"cat": 2})
    with pytest.raises(DataError, match="two places"):
        load_held_out(config(path, eval_path=path, eval_fraction=0.5))


@pytest.mark.parametrize("names", [["set.parquet"], ["train.parquet", "val.parquet"]])
def test_absent_evaluation_split(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        parquet(tmp_path / "set" / name, [row()])
    with pytest.raises(DataError, match="has no split test") as caught:
        load_held_out(config(str(tmp_path / "set"), eval_split="test"))
    assert "data.eval_fraction" in caught.value.remedy
    assert ("train, val" if len(names) == 2 else "a single split") in str(caught.value.got)


def test_what_was_left_out_is_told_where_a_split_is_missed(tmp_path: Path) -> None:
    image_folder(tmp_path, {"train/cat": 1, "train/dog": 1, "test": 2})
    with pytest.raises(DataError, match="has no split test") as caught:
        load_held_out(config(str(tmp_path), eval_split="test"))
    assert "test (2 files)" in str(caught.value.got)


def test_a_training_set_is_never_its_own_held_out_set(tmp_path: Path) -> None:
    path = parquet(tmp_path / "set.parquet", [row()])
    with pytest.raises(DataError, match="has no split"):
        load_held_out(config(path, eval_path=path, eval_split="test"))


@pytest.mark.parametrize("path", ["./nowhere", "a/b/c", "sets/x.parquet/y", "embedded:letters"])
def test_nothing_there(path: str) -> None:
    with pytest.raises(DataError, match="is no data set"):
        load(config(path), split="train")


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no data set"):
        load(config(str(tmp_path)), split="train")


def test_broken_parquet(tmp_path: Path) -> None:
    (tmp_path / "set.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match="cannot be read"):
        load(config(str(tmp_path / "set.parquet")), split="train")


def test_unreachable_hub_says_so_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    start = time.monotonic()
    with pytest.raises(DataError, match="hub cannot be reached") as caught:
        load(config("nobody/absent"), split="train")
    assert "HF_HUB_OFFLINE=1" in caught.value.remedy
    assert time.monotonic() - start < 10


def test_images_that_do_not_fit_the_cache_are_decoded_again(tmp_path: Path) -> None:
    path = parquet(tmp_path / "set.parquet", [row(), row(image={"bytes": encoded("blue"), "path": None})])
    roomy, tight = (load(config(path, cache_mb=megabytes), split="train") for megabytes in (1, 0))
    assert roomy[1] is roomy[1]
    assert tight[1] is not tight[1]
    assert (tight[1].image == roomy[1].image).all()  # type: ignore[union-attr]


def test_an_image_that_rots_later_is_named(tmp_path: Path) -> None:
    source = load(config(image_folder(tmp_path, {"cat": 2, "dog": 1}), cache_mb=0), split="train")
    (tmp_path / "cat" / "1.png").write_bytes(b"")
    assert source[0].label == "cat"
    with pytest.raises(DataError, match=r"train/1: cat/1.png: image has zero bytes"):
        source[1]


def test_no_image_size_keeps_each_size(tmp_path: Path) -> None:
    source = load(config(parquet(tmp_path / "set.parquet", [row()]), image_size=None), split="train")
    assert source.outlines[0].image_size == (8, 12)
    assert source[0].problem == QUESTION


def test_the_digits_come_in_halves_by_class() -> None:
    """As base-to-new wants them: rows of the whole splits, each offered the classes of its own half alone."""
    data = DataConfig(path="embedded:digits", image_size=8)
    base, new = LABELS[:5], LABELS[5:]
    for whole, halves in (("train", ("base_train", "new_train")), ("test", ("base_test", "new_test"))):
        everything = load(data, split=whole)
        parts = [load(data, split=half) for half in halves]
        assert sum(map(len, parts)) == len(everything)
        for part, labels in zip(parts, (base, new), strict=True):
            assert set(part.labels) == set(labels)
            assert {tuple(candidates(outline.problem) or ()) for outline in part.outlines} == {labels}
        assert sorted(chain.from_iterable(map(pictures, parts))) == sorted(pictures(everything))


def pictures(source: ExampleSource) -> list[bytes]:
    images = [source[index].image for index in range(len(source))]
    return [read_pixels(image).tobytes() for image in images if image is not None]
