"""The class list a question offers, read back from its text."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LIST = re.compile(r"\blist\s*\[(.+?)\]", re.DOTALL)


def candidates(problem: str) -> list[str] | None:
    """Labels of the question's own list, `… choose one from list [ a, b, c].`; None where it has no such list."""
    found = _LIST.search(problem)
    return [item.strip() for item in found[1].split(",")] if found else None


def with_candidates(question: str, labels: Iterable[str]) -> str:
    """The question followed by its class list, as CLS-RL words it."""
    return f"{question}\nPlease choose one from list [ {', '.join(labels)}]."
