"""A folder of images: the name of a sub-folder is the label of what lies in it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from common.data.table import SPLIT_NAMES, UNNAMED, Opener, Table, is_hidden
from common.errors import DataError
from common.labels.candidates import with_candidates


def class_folders(place: Path, question: str) -> dict[str, Opener]:
    """Return the splits of a folder of class folders, which may stand in folders named as splits.

    The question of every split lists every class.

    Raises DataError when there is no class with a file in it.
    """
    above = {
        folder.name: folder for folder in _sub_folders(place) if folder.name in SPLIT_NAMES and _sub_folders(folder)
    }
    splits = above or {UNNAMED: place}
    labels = sorted({folder.name for split in splits.values() for folder in _sub_folders(split) if _images(folder)})
    if not labels:
        raise DataError(
            f"{place} holds no data set",
            got=", ".join(sorted(entry.name for entry in place.iterdir())[:8]) or "an empty folder",
            remedy="give a folder of parquet files, one made by save_to_disk, or one of images in class folders",
        )
    problem = with_candidates(question, labels)
    return {name: partial(_open, folder, problem) for name, folder in splits.items()}


def _open(folder: Path, problem: str, split: str) -> Table:
    """List the pictures of one split; `problem` is the question of every row."""
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
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry, folder))


def _images(folder: Path) -> list[Path]:
    """Return every file, whatever its suffix: one that is no image is refused by name later."""
    return sorted(file for file in folder.rglob("*") if not file.is_dir() and not is_hidden(file, folder))
