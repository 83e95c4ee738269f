"""Files of other people as they come: each is read, or is one error that names it."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.schema import DataConfig
from common.data import lint
from common.data.build import __main__ as build
from common.data.formats import parquet as formats
from common.data.sources import ExampleSource, load
from common.data.table import read_arrow_row
from common.errors import DataError
from tests.helpers.makers import encoded, row

LATIN = os.fsdecode(b"caf\xe9")


def enter(place: Path) -> ExampleSource:
    return load(DataConfig(path=str(place), image_size=None), split="train")


def write(file: Path, **columns: pa.Array) -> Path:
    table = pa.Table.from_pylist([row(), row(image={"bytes": encoded("blue"), "path": None}, solution="dog")])
    for name, values in columns.items():
        table = table.append_column(name, values)
    pq.write_table(table, file)
    return file


UNREADABLE = {
    "before year 1": pa.array([0, -(10**17)], pa.timestamp("us")),
    "after year 9999": pa.array([0, 10**12], pa.timestamp("s")),
    "unknown zone": pa.array([None, 0], pa.timestamp("us", tz="Mars/Olympus")),
    "duration over Python's": pa.array([0, 2**62], pa.duration("s")),
    "date": pa.array([0, -(2**31)], pa.date32()),
    "nested": pa.array([[0], [2**62]], pa.list_(pa.duration("s"))),
    "no UTF-8": pa.array([b"a", b"\xff"]).view(pa.string()),
}


@pytest.mark.parametrize("form", ["parquet", "save_to_disk"])
@pytest.mark.parametrize("values", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_column_that_python_cannot_hold_is_left_out(tmp_path: Path, values: pa.Array, form: str) -> None:
    place = write(tmp_path / "old.parquet", at=values, extra=pa.array(["a", "b"]))
    if form == "save_to_disk":
        Dataset(pq.read_table(place)).save_to_disk(str(tmp_path / "saved"))
        place = tmp_path / "saved"
    source = enter(place)
    assert [source[index].columns for index in range(2)] == [{"note": "n", "extra": sign} for sign in "ab"]
    assert "at" not in source.columns and "extra" in source.columns
    assert [note for note in source.notes if "column at is left out, for train/1: " in note]
    assert source.select([0])[0].columns == {"note": "n", "extra": "a"}


@pytest.mark.parametrize("name", ["problem", "solution"])
def test_a_cell_of_ours_that_python_cannot_hold_is_named_with_its_row(tmp_path: Path, name: str) -> None:
    file = tmp_path / "old.parquet"
    texts = pa.array([b"a", b"\xff"]).view(pa.string())
    rows = pa.Table.from_pylist([row(), row()]).drop_columns([name]).append_column(name, texts)
    pq.write_table(rows, file)
    with pytest.raises(DataError, match=f"train/1: {name} cannot be read: UnicodeDecodeError"):
        load(DataConfig(path=str(file), image_size=None, check_candidates=False), split="train")


TIMES = [
    *(pa.timestamp(unit, tz=zone) for unit in ("s", "ms", "us", "ns") for zone in (None, "UTC", "Nowhere/At_All")),
    *(pa.duration(unit) for unit in ("s", "ms", "us", "ns")),
    *(pa.int64(), pa.date64(), pa.time64("us"), pa.time64("ns")),
]


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(TIMES), cells=st.lists(st.integers(-(2**63), 2**63 - 1) | st.none(), min_size=1))
def test_every_cell_of_any_time_is_its_value_or_unreadable(kind: pa.DataType, cells: list[int | None]) -> None:
    table = pa.table({"at": pa.array(cells, pa.int64()).view(kind), "number": cells})
    for index, cell in enumerate(cells):
        read = read_arrow_row(table, index)
        assert read["number"] == cell
        assert read["at"] is None if cell is None else read["at"] is not None


@pytest.mark.parametrize(
    "values",
    [
        pa.array([0, 10**15], pa.timestamp("us")),
        pa.array([datetime(2026, 1, 1, tzinfo=UTC)] * 2),
        pa.array(["1.5", "2.5"]).cast(pa.decimal128(5, 2)),
        pa.array(["a", "b"]).dictionary_encode(),
        pa.array([[1, 2], None]),
        pa.array([None, None]),
    ],
    ids=lambda values: str(values.type),
)
def test_columns_of_other_types_are_read(tmp_path: Path, values: pa.Array) -> None:
    assert len(enter(write(tmp_path / "x.parquet", extra=values))) == 2


def test_nested_columns_over_2_gb_are_read_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow refuses such a batch; the rows by themselves it reads."""
    sizes: list[int] = []
    read = pq.ParquetFile.iter_batches

    def refuse(self: Any, size: int, **how: Any) -> Any:
        sizes.append(size)
        if size > 1:
            raise pa.ArrowNotImplementedError("Nested data conversions not implemented for chunked array outputs")
        return read(self, size, **how)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", refuse)
    assert len(enter(write(tmp_path / "x.parquet"))) == 2
    assert {1, formats._FEW_ROWS} == set(sizes)  # noqa: SLF001


@pytest.mark.parametrize("end", [b"", b"PAR1", b"\xff\xff\xff\x7fPAR1", b"\x00\x00\x00\x00PAR1"])
@pytest.mark.parametrize("kept", [0, 4, 200])
def test_a_damaged_footer_is_named(tmp_path: Path, kept: int, end: bytes) -> None:
    file = write(tmp_path / "torn.parquet")
    file.write_bytes(file.read_bytes()[:kept] + end)
    with pytest.raises(DataError, match=r"torn\.parquet"):
        enter(file)


@pytest.mark.parametrize(
    "features",
    [{"problem": {"dtype": "string"}}, {"problem": {"_type": "Unheard-of"}}, {"problem": 3}, [], {"problem": None}],
    ids=str,
)
def test_features_that_datasets_cannot_read_are_named(tmp_path: Path, features: object) -> None:
    from datasets import Dataset

    place = tmp_path / "saved"
    Dataset.from_list([{"problem": "What?", "solution": "cat"}]).save_to_disk(str(place))
    info = json.loads((place / "dataset_info.json").read_text())
    (place / "dataset_info.json").write_text(json.dumps(info | {"features": features}))
    with pytest.raises(DataError, match="saved"):
        enter(place)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer.*git lfs pull"),
        (b"<html>\n<title>Sign in</title>\n", "an HTML page.*fetch"),
        (b"\x1f\x8b\x08\x00" + bytes(60), "a gzip archive.*unpack"),
    ],
)
@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_foreign_files_of_rows_are_named_by_what_they_are(tmp_path: Path, kind: str, data: bytes, what: str) -> None:
    if kind == "parquet":
        (tmp_path / "train.parquet").write_bytes(data)
    else:
        from datasets import Dataset

        Dataset.from_list([{"problem": "?", "solution": "cat"}]).save_to_disk(str(tmp_path / "train.parquet"))
        next((tmp_path / "train.parquet").glob("*.arrow")).write_bytes(data)
    with pytest.raises(DataError, match=f"(?s)not what its name says.*{what}"):
        enter(tmp_path / "train.parquet")


@pytest.mark.parametrize("text", ["[]", "3", '{"_data_files": 3}', '{"_data_files": [{}]}', "\xff", "{"])
def test_foreign_json_of_a_saved_set_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/state.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match="saved"):
        enter(tmp_path / "saved")


def photos(root: Path, label: str = "cat", name: str = "0.png") -> Path:
    for folder, file, colour in ((label, name, "red"), (label, "1.png", "blue"), ("dog", "0.png", "green")):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / file).write_bytes(encoded(colour))
    (root / "dog/1.png").write_bytes(encoded("white"))
    return root


def test_pictures_whose_names_are_not_utf8_are_built_and_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos(tmp_path / LATIN, name=f"{LATIN}.png")
    assert build.main([str(root), "--shots=all", "--test-fraction=0", "--out", str(tmp_path / f"out-{LATIN}")]) == 0
    assert lint.main([str(root)]) == 0
    capsys.readouterr()
    (file,) = (tmp_path / f"out-{LATIN}").glob("*.parquet")
    paths = [cell["path"] for cell in pq.read_table(pa.BufferReader(file.read_bytes())).column("image").to_pylist()]
    assert r"cat/caf\udce9.png" in paths
    assert r"caf\udce9" in (file.parent / "README.md").read_text()


def test_a_class_whose_name_is_not_utf8_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = photos(tmp_path / "photos", label=LATIN)
    for command in ([str(root), "--shots=all", "--out", str(tmp_path / "out")],):
        assert build.main(command) == 2
    assert lint.main([str(root)]) == 2
    errors = capsys.readouterr().err
    assert errors.count("is no text in UTF-8") >= 2 and r"caf\udce9" in errors
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", ["x" * 256, "d/" * 2100, "a\0b", "loop", "loop/x", "../x", "", LATIN])
def test_the_path_of_a_list_is_blamed_and_not_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    photos(tmp_path / "photos")
    rows = [{"path": path, "label": "cat"}, {"path": "photos/dog/0.png", "label": "dog"}]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert build.main([str(tmp_path / "list.jsonl"), "--shots=all", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("remedy:") == 1 and "out cannot be written" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["problem", "image", "solution", "extra"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / "twice.parquet", extra=pa.array(["a", "b"]))
    rows = pq.read_table(file)
    pq.write_table(rows.append_column(name, rows[name]), file)
    with pytest.raises(DataError, match=f"twice.parquet has two columns of one name: {name}\n"):
        enter(file)
