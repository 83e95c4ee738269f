"""What the README shows, read back so that tests can run it."""

from __future__ import annotations

import re
from pathlib import Path

TEXT = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """Every shell line, and every `make …` and `python -m …` inside the text, without comments."""
    whole = [block.replace("\\\n", " ") for block in blocks("sh")]  # a command may go on in the next line
    lines = [line.split("#")[0].strip() for block in whole for line in block.splitlines()]
    inline = re.findall(r"`((?:make|\.venv/bin/python|ray job submit) [^`]+)`", TEXT)
    return [line for line in [*lines, *inline] if line]


def recipe() -> str:
    """The one a newcomer copies."""
    (found,) = blocks("yaml")
    return found
