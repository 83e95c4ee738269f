"""Folders and lists of files give the same collection; what is left out is said, what cannot be read is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from common.data.build.collection import Collection
from common.data.build.sources import open_source
from common.errors import DataError
from tests.helpers.makers import image_folder


def held(collection: Collection) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(path, label) of train and of test, paths as absolute ones."""
    return tuple(  # type: ignore[return-value]
        [(str(picture.root / picture.path), picture.label) for picture in pictures]
        for pictures in (collection.train, collection.test)
    )


def test_a_folder_and_lists_of_its_files_are_one_collection(tmp_path: Path) -> None:
    image_folder(tmp_path, {"train/dog": 2, "train/cat": 1, "test/cat": 1})
    rows = [("train/dog/0.png", "dog", "train"), ("train/dog/1.png", "dog", "train")]
    rows += [("train/cat/0.png", "cat", "train"), ("test/cat/0.png", "cat", "test")]
    (tmp_path / "list.csv").write_text("path,label,split\n" + "".join(f"{','.join(row)}\n" for row in rows))
    lines = [f'{{"label": "{label}", "path": "{path}", "split": "{split}"}}' for path, label, split in reversed(rows)]
    (tmp_path / "list.jsonl").write_text("\n".join(lines) + "\n\n")
    listed = [open_source(tmp_path / name) for name in ("list.csv", "list.jsonl")]
    (tmp_path / "list.csv").unlink()
    (tmp_path / "list.jsonl").unlink()
    folder = open_source(tmp_path)
    assert folder.labels == listed[0].labels == listed[1].labels == ("cat", "dog")
    assert held(folder) == held(listed[0]) == held(listed[1])
    assert [label for _, label in held(folder)[0]] == ["cat", "dog", "dog"] and len(folder.test) == 1


def test_without_split_names_all_is_to_train_on(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("label,path\ncat,a.png\ndog,b/c.png\n")
    found = open_source(tmp_path / "list.csv")
    assert [(picture.path, picture.label) for picture in found.train] == [("a.png", "cat"), ("b/c.png", "dog")]
    assert found.test == () and found.notes == ()


def test_of_two_splits_to_test_on_one_is_left_out_and_said(tmp_path: Path) -> None:
    image_folder(tmp_path, {"train/cat": 1, "val/cat": 3, "test/cat": 2})
    found = open_source(tmp_path)
    assert len(found.test) == 2 and found.notes == ("split val is left out: 3 pictures",)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "file,label\nx.png,cat\n", "has no column path"),
        ("a.csv", "", "has no column path and no column label"),
        (
            "a.csv",
            "path,label\nx.png,cat\ny.png,\n,cat\n",
            "2 of 3 rows of .*line 3: label is empty; line 4: path is ''",
        ),
        ("a.csv", "path,label\nx.png,<answer>\n", "holds tag text"),
        ("a.jsonl", '{"path": "x.png", "label": 3}\n', "solution is a int"),
        ("a.jsonl", '{"path": "x.png"\n', "cannot be read"),
        ("a.jsonl", '["x.png", "cat"]\n', "line 1: path is None"),
        ("a.csv", "path,label,split\nx.png,cat,train\ny.png,cat,\n", "has no split to train on"),
        ("a.csv", "path,label,split\nx.png,cat,test\n", "has no split to train on"),
        ("a.csv", "path,label\n", "has no split to train on"),
        ("a.txt", "x.png cat\n", "is no source of pictures"),
    ],
)
def test_a_list_that_cannot_be_used(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        open_source(tmp_path / name)
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        open_source(tmp_path / "absent")
