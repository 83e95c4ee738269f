"""Text and numbers as a report shows them: short, printable, a dash where there is nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from learner.text import printable, shorten
from learner.tracking.lines import event_line

LINE, TEXT = 90, 1500  # characters of a name, of a completion or a question
KEYS = 300  # rows of a configuration before the rest is counted
NOTHING = "\N{EN DASH}"


class Lines(str):
    """Text whose line breaks are kept."""

    __slots__ = ()


def clean(value: Any) -> Any:
    """What is put into the page, without anything that could reorder, hide or break what stands beside it.

    Markup is the template's and the figures' alone, and stays; the rest is escaped after this.
    """
    from markupsafe import Markup

    if isinstance(value, Markup):
        return value
    if isinstance(value, Lines):
        return "\n".join(map(printable, value.split("\n")))
    return printable(str(value))


def name(text: str) -> str:
    """A label or the name of something."""
    return shorten(text, LINE)


def cut_lines(text: str) -> Lines:
    """A completion or question; what it lacks is counted."""
    return Lines(text if len(text) <= TEXT else f"{text[:TEXT]}… and {len(text) - TEXT} more characters")


def value(value: Any) -> str:
    """A value of a configuration."""
    return shorten(value if isinstance(value, str) else json.dumps(value, default=str), 200)


def fields(row: Mapping[str, Any]) -> str:
    """The fields of an event as the console shows them."""
    rounded = {key: f"{item:.4g}" if isinstance(item, float) else item for key, item in row.items()}
    return shorten(event_line("", rounded).strip(), 300)


def form(number: float, pattern: str = "{:.3f}") -> str:
    """The number in that pattern; a dash for NaN."""
    return NOTHING if math.isnan(number) else pattern.format(number)
