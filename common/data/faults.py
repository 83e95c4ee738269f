"""Rows that cannot be used, in one error that names them."""

from __future__ import annotations

from collections.abc import Sequence

from common.errors import DataError, clip

_NAMED = 5  # rows named in a message; the rest are counted
_LONGEST = 300  # characters of what is wrong with a row


class BadRowError(Exception):
    """One row and what is wrong with it."""

    def __init__(self, reason: str, *, remedy: str) -> None:
        self.reason = clip(reason, _LONGEST)
        super().__init__(self.reason)
        self.remedy = remedy


def refuse(name: str, rows: int, faults: Sequence[tuple[str, BadRowError]]) -> None:
    """Raise one DataError for the (row id, fault) pairs of a data set of so many rows; without any do nothing."""
    if not faults:
        return
    named = [f"{row_id}: {fault.reason}" for row_id, fault in faults[:_NAMED]]
    more = [f"and {len(faults) - _NAMED} more"] if len(faults) > _NAMED else []
    raise DataError(
        f"{len(faults)} of {rows} rows of {name} cannot be used",
        got="; ".join(named + more),
        remedy="; ".join(dict.fromkeys(fault.remedy for _, fault in faults)),
    )
