"""Copies of a picture among those of a set that is being written: within a split, across splits, under two labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from common.data.build.collection import Picture
from common.errors import DataError

_NAMED = 3  # cases named in a line; the rest are counted


def check_copies(
    name: str, train: Sequence[Picture], test: Sequence[Picture], digests: Mapping[Picture, bytes], *, keep: bool
) -> tuple[list[str], list[str]]:
    """Return notes, and warnings: how many pictures of a split repeat others, and how many of test are in train.

    Args:
        digests: of every picture.
        keep: warn of a picture under two labels, where one of them would be trained on.

    Raises:
        DataError: there is one, and it is not to be kept.
    """
    parts = {"train": train, "test": test}
    groups: dict[bytes, dict[str, list[Picture]]] = defaultdict(lambda: {part: [] for part in parts})
    for part, pictures in parts.items():
        for picture in pictures:
            groups[digests[picture]][part].append(picture)
    copies = [group for group in groups.values() if sum(map(len, group.values())) > 1]

    notes = []
    for part, pictures in parts.items():
        if repeats := [group[part][1:] + group[part][:1] for group in copies if len(group[part]) > 1]:
            count = sum(len(group) - 1 for group in repeats)
            notes.append(f"{count} of {len(pictures)} pictures of {part} are copies of another: {_list(repeats)}")
    warnings = []
    if shared := [group["test"] + group["train"][:1] for group in copies if group["train"] and group["test"]]:
        count = sum(len(pictures) - 1 for pictures in shared)
        warnings.append(f"{count} of {len(test)} pictures of test are in train too: {_list(shared)}")
    warnings += _check_labels(name, copies, keep=keep)
    return notes, warnings


def _check_labels(name: str, copies: Sequence[Mapping[str, Sequence[Picture]]], *, keep: bool) -> list[str]:
    """Return a warning of pictures under two labels. Raises DataError as `check_copies` does."""
    two = [group for group in copies if len({one.label for pictures in group.values() for one in pictures}) > 1]
    if not two:
        return []
    said = "; ".join(
        " = ".join({one.label: f"{one.name} ({one.label})" for one in (*group["train"], *group["test"])}.values())
        for group in two[:_NAMED]
    ) + (f"; and {len(two) - _NAMED} more" if len(two) > _NAMED else "")
    if any(group["train"] for group in two) and not keep:
        raise DataError(
            f"{len(two)} of the pictures of {name} stand under two labels",
            got=said,
            remedy="remove the wrong ones, or pass --keep-two-labels and train with data.check_copies=false",
        )
    return [f"pictures that stand under two labels ({len(two)}): {said}"]


def _list(groups: Sequence[Sequence[Picture]]) -> str:
    lines = [" = ".join(picture.name for picture in (group[0], group[-1])) for group in groups[:_NAMED]]
    return "; ".join([*lines, *([f"and {len(groups) - _NAMED} more"] if len(groups) > _NAMED else [])])
