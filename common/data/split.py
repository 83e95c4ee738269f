"""Which rows are held out where a data set has no held-out split of its own."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence


def hold_out(labels: Sequence[str], fraction: float) -> frozenset[int]:
    """Row numbers of a stratified share, the same on every machine and for every seed.

    About `fraction` of all rows, shared among labels by largest remainder. A label keeps at least one row to train on.
    """
    rows_by_label: dict[str, list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        rows_by_label[label].append(row)
    exact = {label: fraction * len(rows) for label, rows in sorted(rows_by_label.items())}
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
