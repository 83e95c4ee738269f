"""Sources of pictures, image folders and lists of files, read as collections."""

from __future__ import annotations

import os
from pathlib import Path

from common.data.build.collection import Collection, Picture, collect
from common.data.build.lists import LISTS, Splits, read_list
from common.data.formats.arrow import find_saved
from common.data.formats.layout import read_layout
from common.data.formats.parquet_names import is_parquet
from common.data.formats.tree import Tree, classes, read_tree
from common.data.table import reading_data
from common.errors import DataError


def open_source(place: Path) -> Collection:
    """Read a folder with a sub-folder for each class, or a .csv, .tsv or .jsonl list of files. Labels are sorted.

    Raises DataError for anything else, and for lines of a list without a file name and a label.
    """
    with reading_data(place, remedy="check the path, and who may read what lies there"):
        tree = read_tree(place) if place.is_dir() else None
        if rows := _find_rows(place, tree):
            raise DataError(
                f"{place} is a data set already, not a source of pictures",
                got=str(rows),
                remedy=f"train on it with data.path={place}; to build from class folders, move such files out of it",
            )
        if tree:
            splits, notes = folder_splits(tree)
        elif place.is_file() and place.suffix.casefold() in LISTS:
            splits, notes = read_list(place)
        else:
            raise DataError(
                f"{place} is no source of pictures",
                got="another kind of file" if os.path.lexists(place) else "no such file or folder",
                remedy="give a folder of class folders, a .csv or a .jsonl; unpack archives; for CoOp's sets their "
                "root, and --layout",
            )
    labels = sorted({picture.label for pictures in splits.values() for picture in pictures})
    return collect(str(place), splits, labels, notes)


def folder_splits(tree: Tree) -> tuple[Splits, list[str]]:
    """Return the pictures of a folder of class folders by split, labelled by their folders, and notes."""
    layout = read_layout(tree)
    splits: Splits = {
        name: [
            Picture(root=split.path, path=str(file.relative_to(split.path)), label=label, home=tree.top.path)
            for label, folder in classes(split).items()
            for file in folder.all_files()
        ]
        for name, split in layout.splits.items()
    }
    return splits, list(layout.notes)


def _find_rows(place: Path, tree: Tree | None) -> Path | None:
    """Return a file that shows that a place holds rows, as `data.path` takes them."""
    if tree is None:
        return place if is_parquet(place) else None
    return find_saved(place) or next(filter(Path.is_file, tree.top.all_files(".parquet")), None)
