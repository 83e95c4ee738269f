"""How rows and classes are divided: a held-out share of the rows, CoOp's base and new halves of the classes."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from common.errors import DataError


def hold_out(labels: Sequence[str], fraction: float) -> frozenset[int]:
    """Return the row numbers of a stratified share, the same on every machine and for every seed.

    They are about `fraction` of all rows, shared among labels by largest remainder: a quarter of 5 cats and 3 dogs is 1
    cat and 1 dog. A label keeps at least one row to train on.
    """
    rows_by_label: dict[str, list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        rows_by_label[label].append(row)
    exact = {label: fraction * len(rows) for label, rows in sorted(rows_by_label.items())}
    # Whole rows first; then a row more for the labels with the largest remainders.
    counts = {label: int(share) for label, share in exact.items()}
    left = round(fraction * len(labels)) - sum(counts.values())
    for label in sorted(exact, key=lambda name: counts[name] - exact[name])[:left]:
        counts[label] += 1

    return frozenset(
        row
        for label, rows in rows_by_label.items()
        for row in sorted(rows, key=_order)[: min(counts[label], len(rows) - 1)]
    )


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
