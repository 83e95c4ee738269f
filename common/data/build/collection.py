"""Labelled pictures as they lie on disk, before any is drawn or opened."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.data.formats.split_names import TESTS, TRAIN, pick_split
from common.data.table import UNNAMED
from common.errors import DataError, clip, escape_unprintable


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A file and its label."""

    root: Path
    path: str  # below `root`
    label: str
    home: Path | None = None  # the file must lie inside it, every link followed; None: inside `root`

    @property
    def name(self) -> str:
        """The name for messages: train/cats/3.jpg."""
        return escape_unprintable(clip(os.path.join(self.root.name, self.path)))  # noqa: PTH118  # Path eats slashes


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """The labelled pictures of a source."""

    labels: tuple[str, ...]  # each once, in the order of their ids
    train: tuple[Picture, ...]
    test: tuple[Picture, ...]  # empty: the source has no test split
    notes: tuple[str, ...] = ()  # what was left out or merged, for the summary and the card


def collect(
    name: str, splits: Mapping[str, Sequence[Picture]], labels: Iterable[str], notes: Iterable[str] = ()
) -> Collection:
    """Return the train and test pictures of `splits`, in the order of their paths; a note names splits left out.

    Raises DataError without a split to train on.
    """
    filled = [split for split, pictures in splits.items() if pictures]
    train = pick_split(name, filled, TRAIN)
    if train is None and UNNAMED in filled:
        train = UNNAMED
    if train is None or (UNNAMED in filled and len(filled) > 1):
        raise DataError(
            f"{name} has no split to train on",
            got="splits: " + (", ".join(sorted(split or "without a name" for split in filled)) or "none"),
            remedy=f"name one of them {TRAIN}, or none at all",
        )
    tests = (pick_split(name, filled, test) for test in TESTS)
    test = next((split for split in tests if split is not None), None)
    left = [
        f"split {split} is left out: {len(splits[split])} pictures" for split in filled if split not in (train, test)
    ]
    kept = {split: _merge_repeats(splits[split]) for split in (train, test) if split is not None}
    merged = []
    for split, pictures in kept.items():
        if again := len(splits[split]) - len(pictures):
            merged.append(
                f"{again} of {len(splits[split])} entries of split {split or TRAIN} name a picture again: merged"
            )
    return Collection(
        labels=tuple(labels),
        train=_in_order(kept[train]),
        test=_in_order(kept[test]) if test is not None else (),
        notes=(*notes, *left, *merged),
    )


def _merge_repeats(pictures: Iterable[Picture]) -> list[Picture]:
    """Return each file and label once."""
    return list({(one.root, os.path.normpath(one.path), one.label): one for one in pictures}.values())


def _in_order(pictures: Iterable[Picture]) -> tuple[Picture, ...]:
    return tuple(sorted(pictures, key=lambda picture: (picture.label, picture.path)))
