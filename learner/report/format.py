"""Format text and numbers for the report: short, printable, a dash where there is nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from common.errors import escape_unprintable
from learner.text import shorten
from learner.tracking.lines import format_event

LINE, TEXT = 90, 1500  # most characters of a name; of a completion or a question
KEYS = 300  # rows of a configuration before the rest is counted
NOTHING = "\N{EN DASH}"


class Lines(str):
    """Text whose line breaks are kept."""

    __slots__ = ()


def make_safe(value: Any) -> Any:
    """Return a value for the page without characters that could reorder, hide or break the text beside it.

    Markup comes from the template and the figures alone, and stays. jinja2 escapes the rest after this.
    """
    from markupsafe import Markup

    if isinstance(value, Markup):
        return value
    if isinstance(value, Lines):
        return "\n".join(map(escape_unprintable, value.split("\n")))
    return escape_unprintable(str(value))


def shorten_name(text: str) -> str:
    """Shorten a label, or the name of a run, set or key, to LINE characters."""
    return shorten(text, LINE)


def cut_lines(text: str) -> Lines:
    """Cut a completion or question to TEXT characters, and say how many are missing."""
    return Lines(text if len(text) <= TEXT else f"{text[:TEXT]}… and {len(text) - TEXT} more characters")


def format_value(value: Any) -> str:
    """Format a value of the configuration: text as it is, anything else as JSON."""
    return shorten(value if isinstance(value, str) else json.dumps(value, default=str), 200)


def format_fields(row: Mapping[str, Any]) -> str:
    """Format the fields of an event as the console does: `step=4 seconds=0.075`."""
    return shorten(format_event("", row).strip(), 300)


def format_number(number: float, pattern: str = "{:.3f}") -> str:
    """Format a number by a pattern, NaN as a dash."""
    return NOTHING if math.isnan(number) else pattern.format(number)
