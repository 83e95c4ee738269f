"""Format words and numbers for people: on a console, in a report, in an error."""

from __future__ import annotations

from common.errors import escape_unprintable


def shorten(text: str, limit: int) -> str:
    """Make text printable, and cut it to `limit` characters with `…` at the end."""
    text = escape_unprintable(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def format_clock(seconds: float) -> str:
    """Format seconds as a clock does: 93 -> `1:33`, 7384 -> `2:03:04`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
