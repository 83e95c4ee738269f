"""Whatever a reader of foreign files raises, a command ends with one error that names the file."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import PIL
import pyarrow as pa
import pytest
import yaml
from PIL import Image, UnidentifiedImageError

from common.command import Terminated
from common.config.cli import parse
from common.config.schema import Config, DataConfig
from common.data.build.coop import open_layout
from common.data.build.questions import read_confusions
from common.data.build.sources import open_source
from common.data.sources import load
from common.errors import RollcallError
from learner.report.write import write_report
from learner.storage.checkpoint import DriverState, read_state, write_state
from learner.storage.checkpoint_folder import CheckpointFolder
from tests.helpers.makers import image_folder, parquet, row

LIBRARIES = ("builtins", "pyarrow", "PIL", "json", "csv", "_csv", "yaml", "zipfile", "struct", "zlib", "gzip", "lzma")
ENDS = (KeyboardInterrupt, Terminated, GeneratorExit)  # what must end the process


def list_kinds(kind: type[BaseException] = Exception) -> Iterator[type[BaseException]]:
    """Yield every exception that the libraries of our readers declare, down to the last."""
    for below in kind.__subclasses__():
        if below.__module__.partition(".")[0] in LIBRARIES and not issubclass(below, Warning):
            yield below
        yield from list_kinds(below)


def make(kind: type[BaseException]) -> BaseException:
    """Make one of a kind, whatever it takes."""
    for given in (
        ("of the test",),
        ("of the test", [ValueError()]),
        (),
        ("utf-8", b"\xff", 0, 1, "of the test"),
        ("of the test", "", 0),
    ):
        try:
            return kind(*given)
        except TypeError:
            continue
    return kind.__new__(kind)


KINDS: tuple[type[BaseException], ...] = tuple(dict.fromkeys([Exception, *list_kinds()]))
PANIC: type[BaseException] = type(
    "PanicException", (BaseException,), {"__module__": "pyo3_runtime"}
)  # as Rust code panics


def test_there_are_the_kinds_that_lists_lack() -> None:
    for kind in (MemoryError, RecursionError, OverflowError, StopIteration, AssertionError, SystemError, LookupError):
        assert kind in KINDS
    assert {pa.ArrowNotImplementedError, UnidentifiedImageError, Image.DecompressionBombError} <= set(KINDS)
    assert {yaml.YAMLError, csv.Error, json.JSONDecodeError, zipfile.BadZipFile} <= set(KINDS)
    assert len(KINDS) > 70 and PIL.__name__ in LIBRARIES


def read_set(folder: Path) -> None:
    load(DataConfig(path=str(folder / "foreign.parquet"), image_size=None), split="train")


def read_state_of(folder: Path) -> None:
    write_state(folder, DriverState(step=1, config=Config(), stream={}, counts={}, control={}))
    read_state(folder)


def read_saved(folder: Path) -> None:
    from datasets import Dataset

    if not (folder / "foreign").exists():
        Dataset.from_dict({"problem": ["what?"], "solution": ["ant"]}).save_to_disk(folder / "foreign")
    load(DataConfig(path=str(folder / "foreign")), split="train")


def verify_checkpoint(folder: Path) -> None:
    (folder / "foreign/step-000001").mkdir(parents=True, exist_ok=True)
    (folder / "foreign/step-000001/manifest.json").write_text("{}")
    CheckpointFolder(folder / "foreign", keep=1).verify(1)


def read_layout(folder: Path) -> None:
    (folder / "dtd/images").mkdir(parents=True, exist_ok=True)
    (folder / "dtd/split_zhou_DescribableTextures.json").write_text("{}")
    open_layout("dtd", folder)


def read_text(name: str, read: Callable[[Path], object]) -> Callable[[Path], None]:
    def write_and_read(folder: Path) -> None:
        (folder / name).write_text("{}\n")
        read(folder / name)

    return write_and_read


def report_on(folder: Path) -> None:
    (folder / "foreign").mkdir(exist_ok=True)
    (folder / "foreign/config.yaml").write_text("{}")
    write_report([folder / "foreign"])


def read_folder(folder: Path) -> None:
    load(DataConfig(path=str(folder / "photos"), image_size=None), split="train")


# What reads, what it calls, and the name that the error has.
DOORS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "footer": (read_set, "pyarrow.parquet.read_metadata", "foreign.parquet"),
    "row groups": (read_set, "pyarrow.parquet.ParquetFile", "foreign.parquet"),
    "pictures of a parquet": (read_set, "PIL.Image.open", "foreign.parquet"),
    "pictures of a folder": (read_folder, "PIL.Image.open", "photos"),
    "class folders": (read_folder, "common.data.places._folder", "photos"),
    "save_to_disk": (read_saved, "datasets.Dataset.load_from_disk", "foreign"),
    "CSV": (read_text("foreign.csv", open_source), "csv.reader", "foreign.csv"),
    "JSONL": (read_text("foreign.jsonl", open_source), "common.data.build.lists.parse_json", "foreign.jsonl"),
    "CoOp": (read_layout, "common.data.build.coop.TypeAdapter", "split_zhou_DescribableTextures.json"),
    "confusions": (
        read_text("foreign.json", lambda file: read_confusions(file, ("a", "b"))),
        "common.data.build.questions.parse_json",
        "foreign.json",
    ),
    "recipe": (
        read_text("foreign.yaml", lambda file: parse(["--config", str(file)])),
        "yaml.parser.Parser.peek_event",
        "",
    ),
    "recipe's bytes": (
        read_text("foreign.yaml", lambda file: parse(["--config", str(file)])),
        "common.config.recipe.read_bounded",
        "foreign.yaml",
    ),
    "state": (read_state_of, "learner.storage.checkpoint.parse_json", ""),
    "manifest": (verify_checkpoint, "learner.storage.manifest.parse_json", "step-000001"),
    "run folder": (report_on, "learner.report.data._flatten", "foreign"),
}


def replace(monkeypatch: pytest.MonkeyPatch, target: str, error: BaseException) -> None:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(target, fail)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    parquet(tmp_path / "foreign.parquet", [row()])
    image_folder(tmp_path / "photos", {"cat": 1, "dog": 1})
    return tmp_path


@pytest.mark.parametrize("door", DOORS)
def test_any_exception_of_any_library_is_one_error_that_names_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, door: str
) -> None:
    read, target, named = DOORS[door]
    for kind in (*KINDS, PANIC):
        if door.startswith("pictures") and kind is PANIC:
            continue  # no Rust reads pictures here
        if door == "manifest" and kind is PANIC:
            continue
        with monkeypatch.context() as patch:
            replace(patch, target, make(kind))
            with pytest.raises(RollcallError) as caught:
                read(folder)
        assert (named or folder.name) in str(caught.value), kind
        assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", ENDS)
def test_what_ends_the_process_passes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, door: str, kind: type[BaseException]
) -> None:
    read, target, _ = DOORS[door]
    replace(monkeypatch, target, kind())
    with pytest.raises(kind):
        read(folder)


def test_a_damaged_file_of_a_run_is_named_in_the_report(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is made all the same."""
    (folder / "run").mkdir()
    (folder / "run/config.yaml").write_text("name: x")
    for kind in KINDS:
        with monkeypatch.context() as patch:
            replace(patch, "learner.report.rows.parse_yaml", make(kind))
            page = write_report([folder / "run"])
        assert "<li>config.yaml: " in page.read_text(), kind
        page.unlink()
