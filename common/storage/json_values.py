"""Values as JSON can hold them."""

from __future__ import annotations

from typing import Any


def replace_nonfinite(value: Any) -> Any:
    """Return the value with None in place of every NaN and infinity: (1.0, nan) is [1.0, None]."""
    if isinstance(value, dict):
        return {key: replace_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_nonfinite(item) for item in value]
    return None if isinstance(value, float) and not -float("inf") < value < float("inf") else value
