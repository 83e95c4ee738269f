"""Which folders of pictures are classes, which are splits, and which are neither.

A folder is a split where its name says so and it holds class folders: `Training/{cat,dog}` beside `Testing/{cat,dog}`.
Where pictures lie directly in it, as in `bus`, `car` and `train`, it is a class. What is neither gets a note.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.data.formats.layout_notes import LayoutNotes
from common.data.formats.split_names import (
    TRAIN,
    answers,
    find_split,
    read_split_name,
    refuse_twins,
    says_paired,
    says_pictures,
)
from common.data.formats.tree import Folder, Tree, classes
from common.data.table import UNNAMED, count_cases
from common.errors import DataError

_YEAR = re.compile(r"(19|20)\d\d")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A folder of pictures, read."""

    splits: Mapping[str, Folder]  # by the names of their folders; UNNAMED where there is none
    offered: tuple[str, ...]  # splits that only their own name finds, as holdout
    notes: tuple[str, ...]  # what was left out or merged

    @property
    def labels(self) -> list[str]:
        """The classes of all splits, sorted."""
        return sorted({label for split in self.splits.values() for label in classes(split)})

    @property
    def untrained(self) -> list[str]:
        """The classes that other splits have and the one to train on has not: test/bird."""
        train = find_split(self.splits, TRAIN)
        if len(train) != 1:
            return []
        known = classes(self.splits[train[0]])
        return [
            f"{name}/{label}" for name, split in self.splits.items() for label in classes(split) if label not in known
        ]


def read_layout(tree: Tree) -> Layout:
    """Find splits and classes in a folder.

    Raises DataError where there are none, where a folder may be either, or where links lead to folders outside.
    """
    tree.refuse_leaving()
    place = tree.top.path
    top = _enter(tree.top)
    folders = _find_splits(top, place)
    splits = {name: _enter_split(folder) for name, folder in folders.items()} or {UNNAMED: top}
    layout = Layout(
        splits=splits,
        offered=tuple(name for name in folders if not answers(name, folders)),
        notes=tuple(LayoutNotes(place, tree, top, folders, splits).lines()),
    )
    if not layout.labels:
        raise _nothing(place, top)
    for split in splits.values():
        _refuse_one_label(place, split)
        _refuse_classes_in_classes(place, split)
    if not folders:
        _refuse_same_folders(top)
    return layout


def _enter(top: Folder) -> Folder:
    """Return the folder that holds splits or classes: an archive often wraps them in others."""
    while len(top.filled) == 1:
        (only,) = top.filled
        if only.is_flat or not only.filled or (_is_sure(only) and not _has_splits(only)):
            break
        top = only
    return top


def _is_sure(folder: Folder) -> bool:
    read = read_split_name(folder.name)
    return read is not None and read.is_sure


def _has_splits(folder: Folder) -> bool:
    """Whether it holds one folder to train on and another to test on, which hold folders."""
    return _are_both([below.name for below in folder.filled if _is_sure(below) and below.filled])


def _are_both(names: Sequence[str]) -> bool:
    """Whether one of these names says the split to train on, and another does not."""
    return len({_says(name, TRAIN) for name in names}) == 2


def _enter_split(split: Folder) -> Folder:
    """Return the folder of a split that holds its classes: `train/images`, `seg_train/seg_train`."""
    while len(split.filled) == 1 and not split.is_flat:
        (only,) = split.filled
        if only.is_flat or not only.filled or not _is_no_class(only, split):
            break
        split = only
    return split


def _is_no_class(folder: Folder, split: Folder) -> bool:
    """Whether the only folder of a split has a name that no class has there: `images`, or that of the split again."""
    read = read_split_name(folder.name)
    return says_pictures(folder.name) or (read is not None and read == read_split_name(split.name))


def _holds_classes(split: Folder) -> bool:
    """Whether a folder holds class folders; `test/images/1.jpg` and `test/test/1.jpg` are pictures without any."""
    inside = _enter_split(split)
    return bool(inside.filled) and not (len(inside.filled) == 1 and _is_no_class(inside.filled[0], split))


def _find_splits(top: Folder, place: Path) -> dict[str, Folder]:
    """Return the folders that are splits; none where all are classes. Raises DataError where they may be either."""
    names = [folder.name for folder in top.filled]
    deep = {folder.name: folder for folder in top.filled if _holds_classes(folder)}
    sure = [folder.name for folder in top.filled if _is_sure(folder)]
    splits = [name for name in sure if name in deep]
    if not splits:
        splits = _loose_splits(deep)
    if not splits:
        _refuse_flat(place, top)
        return {}

    # Folders beside them belong to them where they hold the same classes.
    known = set().union(*(classes(_enter_split(deep[name])) for name in splits))
    aside = [name for name in names if name not in splits and name not in sure]
    fitting = [name for name in aside if name in deep and known & classes(_enter_split(deep[name])).keys()]
    alone = len(splits) == 1
    no_classes = len(known) == 1 or all(map(_YEAR.fullmatch, known))
    if alone and no_classes and len(aside) > 1 and fitting == aside:
        return {}  # bus/2019, car/2019, train/2019
    doubtful = aside and alone and (len(known) == 1 or (not fitting and not _says(splits[0], TRAIN)))
    if doubtful or known & set(aside):
        raise DataError(
            f"{place} holds class folders beside {', '.join(splits)}, which holds class folders itself",
            got=count_cases("folders", aside),
            remedy=f"move them into one folder {TRAIN}, or rename {splits[0]} if it is a class",
        )
    if flat := [name for name in sure if name not in deep and _says(name, TRAIN)]:
        raise _no_classes(place, top, flat)
    refuse_twins(str(place), splits)
    return {name: deep[name] for name in names if name in splits or name in fitting}


def _loose_splits(deep: Mapping[str, Folder]) -> list[str]:
    """Return the folders that say splits among other words, where they are a pair: cars_train and cars_test."""
    read = {name: found.split for name in deep if (found := read_split_name(name))}
    if TRAIN not in read.values() or len(set(read.values())) < 2:
        return []
    inside = [set(classes(_enter_split(deep[name]))) for name in read]
    alike = set.intersection(*inside) and not any(map(says_paired, read))  # en, te and tr are languages
    return list(read) if len(read) == len(deep) or alike else []


def _says(name: str, split: str) -> bool:
    read = read_split_name(name)
    return read is not None and read.split == split


def _refuse_flat(place: Path, top: Folder) -> None:
    """Raise DataError where folders with the names of splits, or one called images, hold pictures and no classes.

    `bus`, `car` and `train` may be classes.
    """
    names = [folder.name for folder in top.filled]
    read = {name: found for name in names if (found := read_split_name(name))}
    sure = [name for name in read if read[name].is_sure]
    by_others: dict[tuple[str, ...], list[str]] = {}
    for name, found in read.items():
        by_others.setdefault(found.others, []).append(name)
    pairs = [others for others, same in by_others.items() if _are_both(same)]  # cat_train and cat_test
    if (sure and len(sure) == len(names)) or _are_both(sure) or (pairs and len(read) == len(names)) or len(pairs) > 1:
        raise _no_classes(place, top, read)
    if len(names) == 1 and says_pictures(names[0]):
        raise _no_classes(place, top, names)


def _no_classes(place: Path, top: Folder, names: Iterable[str]) -> DataError:
    return DataError(
        f"{place} holds pictures without class folders",
        got=f"pictures without a folder of their class in {', '.join(names)}",
        remedy=f"put the pictures of each class into a folder of its name, as in train/cat{_name_list(top)}",
    )


def _nothing(place: Path, top: Folder) -> DataError:
    return DataError(
        f"{place} holds no data set",
        got=", ".join(sorted([*top.files, *(folder.name for folder in top.folders)])[:8]) or "an empty folder",
        remedy="give a folder of parquet files, one made by save_to_disk, or one of images in class folders"
        + _name_list(top),
    )


def _name_list(top: Folder) -> str:
    """Return what to do with a list of files and labels, where one lies there."""
    lists = [name for name in top.files if name.casefold().endswith((".csv", ".tsv", ".jsonl"))]
    return f", or make a set of the list: `python -m common.data.build {top.path / lists[0]}`" if lists else ""


def _refuse_classes_in_classes(place: Path, split: Folder) -> None:
    """Raise DataError for splits of each class, cat/train and cat/test, and for a copy of the set in itself."""
    known = classes(split).keys()
    for label, folder in classes(split).items():
        inside = [below.name for below in folder.filled]
        splits = [below for below in folder.filled if _is_sure(below)]
        if _are_both([below.name for below in splits]) and any(map(_holds_classes, splits)):
            what, remedy = "folders beside one that holds splits", f"let data.path, or what is built, be {folder.path}"
        elif _are_both([below.name for below in splits]):
            what, remedy = "splits inside its class folders", "turn them round, as in train/cat and test/cat"
        elif len(known & set(inside)) > 1:
            what, remedy = "its class folders once more in one of them", f"move {label} out of it"
        else:
            continue
        found = folder.path.relative_to(place)
        raise DataError(f"{place} has {what}", got=count_cases(f"folders in {found}", inside), remedy=remedy)


def _refuse_one_label(place: Path, split: Folder) -> None:
    """Raise DataError where class folders have one label but for white space, or none."""
    by_label: dict[str, list[Path]] = {}
    for folder in split.filled:
        by_label.setdefault(folder.name.strip(), []).append(folder.path)
    for label, paths in by_label.items():
        if len(paths) > 1 or not label:
            raise DataError(
                f"{place} has class folders whose names differ by white space alone"
                if label
                else f"{place} has a class folder whose name is white space",
                got=", ".join(repr(str(path.relative_to(place))) for path in paths),
                remedy="rename them, or join them in one",
            )


def _refuse_same_folders(top: Folder) -> None:
    """Raise DataError where each class folder holds the same folders and no picture: those may be the classes.

    `cat/{images,masks}` and `dog/{images,masks}` are classes, and so are `bus/{2019,2020}` and `car/{2019,2020}`.
    """
    labels = [_enter_split(folder) for folder in top.filled]  # fold1/images/{cat,dog}
    shared = set.intersection(*(set(classes(label)) for label in labels))
    doubtful = len(labels) > 1 and len(shared) > 1 and not any(label.is_flat for label in labels)
    if doubtful and not any(says_pictures(name) or _YEAR.fullmatch(name) for name in shared):
        raise DataError(
            f"{top.path}: every folder holds the same folders, so classes cannot be told from what they are in",
            got=f"{count_cases('the same folders', sorted(shared))}; in "
            + ", ".join(folder.name for folder in top.filled[:3]),
            remedy=f"let data.path, or what is built, be one of them; or rename them {TRAIN}, test and so on; "
            "or put the pictures of a class directly into its folder",
        )
