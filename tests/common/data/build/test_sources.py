"""Folders and lists of files give the same collection; what is left out is said, what cannot be read is refused."""

from __future__ import annotations

import codecs
import gzip
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
        ("a.jsonl", '{"path": "x.png", "label": 3}\n', "label is a int.*column label"),
        ("a.jsonl", '{"path": "x.png"\n', "cannot be read"),
        ("a.jsonl", '["x.png", "cat"]\n', "line 1: path is None"),
        ("a.csv", "path,label,split\nx.png,cat,train\ny.png,cat,\n", "1 of 2 lines of .* have no split.*are of train"),
        ("a.csv", "path,label,split\nx.png,cat,test\n", "has no split to train on"),
        ("a.csv", "path,label\n", "holds no rows"),
        ("a.csv", "path,label\n,\n,,\n", "holds no rows"),
        ("a.jsonl", "", "holds no rows"),
        ("a.jsonl", "\n\n", "holds no rows"),
        ("a.jsonl", '{"path": "x.png", "label": "cat", "split": 0}\n', "line 1: split is 0"),
        ("a.jsonl", '{"path": "x.png", "label": "cat", "split": false}\n', "line 1: split is False"),
        ("a.jsonl", '{"path": "x.png", "label": "cat", "label": "dog"}\n', "line 1: it has label twice.*'cat'.*'dog'"),
        ("a.jsonl", '{"path": "x.png", "label": "cat", "Label": "dog"}\n', "line 1: it has label twice.*Label: 'dog'"),
        ("a.csv", 'path,label\nw.png,cat\n"x.png,cat\ny.png,dog\n', "from line 3 on.*close the quote"),
        ("a.csv", 'path,label\n"x.png"x,dog\n', "from line 2 on.*close the quote"),
        ("a.csv", f"path,label\nx.png,{'a' * 200_000}\n", "from line 2 on.*field limit"),
        ("a.csv", 'sep=,\npath,label\n"x.png"x,dog\n', "from line 3 on"),
        ("a.txt", "x.png cat\n", "is no source of pictures"),
    ],
)
def test_a_list_that_cannot_be_used(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        open_source(tmp_path / name)
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)


ROWS = "path,label,split\na.png,cat,Train\nb.png,dog,train\nc.png,cat,TEST\n"


def brief(collection: Collection) -> list[list[tuple[str, str]]]:
    return [[(picture.path, picture.label) for picture in part] for part in (collection.train, collection.test)]


@pytest.mark.parametrize("code", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_list_is_read_as_spreadsheets_write_it(tmp_path: Path, code: str, delimiter: str, end: str) -> None:
    mark = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}.get(code, b"")
    text = ROWS.replace(",", delimiter).replace("\n", end).replace("cat", "Käse")
    (tmp_path / "list.CSV").write_bytes(mark + text.encode(code))
    found = open_source(tmp_path / "list.CSV")
    assert brief(found) == [[("b.png", "dog"), ("a.png", "Käse")][::-1], [("c.png", "Käse")]]
    assert found.notes == ("names of one split, train (2): Train, train",)


def test_columns_are_known_in_any_case_and_paths_as_windows_writes_them(tmp_path: Path) -> None:
    image_folder(tmp_path, {"cat": 1})
    (tmp_path / "list.csv").write_text("Label, Path ,Note\ncat,cat\\0.png,x\ndog,a\\0.png,x\n")
    found = open_source(tmp_path / "list.csv")
    assert brief(found) == [[("cat/0.png", "cat"), ("a/0.png", "dog")], []]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("path,label\na.png,café\n".encode("latin-1"), "not in UTF-8.*byte 0xe9 in line 2: perhaps Latin-1.*UTF-8"),
        ("path,label\na.png,cat\n".encode("utf-16-le"), "not in UTF-8.*perhaps UTF-16 without.*save it as UTF-8"),
        (codecs.BOM_UTF16_LE + b"a", "not in UTF-8.*a mark of UTF-16.*save it as UTF-8"),
        (b"file_name,Class\na.png,cat\n", r"no column path and no column label.*file_name for path, class for label"),
        (b"path,label\na.png,cat, big,\n", "line 2: 1 more cells than the first line.*in quotes"),
        (b"path,label\na.png,cat\nb.png,d\0g\n", "holds a zero byte.*in line 3"),
        (b"path,label,label\na.png,cat,dog\n", "has column label twice"),
        (b"path,label\na.png\n", "line 2: label is a NoneType.*column label"),
        (
            b"PK\x03\x04\x14\x00\x06\x00\x08\x00" + bytes(range(256)),
            "not what its name says.*a zip archive.*save the list",
        ),
        (gzip.compress(b"path,label\na.png,cat\n"), "a gzip archive.*unpack it"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html>\n<title>Sign in</title>\n", "an HTML page.*fetch the file again"),
        (b"PAR1\x15\x04\x15\x00PAR1", "it is a parquet file"),
        (b"path,label,split\na.png,cat,holdout\n", "no split to train on.*splits: holdout"),
        (b"path,label,split\na.png,cat,train2014\nb.png,cat,train2017\n", "more than one split that train may mean"),
    ],
)
def test_what_is_wrong_with_a_list_is_said(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "list.csv").write_bytes(data)
    with pytest.raises(DataError) as caught:
        open_source(tmp_path / "list.csv")
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "path,label,,\na.png,cat,,\nb.png,dog,,\n,,,\n",
        "path,label\na.png,cat,,\nb.png,dog, \n,\n \n",
        "sep=,\r\npath,label\r\na.png,cat\r\nb.png,dog\r\n",
        '"sep=,"\npath,label\na.png,cat\nb.png,dog\n',
        "\ufeffsep=;\npath;label\na.png;cat\nb.png;dog\n",
        'path, label\na.png, "cat"\n"b.png",dog\n',
        '"path", "label"\n"a.png", "cat"\n"b.png", "dog"\n',
        "BMI,path,label\n1,a.png,cat\n2,b.png,dog\n",
        "path,label,split\na.png,cat,\nb.png,dog,\t\n",
        "path,label,ID\na.png,cat,\nb.png,dog,\n",
    ],
)
def test_a_list_as_spreadsheets_and_people_leave_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.csv").write_text(text, newline="")
    assert brief(open_source(tmp_path / "list.csv")) == [[("a.png", "cat"), ("b.png", "dog")], []]


def test_keys_that_are_no_columns_may_be_there_twice(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"path": "a.png", "label": "cat", "split": " ", "x": 1, "X": {"x": 2}}\n')
    assert brief(open_source(tmp_path / "a.jsonl")) == [[("a.png", "cat")], []]


def test_keys_of_a_jsonl_are_known_in_any_case_and_others_named(tmp_path: Path) -> None:
    (tmp_path / "a.JSONL").write_text('{"Path": "a.png", "LABEL": "cat"}\n{"path": "b.png", "label": "dog"}\n')
    assert brief(open_source(tmp_path / "a.JSONL")) == [[("a.png", "cat"), ("b.png", "dog")], []]
    (tmp_path / "b.jsonl").write_text('{"image": "a.png", "label": "cat"}\n')
    with pytest.raises(DataError, match="path is None among image, label"):
        open_source(tmp_path / "b.jsonl")


def test_splits_of_unknown_names_are_left_out_and_said(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"{ROWS}d.png,cat,holdout\ne.png,cat,foo\nf.png,cat,holdout\n")
    found = open_source(tmp_path / "list.csv")
    assert brief(found) == [[("a.png", "cat"), ("b.png", "dog")], [("c.png", "cat")]]
    assert found.notes[1:] == ("split holdout is left out: 2 pictures", "split foo is left out: 1 pictures")


def test_folders_of_any_spelling_are_train_and_test(tmp_path: Path) -> None:
    image_folder(tmp_path / "zip", {"Training/cat": 1, "Training/dog": 1, "Testing/cat": 2, "holdout/dog": 1})
    found = open_source(tmp_path)
    assert brief(found) == [[("cat/0.png", "cat"), ("dog/0.png", "dog")], [("cat/0.png", "cat"), ("cat/1.png", "cat")]]
    assert found.notes == (
        "folders around those of classes are entered (1): zip",
        "split holdout is left out: 1 pictures",
    )


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        open_source(tmp_path / "absent")
