"""How rows and classes are divided: a held-out share of the rows, CoOp's base and new halves of the classes."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

from common.errors import DataError


def hold_out(labels: Sequence[str], fraction: float, pictures: Sequence[bytes] = ()) -> frozenset[int]:
    """Return the row numbers of a stratified share, the same on every machine and for every seed.

    They are about `fraction` of all rows, shared among labels by largest remainder: a quarter of 5 cats and 3 dogs is 1
    cat and 1 dog. A label keeps at least one row to train on.

    Args:
        pictures: digest of each row's picture, empty without one. Rows of one picture stay on one side: they count as
            their first row. Where no two rows share a picture it changes nothing.
    """
    copies = _find_copies(pictures)
    own = [row for row in range(len(labels)) if row not in copies]
    held_out = _draw(own, labels, fraction)
    held_out |= {row for row, first in copies.items() if first in held_out}
    return frozenset(held_out - _lacking(held_out, labels, copies))


def _draw(rows: Sequence[int], labels: Sequence[str], fraction: float) -> set[int]:
    """Return the share of these rows, each with a label of `labels`."""
    rows_by_label: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        rows_by_label[labels[row]].append(row)
    exact = {label: fraction * len(found) for label, found in sorted(rows_by_label.items())}
    # Whole rows first; then a row more for the labels with the largest remainders.
    counts = {label: int(share) for label, share in exact.items()}
    left = round(fraction * len(rows)) - sum(counts.values())
    for label in sorted(exact, key=lambda name: counts[name] - exact[name])[:left]:
        counts[label] += 1

    return {
        row
        for label, found in rows_by_label.items()
        for row in sorted(found, key=_order)[: min(counts[label], len(found) - 1)]
    }


def _find_copies(pictures: Sequence[bytes]) -> dict[int, int]:
    """Return the first row of the same picture, by row; rows that are the first of theirs are left out."""
    first: dict[bytes, int] = {}
    seen = {row: first.setdefault(picture, row) for row, picture in enumerate(pictures) if picture}
    return {row: earlier for row, earlier in seen.items() if earlier != row}


def _lacking(held_out: set[int], labels: Sequence[str], copies: Mapping[int, int]) -> set[int]:
    """Return the held-out rows without which a label would have none to train on: those of one picture each."""
    trained = {label for row, label in enumerate(labels) if row not in held_out}
    back: set[int] = set()
    for row in sorted(held_out):
        if labels[row] not in trained:
            first = copies.get(row, row)
            again = {other for other in held_out if copies.get(other, other) == first}
            back |= again
            trained |= {labels[other] for other in again}
    return back


def _order(row: int) -> bytes:
    return hashlib.blake2b(str(row).encode(), digest_size=8).digest()


def base_and_new(labels: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the first half of the labels, rounded up, and the rest: 5 labels give 3 and 2.

    Source: Zhou et al. 2022, Conditional Prompt Learning for Vision-Language Models (arXiv:2203.05557), section 4.1.

    Args:
        labels: every label once, in the order of their ids; image folders and files without ids sort them.

    Raises:
        DataError: fewer than two labels, or one given twice.
    """
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise DataError(
            "base and new classes need two labels at least, each named once",
            got=", ".join(labels[:8]) or "no labels",
            remedy="give a data set of more classes",
        )
    half = -(-len(labels) // 2)
    return tuple(labels[:half]), tuple(labels[half:])
