"""Every key says what it does, in short sentences, and the page of all keys is what the docstrings say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from common.config.reference import make_page
from common.config.schema import Config, flatten
from common.config.settings import describe, keys, list_sections

PAGE = Path(__file__).parents[3] / "deploy/configuration.md"


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.;:])\s", text)


@pytest.mark.parametrize("key", keys())
def test_every_key_is_described_in_short_sentences(key: str) -> None:
    text = describe(keys()[key])
    assert text.endswith("."), f"{key} has no docstring in common/config/sections.py"
    assert [one for one in sentences(text) if len(one.split()) > 20] == []


def test_every_section_is_described() -> None:
    assert [section.name for section in list_sections() if not section.about.endswith(".")] == []


def test_the_page_is_what_the_docstrings_say() -> None:
    """Else run `python -m common.config.reference > deploy/configuration.md`."""
    assert PAGE.read_text() == make_page()
    assert set(re.findall(r"^\| `([\w.]+)`", PAGE.read_text(), re.MULTILINE)) == flatten(Config()).keys()
