"""The page of objectives: it names every one there is, and the papers that the code is from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from common.config.objective import PRESETS
from common.config.sections import ExactConfig

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "learner/objective/README.md").read_text()
CODE = "\n".join(path.read_text() for room in ("common", "learner") for path in (ROOT / room).rglob("*.py"))


def test_every_preset_has_its_section_with_formula_and_paper() -> None:
    family = PAGE.split("## The GRPO family")[1].split("\n## ")[0]
    sections = re.split(r"^### ", family, flags=re.MULTILINE)[1:]
    named = [name for section in sections for name in section.splitlines()[0].split(", ")]
    assert sorted(named) == sorted(PRESETS)
    for section in sections:
        assert re.search(r"^    \S", section, re.MULTILINE), f"no formula: {section[:40]}"
        assert re.search(r"\[arXiv:(\d{4}\.\d{5})\]\(https://arxiv\.org/abs/\1\)", section), section[:40]


def test_the_papers_of_the_page_are_those_of_the_code() -> None:
    elsewhere = {
        "2503.14476",  # DAPO: clip and aggregation are keys
        "2602.05261",  # LUSPO: an aggregation
        "2510.18855",  # IcePop: the mask of `corrections`
    }
    cited = set(re.findall(r"arXiv:(\d{4}\.\d{5})", PAGE))
    assert cited - set(re.findall(r"arXiv:(\d{4}\.\d{5})", CODE)) <= elsewhere


@pytest.mark.parametrize("advantage", get_args(ExactConfig.model_fields["advantage"].annotation))
def test_every_exact_advantage_has_its_row(advantage: str) -> None:
    assert re.search(rf"^\| {advantage} \| .* \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("preset", PRESETS)
def test_numbers_of_the_page_are_those_of_the_preset(preset: str) -> None:
    """A bound that the preset sets stands in its section."""
    (section,) = [part for part in PAGE.split("\n### ") if preset in part.splitlines()[0].split(", ")]
    for key, value in PRESETS[preset].items():
        if isinstance(value, float) and value and preset != "cispo":  # whose bound is written 1 + clip_high = 5
            shown = f"{value:.0e}".replace("e-0", "e-") if value < 1e-3 else f"{value:g}"
            assert shown in section, f"{key} = {value}"
