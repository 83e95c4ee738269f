"""The configuration reference as a page: `python -m common.config.reference > deploy/configuration.md`."""

from __future__ import annotations

import sys

from common.command import run_command, say
from common.config.settings import Schema, default, describe, kind, list_sections

_HEAD = """\
# Configuration reference

Every key with what it takes, its default and what it does. `python -m common.config.reference` writes this page from
the docstrings in `common/config/sections.py`; `python -m learner.main --help` prints the same. These defaults hold
under a recipe of your own. Without `--config` the recipe `deploy/recipes/digits.yaml` changes some of them, or
`digits-gpu.yaml` where the GPU packages are installed.
"""


def make_page() -> str:
    """Return the page as Markdown: a table for each section of the configuration."""
    parts = [_HEAD]
    for section in list_sections():
        rows = [_make_row(key, schema) for key, schema in section.keys.items()]
        table = "\n".join(["| key | takes | default | what it does |", "|---|---|---|---|", *rows])
        parts.append(f"## {section.name or 'The run'}\n\n{section.about}\n\n{table}\n")
    return "\n".join(parts)


def _make_row(key: str, schema: Schema) -> str:
    cells = (f"`{key}`", kind(schema), f"`{default(schema)}`", describe(schema))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    with run_command() as command:
        say(make_page().removesuffix("\n"))
    sys.exit(command.exit_code)
