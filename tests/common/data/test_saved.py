"""Sets of `save_to_disk` that were written by hand: they read no file elsewhere and decode nothing unasked."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from common.config.schema import DataConfig
from common.data.build.sources import open_source
from common.data.sources import load
from common.errors import DataError
from tests.helpers.makers import QUESTION, encoded

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"  # PIL would ask Ghostscript


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A set of the splits train and test."""
    from datasets import Dataset, DatasetDict, Features, Image, Value

    text = Value("string")
    features = Features({"problem": text, "image": Image(), "solution": text, "figure": Image(), "note": text})
    picture, figure = {"bytes": encoded(), "path": None}, {"bytes": EPS, "path": None}
    row = {"problem": QUESTION, "image": picture, "solution": "cat", "figure": figure, "note": "n"}
    split = Dataset.from_list([row] * 3, features=features)
    DatasetDict({"train": split, "test": split}).save_to_disk(str(tmp_path / "set"))
    return tmp_path / "set"


def name_file(place: Path, name: str) -> None:
    """Make the training split name another file of rows."""
    state = json.loads((place / "train/state.json").read_bytes())
    state["_data_files"] = [{"filename": name}]
    (place / "train/state.json").write_text(json.dumps(state))


def data_file(place: Path) -> Path:
    (file,) = (place / "train").glob("*.arrow")
    return file


def above(place: Path) -> None:
    shutil.move(data_file(place), place.parent / "x.arrow")
    name_file(place, "../../x.arrow")


def absolute(place: Path) -> None:
    name_file(place, str(shutil.move(data_file(place), place.parent / "x.arrow")))


def link(place: Path) -> None:
    file = data_file(place)
    shutil.move(file, place.parent / "x.arrow")
    file.symlink_to(place.parent / "x.arrow")


def link_to_split(place: Path) -> None:
    shutil.move(place / "train", place.parent / "elsewhere")
    (place / "train").symlink_to(place.parent / "elsewhere")


def split_above(place: Path) -> None:
    shutil.move(place / "train", place.parent / "train")
    (place / "dataset_dict.json").write_text('{"splits": ["../train", "test"]}')


def pipe(place: Path) -> None:
    file = data_file(place)
    file.unlink()
    os.mkfifo(file)


def pipe_of_state(place: Path) -> None:
    (place / "train/state.json").unlink()
    os.mkfifo(place / "train/state.json")


@pytest.mark.parametrize("move", [above, absolute, link, link_to_split, split_above, pipe, pipe_of_state])
def test_no_file_outside_the_folder_is_read(place: Path, move: Callable[[Path], None]) -> None:
    move(place)
    with pytest.raises(DataError, match="no files inside its folder") as caught:
        load(DataConfig(path=str(place)), split="train")
    assert str(place) in str(caught.value)


def test_a_link_that_stays_inside_is_followed(place: Path) -> None:
    file = data_file(place)
    shutil.move(file, place / "rows.arrow")
    file.symlink_to(place / "rows.arrow")
    assert len(load(DataConfig(path=str(place)), split="train")) == 3


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "{}", '{"_data_files": [1]}', '{"_data_files": [{"filename": []}]}']
)
def test_a_state_by_hand_is_one_error(place: Path, content: str) -> None:
    (place / "train/state.json").write_text(content)
    with pytest.raises(DataError, match=r"cannot be read|no list _data_files"):
        load(DataConfig(path=str(place)), split="train")


def test_only_the_picture_that_is_asked_about_is_decoded(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another column of pictures goes to the rewards as it is: PIL knows formats that run programs."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was asked"))
    source = load(DataConfig(path=str(place), eval_fraction=0.0), split="train")
    assert source[0].columns == {"figure": {"bytes": EPS, "path": None}, "note": "n"}


@pytest.mark.parametrize("files", [0, 1], ids=["no file", "a file of no rows"])
def test_an_empty_split_leaves_the_others_readable(place: Path, files: int) -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_dict({"problem": [QUESTION], "solution": ["cat"]})
    empty = rows.filter(lambda row: False) if files else Dataset.from_dict({"problem": [], "solution": []})
    DatasetDict(train=rows, test=empty).save_to_disk(str(place / "halves"))

    data = DataConfig(path=str(place / "halves"), eval_fraction=0.0)
    assert len(load(data, split="train")) == 1
    with pytest.raises(DataError, match=r"halves \(test\) has no rows"):
        load(data, split="test")


def test_two_columns_of_one_name_are_refused(place: Path) -> None:
    import pyarrow as pa

    file = data_file(place)
    with pa.ipc.open_stream(file.read_bytes()) as reader:
        rows = reader.read_all()
    twice = pa.table([*rows.columns, rows["solution"]], names=[*rows.column_names, "solution"])
    with pa.ipc.new_stream(str(file), twice.schema) as writer:
        writer.write_table(twice)
    with pytest.raises(DataError) as caught:
        load(DataConfig(path=str(place), eval_fraction=0.0), split="train")
    assert "solution" in str(caught.value)


@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json"])
@pytest.mark.parametrize("text", ["{}", "[]", "5", "no json", '{"global_step": 3}', '{"splits": 1, "_data_files": {}}'])
def test_a_document_of_that_name_makes_no_saved_set(tmp_path: Path, name: str, text: str) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "pets" / label).mkdir(parents=True)
        (tmp_path / "pets" / label / "1.png").write_bytes(encoded())
    (tmp_path / "pets" / name).write_text(text)

    source = load(DataConfig(path=str(tmp_path / "pets"), eval_fraction=0.0), split="train")
    assert len(source) == 2
    assert any(name in note for note in source.notes)
    assert open_source(tmp_path / "pets").labels == ("cat", "dog")
