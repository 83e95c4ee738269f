"""The places where data may lie: each format gives its splits by name, and opens one only when it is read."""

from __future__ import annotations

import os
import re
from pathlib import Path

from common.data.formats import digits
from common.data.formats.arrow import find_saved, hub_set, saved_folder
from common.data.formats.class_folders import class_folders
from common.data.formats.parquet import parquet_file, parquet_folder
from common.data.formats.parquet_names import is_parquet
from common.data.formats.tree import read_tree
from common.data.table import Opener, reading_data
from common.errors import DataError

_SPLIT = re.compile(r"[\w.-]+")
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def find_splits(path: str, question: str) -> dict[str, Opener]:
    """Return openers by split name for whatever `path` is: see `DataConfig.path`.

    Raises DataError when nothing readable is there, within seconds when the hub cannot be reached.
    """
    if not path.strip():
        raise DataError(
            f"{path!r} is no path: it is empty",
            got=f"data.path = {path!r}",
            remedy="name a data set; a split alone, as in @test, is one of data.path",
        )
    if path == digits.NAME:
        return dict.fromkeys(digits.OFFERED, digits.digits)
    with reading_data(f"data.path = {path}", remedy="check the path, and who may read what lies there"):
        place = Path(path).expanduser().absolute()
        if is_parquet(place):
            return parquet_file(place)
        if place.is_file() and place.suffix.casefold() in (".csv", ".tsv", ".jsonl"):
            raise DataError(
                f"data.path = {path} is a list of files, no data set",
                got=f"a {place.suffix.casefold()} file",
                remedy=f"run `python -m common.data.build {path} --shots all --out FOLDER` and give data.path=FOLDER",
            )
        if place.is_dir():
            return _folder(place, question)
        if os.path.lexists(place) or not _HUB_ID.fullmatch(path):
            raise DataError(
                f"data.path = {path} is no data set",
                got="another kind of file" if os.path.lexists(place) else "no such file or folder",
                remedy="give a hub name, a save_to_disk folder, parquet, an image folder or embedded:digits; "
                "unpack archives",
            )
    return hub_set(path)


def split_place(text: str) -> tuple[str, str | None]:
    """Return path and split of `PATH[@SPLIT]`; the split is None where none is named, the path "" in `@SPLIT`.

    `sets/cars@test` is ("sets/cars", "test"), `odd@home/cars` names no split, since a split has no slash in it. A file
    or folder that lies there under the whole text is meant, whatever its name: `set@2` is ("set@2", None).
    """
    path, at, split = text.rpartition("@")
    if not at or not _SPLIT.fullmatch(split):
        return text, None
    with reading_data(text, remedy="check the path"):
        whole = Path(text).expanduser().exists()
    return (text, None) if whole else (path, split)


def _folder(place: Path, question: str) -> dict[str, Opener]:
    if find_saved(place):
        return saved_folder(place)
    tree = read_tree(place)
    return parquet_folder(tree) or class_folders(tree, question)
