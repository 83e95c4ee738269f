"""Draws of a few pictures of every class, their order, and a test split where there is none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from common.data.build.collection import Collection, Picture
from common.data.draws import generator
from common.data.split import hold_out


def few_shot(pictures: Iterable[Picture], shots: int, seed: int) -> tuple[list[Picture], list[str]]:
    """Draw `shots` pictures of each label, or all where it has fewer; a note counts such labels."""
    by_label: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        by_label[picture.label].append(picture)

    drawn: list[Picture] = []
    for label, found in by_label.items():
        rows = generator("shots", seed, label).permutation(len(found))[:shots]
        drawn += [found[row] for row in sorted(rows.tolist())]

    few = [f"{label} ({len(found)})" for label, found in by_label.items() if len(found) < shots]
    more = " and more" if len(few) > 3 else ""
    return drawn, [f"{len(few)} classes have fewer than {shots} pictures: {', '.join(few[:3])}{more}"] if few else []


def shuffle(pictures: Sequence[Picture], seed: int, split: str) -> list[Picture]:
    """Return the pictures in a random order, so that the first rows of a split are of all classes."""
    return [pictures[row] for row in generator("order", seed, split).permutation(len(pictures)).tolist()]


def train_and_test(
    collection: Collection, test_fraction: float, look: Callable[[Sequence[Picture]], Sequence[bytes]]
) -> tuple[list[Picture], list[Picture]]:
    """Return the train and test pictures; without a test split, a stratified share of the pictures becomes one.

    Args:
        look: returns the digests of pictures: copies of one stay on one side.
    """
    if collection.test or not test_fraction:
        return list(collection.train), list(collection.test)
    labels = [picture.label for picture in collection.train]
    held_out = hold_out(labels, test_fraction, look(collection.train))
    train = [picture for row, picture in enumerate(collection.train) if row not in held_out]
    return train, [picture for row, picture in enumerate(collection.train) if row in held_out]
