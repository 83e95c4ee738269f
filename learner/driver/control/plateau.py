"""Whether the measure of a run has stopped rising, so that the run may end before its last step."""

from __future__ import annotations

from collections.abc import Sequence


def find_plateau(values: Sequence[float], *, stop_after: int, stop_delta: float) -> float | None:
    """Return the best value if the last `stop_after` ones brought none that is better, else None.

    A value is better if it is more than `stop_delta` above the best before it. Of 0.50, 0.80, 0.81, 0.79 the last two
    bring nothing better than 0.80, where `stop_delta` is 0.02. Small gains add up: of 0.80, 0.81, 0.83 the last is
    better than 0.80.
    """
    best, since = float("-inf"), 0
    for value in values:
        if value > best + stop_delta:
            best, since = value, 0
        else:
            since += 1
    return best if since >= stop_after else None
