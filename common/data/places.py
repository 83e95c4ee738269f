"""Where data may lie: each format answers with its splits by name, opened only when asked for."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.candidates import with_candidates
from common.data import digits
from common.data.table import Table
from common.errors import DataError
from common.hub import unreachable

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

Opener = Callable[[str], Table]  # takes the name the split goes by in row ids
UNNAMED = ""  # the only split of a place that does not name its splits

_SPLIT_WORDS = {
    "train",
    "training",
    "test",
    "testing",
    "validation",
    "valid",
    "val",
    "dev",
    "eval",
}
_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}.*")
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def find_splits(path: str, question: str) -> dict[str, Opener]:
    """Openers by split name, of whatever `path` is: see `DataConfig.path`.

    Raises DataError when nothing readable is there, within seconds when the hub cannot be reached.
    """
    if path == digits.NAME:
        return {"train": digits.digits, "test": digits.digits}
    place = Path(path).expanduser()
    if place.is_file() and place.suffix == ".parquet":
        return {UNNAMED: partial(_parquet, [place], place.parent)}
    if place.is_dir():
        return _folder(place, question)
    if place.exists() or not _HUB_ID.fullmatch(path):
        raise DataError(
            f"data.path = {path} is no data set",
            got="another kind of file" if place.exists() else "no such file or folder",
            remedy="give a hub name, a save_to_disk folder, parquet, an image folder or embedded:digits",
        )
    return _hub(path)


def _folder(place: Path, question: str) -> dict[str, Opener]:
    if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
        return _saved(place)
    if files := sorted(file for file in place.rglob("*.parquet") if not _hidden(file, place)):
        return _parquet_folder(place, files)
    return _image_folder(place, question)


def _saved(place: Path) -> dict[str, Opener]:
    from datasets import load_from_disk

    try:
        found = load_from_disk(str(place))
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(place, error) from error
    return _openers(found, str(place), place)


def _openers(found: Dataset | DatasetDict, name: str, root: Path) -> dict[str, Opener]:
    splits = found if isinstance(found, dict) else {UNNAMED: found}
    return {key: partial(_arrow, dataset, name, root) for key, dataset in splits.items()}


def _arrow(dataset: Dataset, name: str, root: Path, split: str) -> Table:
    from datasets import Image

    if isinstance(dataset.features.get("image"), Image):
        dataset = dataset.cast_column("image", Image(decode=False))
    return Table(
        name=f"{name} ({split})",
        split=split,
        columns=tuple(dataset.column_names),
        rows=dataset.with_format(None),
        root=root,
    )


def _parquet_folder(place: Path, files: list[Path]) -> dict[str, Opener]:
    by_split: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        by_split[_split_of(file.relative_to(place))].append(file)
    if UNNAMED in by_split and len(by_split) > 1:
        raise DataError(
            f"{place} mixes parquet files with and without the name of a split",
            got=", ".join(file.name for file in by_split[UNNAMED][:5]),
            remedy="name them train-00000-of-00001.parquet and so on, or set data.path to one file",
        )
    return {name: partial(_parquet, group, place) for name, group in by_split.items()}


def _split_of(file: Path) -> str:
    """`data/base_test-00000-of-00001.parquet` -> base_test, `test/7.parquet` -> test, `part-1.parquet` -> unnamed."""
    if shard := _SHARD.fullmatch(file.stem):
        return shard[1]
    words = re.split(r"[\W_\d]+", str(file.with_suffix("")))
    return next((word for word in words if word in _SPLIT_WORDS), UNNAMED)


class _ParquetRows:
    def __init__(self, files: list[Path]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._table = pa.concat_tables([pq.read_table(file, partitioning=None) for file in files])
        self.columns = tuple(self._table.column_names)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        row: dict[str, Any] = self._table.slice(index, 1).to_pylist()[0]
        return row


def _parquet(files: list[Path], root: Path, split: str) -> Table:
    try:
        rows = _ParquetRows(files)
    except (OSError, ValueError) as error:
        raise _unreadable(files[0] if len(files) == 1 else root, error) from error
    return Table(
        name=f"{files[0] if len(files) == 1 else root} ({split})",
        split=split,
        columns=rows.columns,
        rows=rows,
        root=root,
    )


def _image_folder(place: Path, question: str) -> dict[str, Opener]:
    """Classes are sub-folders, below a level of splits if the folder has one. Every class is offered in every split."""
    above = {
        folder.name: folder for folder in _sub_folders(place) if folder.name in _SPLIT_WORDS and _sub_folders(folder)
    }
    splits = above or {UNNAMED: place}
    labels = sorted({folder.name for split in splits.values() for folder in _sub_folders(split) if _images(folder)})
    if not labels:
        raise DataError(
            f"{place} holds no data set",
            got=", ".join(sorted(entry.name for entry in place.iterdir())[:8]) or "an empty folder",
            remedy="give a folder of parquet files, one made by save_to_disk, or one with a sub-folder of images a class",
        )
    problem = with_candidates(question, labels)
    return {name: partial(_class_folders, folder, problem) for name, folder in splits.items()}


def _class_folders(folder: Path, problem: str, split: str) -> Table:
    rows = [
        {"problem": problem, "image": image, "solution": label.name}
        for label in _sub_folders(folder)
        for image in _images(label)
    ]
    return Table(
        name=f"{folder} ({split})",
        split=split,
        columns=("problem", "image", "solution"),
        rows=rows,
        root=folder,
    )


def _sub_folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not _hidden(entry, folder))


def _images(folder: Path) -> list[Path]:
    """Every file, whatever its suffix: one that is no image is refused by name later, not passed over."""
    return sorted(file for file in folder.rglob("*") if not file.is_dir() and not _hidden(file, folder))


def _hidden(file: Path, below: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(below).parts)


def _hub(name: str) -> dict[str, Opener]:
    if reason := unreachable():
        raise DataError(
            f"data.path = {name} is no local path and the hub cannot be reached",
            got=reason,
            remedy="check the path or the network; with a copy in the local cache set HF_HUB_OFFLINE=1",
        )
    from datasets import load_dataset
    from huggingface_hub.constants import HF_HOME

    try:
        found = load_dataset(name)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(
            f"the hub gives no data set {name}",
            got=f"{type(error).__name__}: {error}",
            remedy="check data.path; private sets need a login; HF_HUB_OFFLINE=1 reads only the local cache",
        ) from error
    return _openers(found, name, Path(HF_HOME))


def _unreadable(place: Path, error: Exception) -> DataError:
    return DataError(
        f"{place} cannot be read",
        got=f"{type(error).__name__}: {error}",
        remedy="write the data set anew",
    )
