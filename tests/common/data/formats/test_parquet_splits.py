"""Which parquet files are one split, and which files of a split do not go together."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.schema import DataConfig
from common.data.build.sources import open_source
from common.data.formats.parquet import parquet_folder
from common.data.formats.split_names import find_split
from common.data.formats.tree import read_tree
from common.data.places import find_splits
from common.data.sources import load, load_held_out
from common.errors import DataError
from tests.helpers.makers import encoded, image_folder, parquet, row


def write(root: Path, names: list[str]) -> dict[str, int]:
    """Write a file of each name, and return how many rows each split has."""
    for name in names:
        parquet(root / name, [row()])
    return {name: len(opener(name).rows) for name, opener in parquet_folder(read_tree(root)).items()}


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["Train.parquet", "Test.parquet"], {"Train": 1, "Test": 1}),
        (["train/1.parquet", "Test/1.parquet"], {"train": 1, "Test": 1}),
        (["TRAIN-1.PARQUET", "TRAIN-2.PARQUET", "val.Parquet"], {"TRAIN": 2, "val": 1}),
        (["seg_train_part1.parquet", "seg_train_part2.parquet", "seg_test.parquet"], {"train": 2, "test": 1}),
        (["base_test.parquet", "new_test.parquet", "train.parquet"], {"base_test": 1, "new_test": 1, "train": 1}),
        (["base_test-00000-of-00001.parquet", "Train-00000-of-00001.parquet"], {"base_test": 1, "Train": 1}),
        (["default/train/0000.parquet", "default/train/0001.parquet"], {"train": 2}),
        (["a.parquet", "b.parquet"], {"": 2}),
        (["train/data-00000-of-00001.parquet", "test/data-00000-of-00001.parquet"], {"train": 1, "test": 1}),
        (["train.parquet", "train_small.parquet", "test.parquet"], {"train": 1, "train_small": 1, "test": 1}),
        (["cars_train.parquet", "birds_train.parquet"], {"train": 2}),
        (["base_train/1.parquet", "base_train/2.parquet", "new_test/1.parquet"], {"base_train": 2, "new_test": 1}),
        (["base-00000-of-00001.parquet", "new-00000-of-00001.parquet"], {"base": 1, "new": 1}),
        (["dtd_4shot_train.parquet", "dtd_test.parquet"], {"train": 1, "test": 1}),
        (["tr.parquet", "te.parquet"], {"tr": 1, "te": 1}),
        (["Trains/1.parquet", "Trains/2.parquet", "tests/1.parquet"], {"Trains": 2, "tests": 1}),
        (["data/trn_1.parquet", "data/trn_2.parquet", "data/tst.parquet"], {"trn": 2, "tst": 1}),
        (["en.parquet", "tr.parquet", "te.parquet"], {"": 3}),
        (["planes.parquet", "trains.parquet"], {"": 2}),
        (["traindir/1.parquet", "testdir/1.parquet"], {"traindir": 1, "testdir": 1}),
        (["trainset.parquet", "testset.parquet"], {"trainset": 1, "testset": 1}),
    ],
)
def test_names_say_the_splits(tmp_path: Path, names: list[str], splits: dict[str, int]) -> None:
    assert write(tmp_path, names) == splits


MEANT = {"train": ["train", "Train", "TRAINING"], "test": ["test", "Testing"], "val": ["val", "Validation"]}
FORMS = ["{}.parquet", "{}-0000{n}-of-00004.parquet", "{}_{n}.PARQUET", "{}/{n}.parquet", "data/{}/part-{n}.parquet"]


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_every_file_is_in_the_split_that_its_name_says_and_in_no_other(data: st.DataObject) -> None:
    """One spelling a split, one form a file; the truth is known as they are made."""
    around = data.draw(st.sampled_from(["{}", "seg_{}", "{}_images", "cars_{}"]))
    meant: dict[str, set[str]] = {}
    for split in data.draw(st.sets(st.sampled_from(sorted(MEANT)), min_size=1)):
        word = around.format(data.draw(st.sampled_from(MEANT[split])))
        parts = data.draw(st.sets(st.tuples(st.sampled_from(FORMS), st.integers(0, 3)), min_size=1, max_size=4))
        whole = {(form, other) for form, number in parts for other in (range(4) if "-of-" in form else [number])}
        meant[split] = {form.format(word, n=number) for form, number in whole}
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        root = Path(folder)
        for name in set().union(*meant.values()):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        found = parquet_folder(read_tree(root))
    files = {name: {str(file.relative_to(root)) for file in opener.args[0]} for name, opener in found.items()}  # type: ignore[attr-defined]
    assert sum(map(len, files.values())) == len(set().union(*meant.values()))
    for split, wanted in meant.items():
        (name,) = find_split(files, split)
        assert files[name] == wanted


def test_train_and_test_are_found_whatever_their_case(tmp_path: Path) -> None:
    parquet(tmp_path / "Train.parquet", [row()])
    parquet(tmp_path / "Test.parquet", [row(note="held out")])
    data = DataConfig(path=str(tmp_path), image_size=8, eval_split="test")
    train, held_out = load(data, split="train"), load_held_out(data)
    assert len(train) == 1 and train[0].columns == {"note": "n"} and train[0].id == "train/0"
    assert held_out is not None and len(held_out) == 1 and held_out[0].columns == {"note": "held out"}


def test_two_names_of_one_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="more than once") as caught:
        write(tmp_path, ["Train.parquet", "training.parquet"])
    assert caught.value.got == "Train, training"


def test_what_is_joined_or_left_out_is_said(tmp_path: Path) -> None:
    write(tmp_path, ["cars_train.parquet", "birds_train.parquet", "test-1.parquet", "test-2.parquet", "._test.parquet"])
    parquet(tmp_path / ".cache/train.parquet", [row()])
    (tmp_path / "more.csv").write_text("path,label\n")
    image_folder(tmp_path / "pictures", {"cat": 1})
    notes = parquet_folder(read_tree(tmp_path))["train"]("train").notes
    assert notes == (
        "hidden files and folders are left out (2): ._test.parquet, .cache",
        "files beside the parquet files are left out (1): more.csv",
        "folders beside the parquet files are read only where rows name their files (1): pictures",
        "files of several names or folders are one split, train (2): birds_train, cars_train",
    )


def notes_of(root: Path, names: str) -> tuple[str, ...]:
    write(root, names.split())
    return next(iter(parquet_folder(read_tree(root)).values()))("train").notes  # those of the folder


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("cars.parquet birds.parquet", "(2): birds, cars"),
        ("cats.parquet metadata.parquet", "(2): cats, metadata"),
        ("fold0.parquet fold1.parquet fold2.parquet", "(3): fold0, fold1, fold2"),
        ("v1/data.parquet v2/data.parquet", "(2): v1/data, v2/data"),
        ("train.parquet data/train-00000-of-00001.parquet", "train (2): data/train, train"),
        ("en/0000.parquet fr/0000.parquet", "(2): en/part, fr/part"),
        ("en/train.parquet fr/train.parquet", "train (2): en/train, fr/train"),
    ],
)
def test_files_that_may_be_of_several_sets_are_said(tmp_path: Path, names: str, said: str) -> None:
    (note,) = notes_of(tmp_path, names)
    assert note.startswith("files of several names or folders are one split") and note.endswith(said)


@pytest.mark.parametrize(
    "names",
    [
        "part-1.parquet part-2.parquet",
        "0000.parquet 0001.parquet",
        "train_1.parquet train_2.parquet",
        "cars.parquet",
        "default/train/0000.parquet default/train/0001.parquet default/test/0000.parquet",
        "train-00001-of-00002.parquet train-00002-of-00002.parquet",
        "train-00000-of-00002-ab.parquet train-00001-of-00002-cd.parquet test-00000-of-00001-ef.parquet",
        "train/00000-of-00002.parquet train/00001-of-00002.parquet",
        "part-00000-3f2a.snappy.parquet",
        "train/chunk-000/0.parquet train/chunk-001/0.parquet",
        "train/chunk-000/x-00000-of-00002.parquet train/chunk-001/x-00001-of-00002.parquet",
    ],
)
def test_parts_of_one_set_are_read_without_a_word(tmp_path: Path, names: str) -> None:
    assert notes_of(tmp_path, names) == ()


@pytest.mark.parametrize(
    ("names", "what", "missing"),
    [
        ("train-00000-of-00003-x train-00002-of-00003-x", "1 of 3 shards of train is missing", "00001"),
        ("train-00000-of-00003", "2 of 3 shards of train are missing", "00001, 00002"),
        ("train-00000-of-00001 test/data-00001-of-00002", "1 of 2 shards of test is missing", "00000"),
        ("a_1_of_3 a_3_of_3", "1 of 3 shards of a is missing", "00002"),
        ("train/1-of-4 train/2-of-4", "2 of 4 shards of train are missing", "00000, 00003"),
    ],
)
def test_missing_shards_are_counted_and_named(tmp_path: Path, names: str, what: str, missing: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        write(tmp_path, [f"{name}.parquet" for name in names.split()])
    assert str(caught.value.got).endswith(missing)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.data(), st.sampled_from([0, 1]))
def test_whichever_shards_are_missing_each_is_named(count: int, data: st.DataObject, first: int) -> None:
    numbers = set(range(first, first + count))
    there = data.draw(st.sets(st.sampled_from(sorted(numbers)), min_size=1)) | {first, first + count - 1}
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        for number in there:
            (Path(folder) / f"train-{number:05}-of-{count:05}.parquet").touch()
        if there == numbers:
            assert len(parquet_folder(read_tree(Path(folder)))) == 1
            return
        with pytest.raises(DataError, match=f"{len(numbers - there)} of {count} shards of train") as caught:
            parquet_folder(read_tree(Path(folder)))
    assert all(f"{number:05}" in str(caught.value.got) for number in sorted(numbers - there)[:3])


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        ("train-00000-of-00001-ab train-00000-of-00001-cd", "another download"),
        ("train-00000-of-00001 train-00000-of-00002 train-00001-of-00002", "another download"),
        ("en/train-00000-of-00001 fr/train-00000-of-00001", "let data.path be one of them, as {}/en"),
        ("en/train-00000-of-00001-ab fr/train-00000-of-00002-cd fr/train-00001-of-00002-ef", "as {}/en"),
        ("default/train/0000 extra/train/0000", "let data.path be one of them, as {}/default"),
        ("train-00000-of-00001 data/train-00000-of-00001", "let data.path be one of them, as {}/data"),
    ],
)
def test_a_shard_that_is_there_twice_is_refused(tmp_path: Path, names: str, remedy: str) -> None:
    with pytest.raises(DataError, match=r"has shard 0 of train more than once") as caught:
        write(tmp_path, [f"{name}.parquet" for name in names.split()])
    assert caught.value.remedy.endswith(remedy.format(tmp_path))


LEFT = ["test.pq", "test.parquet.gz", "test.parquet.zst", "test.parquet.incomplete", "test.PARQUET.crdownload"]
LEFT += ["test.json", "test.jsonl.gz", "test.feather", "test.zip", "test.tar", "test.pkl", "test.csv", "data/test.orc"]


def test_whatever_may_hold_rows_and_is_not_read_is_said(tmp_path: Path) -> None:
    for name in ["README.md", ".gitattributes", "dataset_info.json", "LICENSE", "1.jpg", *LEFT]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "nowhere.parquet").symlink_to("gone")
    (tmp_path / "test/more").mkdir(parents=True)
    beside, empty = notes_of(tmp_path, "train.parquet")
    what, _, named = beside.partition(": ")
    assert what == f"files beside the parquet files are left out ({len(LEFT) + 1})"
    assert named == f"data/test.orc, nowhere.parquet, test.PARQUET.crdownload and {len(LEFT) - 2} more"
    assert empty == "folders without a file are left out (1): test"


@pytest.mark.parametrize("name", LEFT)
def test_each_of_them_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert name in str(notes_of(tmp_path, "train.parquet"))


def test_a_split_that_only_its_own_name_finds_is_said(tmp_path: Path) -> None:
    write(tmp_path, ["train.parquet", "train_small.parquet", "test.parquet", "base_test.parquet"])
    (note,) = parquet_folder(read_tree(tmp_path))["train"]("train").notes
    assert note.endswith("which data.split and data.eval_split may name (1): train_small")


def test_a_saved_set_is_asked_for_by_meaning(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    split = Dataset.from_list([{"problem": "a?", "solution": "b"}])
    DatasetDict({"Train": split, "validation": split}).save_to_disk(str(tmp_path / "set"))
    data = DataConfig(path=str(tmp_path / "set"), eval_split="val")
    assert len(load(data, split="train")) == 1 and load_held_out(data) is not None


def shards(root: Path, *columns: dict[str, Any]) -> Any:
    for number, cells in enumerate(columns):
        pq.write_table(pa.table(cells), root / f"train-{number:05}-of-{len(columns):05}.parquet")
    return parquet_folder(read_tree(root))["train"]("train")


TEXT = pa.array(["a"])
PICTURE = {"bytes": encoded(), "path": None}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.nulls(1), TEXT),
        (TEXT, pa.nulls(1)),
        (TEXT, TEXT.cast(pa.large_string())),
        (TEXT, TEXT.dictionary_encode()),
        (pa.array([PICTURE]), pa.array([PICTURE | {"path": "a.png"}])),  # path is null throughout, and text
        (pa.array([[1]], pa.list_(pa.int32())), pa.array([[1]], pa.large_list(pa.int64()))),
        (pa.array([1.0], pa.float32()), pa.array([1.0])),
    ],
)
def test_files_whose_cells_read_alike_are_one_split(tmp_path: Path, one: Any, other: Any) -> None:
    table = shards(tmp_path, {"problem": ["a"], "note": one}, {"note": other, "problem": ["b"]})
    assert [table.rows[0], table.rows[1]] == [
        {"problem": "a", "note": one.to_pylist()[0]},
        {"problem": "b", "note": other.to_pylist()[0]},
    ]
    assert list(table.column("note")) == one.to_pylist() + other.to_pylist()


@pytest.mark.parametrize(
    ("one", "other", "got"),
    [
        ({"note": ["a"]}, {"note": [1]}, "string in train-00000-of-00002.parquet, int64 in train-00001"),
        ({"note": ["a"]}, {"note": [b"a"]}, "string in train-00000-of-00002.parquet, binary in train-00001"),
        (
            {"note": [[1]]},
            {"note": [["a"]]},
            "list<element: int64> in train-00000-of-00002.parquet, list<element: string>",
        ),
        ({"note": ["a"]}, {"other": ["a"]}, "string in train-00000-of-00002.parquet, missing in train-00001"),
    ],
)
def test_files_that_differ_name_the_column_and_both_types(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any], got: str
) -> None:
    with pytest.raises(DataError, match="other columns than") as caught:
        shards(tmp_path, one, other)
    assert "note differs" in caught.value.what and got in str(caught.value.got)


def test_a_file_in_capitals_is_parquet_too(tmp_path: Path) -> None:
    file = parquet(tmp_path / "SET.PARQUET", [row()])
    assert len(load(DataConfig(path=file, image_size=8, eval_split=None), split="train")) == 1


@pytest.mark.parametrize("name", ["a.csv", "A.CSV", "a.jsonl", "a.tsv"])
def test_a_list_must_be_built_first(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("path,label\n")
    with pytest.raises(DataError, match="is a list of files") as caught:
        find_splits(str(tmp_path / name), "")
    assert "python -m common.data.build" in caught.value.remedy


@pytest.mark.parametrize("name", ["train.parquet", "data/x.PARQUET"])
def test_a_set_is_no_source(tmp_path: Path, name: str) -> None:
    image_folder(tmp_path, {"cat": 1, "dog": 1})
    file = parquet(tmp_path / name, [row()])
    for place in (tmp_path, Path(file)):
        with pytest.raises(DataError, match="is a data set already") as caught:
            open_source(place)
        assert f"data.path={place}" in caught.value.remedy
