"""Sets of the library `datasets`: a folder written by `save_to_disk`, or one of the hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config.foreign_text import parse_json
from common.data.table import (
    UNNAMED,
    Opener,
    Table,
    read_arrow_row,
    reading_data,
    refuse_foreign,
    refuse_twin_columns,
)
from common.errors import DataError, raise_as
from common.models.hub import require_hub

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


_SAVED = {"dataset_dict.json": "splits", "state.json": "_data_files"}  # the list in each file of save_to_disk
_REMEDY = "save the data set anew with save_to_disk"


def find_saved(place: Path) -> Path | None:
    """Return the file that shows that `save_to_disk` wrote a folder; None where it did not.

    A file of such a name without the list of `save_to_disk` shows it only beside `.arrow` files: a `state.json` of a
    trainer may lie among pictures.
    """
    for name, key in _SAVED.items():
        file = place / name
        if not file.is_file():
            continue
        if any(place.glob("*.arrow")) or any(place.glob("*/*.arrow")):
            return file
        with suppress(DataError):
            _read_list(file, key)
            return file
    return None


def saved_folder(place: Path) -> dict[str, Opener]:
    """Return the splits of a folder written by `save_to_disk`. Raises DataError when its files cannot be read."""
    from datasets import DatasetDict

    with reading_data(place, remedy=_REMEDY):
        for file in _confine(place):
            refuse_foreign(file, remedy=_REMEDY)
        index = place / "dataset_dict.json"
        if not index.is_file():
            return _openers(_load_split(place), str(place), place)
        splits = _read_list(index, "splits")
        return _openers(DatasetDict({split: _load_split(place / split) for split in splits}), str(place), place)


def _load_split(folder: Path) -> Dataset:
    """Load one split. One without rows may have no file, which `load_from_disk` does not expect."""
    from datasets import Dataset, DatasetInfo

    if _read_list(folder / "state.json", "_data_files"):
        return Dataset.load_from_disk(str(folder))
    features = DatasetInfo.from_directory(str(folder)).features or {}
    return Dataset.from_dict({name: [] for name in features})


def _read_list(file: Path, key: str) -> list[Any]:
    """Return the list `key` of a file of `save_to_disk`. Raises DataError where there is none."""
    with reading_data(file, remedy=_REMEDY):
        refuse_foreign(file, remedy=_REMEDY)
        held = parse_json(file.read_bytes())
    found = held.get(key) if isinstance(held, dict) else None
    if not isinstance(found, list):
        raise DataError(f"{file} is no file of save_to_disk", got=f"no list {key} in it", remedy=_REMEDY)
    return found


def _confine(place: Path) -> list[Path]:
    """Return the files of a saved data set.

    Raises DataError for one that names files outside its folder, itself or through links.
    """
    folders = [place] if (place / "state.json").is_file() else []
    if (place / "dataset_dict.json").is_file():
        folders += [place / split for split in _read_list(place / "dataset_dict.json", "splits")]
    named: list[Path] = []
    for folder in folders:
        named += [folder / "state.json", folder / "dataset_info.json"]
        if (folder / "state.json").is_file() and folder.resolve().is_relative_to(place.resolve()):
            named += [folder / entry["filename"] for entry in _read_list(folder / "state.json", "_data_files")]
    inside = (file.is_file() and file.resolve().is_relative_to(place.resolve()) for file in named)
    if outside := [file for file, found in zip(named, inside, strict=True) if not found]:
        raise DataError(
            f"{place} names files that are no files inside its folder",
            got=", ".join(map(str, outside[:5])),
            remedy="save the data set anew with save_to_disk (links may not leave its folder)",
        )
    return named


def _openers(found: Dataset | DatasetDict, name: str, root: Path) -> dict[str, Opener]:
    splits = found if isinstance(found, dict) else {UNNAMED: found}
    return {key: partial(_arrow, dataset, name, root) for key, dataset in splits.items()}


class _ArrowRows:
    """Rows of a split of `datasets`, in which nothing is decoded: pictures, sounds and films stay encoded."""

    def __init__(self, dataset: Dataset, name: str) -> None:
        self._name = name
        self._dataset = dataset.with_format("arrow")

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        with reading_data(f"row {index} of {self._name}"):
            return read_arrow_row(self._dataset[index], 0)

    def column(self, name: str) -> Iterator[Any]:
        """Yield the cells of one column; the others are not read."""
        with reading_data(f"column {name} of {self._name}"):
            for table in self._dataset.select_columns([name]).iter(1000):
                yield from table.column(0).to_pylist()


def _arrow(dataset: Dataset, name: str, root: Path, split: str) -> Table:
    """Make a table of a split of `datasets`."""
    shown = f"{name} ({split})"
    with reading_data(shown):
        refuse_twin_columns(shown, dataset.column_names)
        return Table(
            name=shown,
            split=split,
            columns=tuple(dataset.column_names),
            rows=_ArrowRows(dataset, shown),
            root=root,
        )


def hub_set(name: str) -> dict[str, Opener]:
    """Fetch a data set of the hub and return its splits. Raises DataError when that fails."""
    require_hub(f"data.path = {name}", error=DataError)
    from datasets import load_dataset
    from huggingface_hub.constants import HF_HOME

    remedy = "check data.path; private sets need a login; HF_HUB_OFFLINE=1 reads only the local cache"
    with raise_as(DataError, f"the hub gives no data set {name}", remedy=remedy):
        found = load_dataset(name, trust_remote_code=False)
    return _openers(found, name, Path(HF_HOME))
