"""Every sentence of the page follows the configuration: what a method does not do is not spoken of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest

from common.config.schema import Config
from tests.helpers.made_run import made_run
from tests.learner.report.test_report import Page, page

pytestmark = pytest.mark.slow  # each makes a model or draws a page

NOTHING = "\N{EN DASH}"  # in the cell of a measure that a run does not have
OF_SAMPLES = (
    "Zero-std groups",
    "Log-prob gap, engine to learner",
    "Histogram of log-prob gaps",
    "advantage",
    "when it was sampled",
    "Lowest reward",
    "Most divided",
    "Highest reward",
    "3.0e-06 at most",
)
OF_CANDIDATES = (
    "Every candidate of a row, with the reward it earns. No engine sampled them.",
    "10 given answers",
    "Listed mass",
)
OF_LABELS = ("The right answer of a row, which the run learns. No engine sampled it.", "1 given answer")
NONE_SAMPLED = ("nothing was sampled", "expected, mean of a step", "640 given answers/s")
EVERYTHING = {*OF_SAMPLES, *OF_CANDIDATES, *OF_LABELS, *NONE_SAMPLED, "KL to the reference"}
EVERYTHING |= {"640 completions/s", "640 completions and given answers/s"}
EVERYTHING |= {"GRPO", "exact gradient", "SFT (supervised)"}
SAID: Mapping[str, tuple[Mapping[str, Any], set[str]]] = {
    "grpo": ({"method": "grpo"}, {"GRPO", "KL to the reference", "640 completions/s", *OF_SAMPLES}),
    "grpo without KL": ({"method": "grpo", "learner": {"beta": 0.0}}, {"GRPO", "640 completions/s", *OF_SAMPLES}),
    "exact": ({"method": "exact"}, {"exact gradient", "KL to the reference", *OF_CANDIDATES, *NONE_SAMPLED}),
    "exact beside samples": (
        {"method": "exact", "exact": {"sampled_share": 0.25}},
        {"exact gradient", "KL to the reference", "640 completions and given answers/s", *OF_CANDIDATES, *OF_SAMPLES}
        - {"Most divided"},
    ),
    "sft": ({"method": "sft", "learner": {"beta": 0.0}}, {"SFT (supervised)", *OF_LABELS, *NONE_SAMPLED}),
}


def test_every_method_is_here() -> None:
    assert {settings["method"] for settings, _ in SAID.values()} == set(
        get_args(Config.model_fields["method"].annotation)
    )


@pytest.mark.parametrize("case", SAID)
def test_the_page_says_what_the_method_does_and_nothing_else(tmp_path: Path, case: str) -> None:
    settings, said = SAID[case]
    text = read_text(page(made_run(tmp_path / "run", settings=settings), drawn=True))
    assert {sentence for sentence in EVERYTHING if sentence in text} == said


def test_runs_of_two_methods_are_compared_by_what_both_have(tmp_path: Path) -> None:
    """Only the run that sampled has a gap: 3e-06 in one cell, a dash in the other; and each has a speed of its own."""
    grpo = made_run(tmp_path / "grpo", settings=SAID["grpo"][0])
    sft = made_run(tmp_path / "sft", settings=SAID["sft"][0])
    text = read_text(page(grpo, sft))
    assert "largest log-prob gap" in text and text.count("3.0e-06") == 1
    assert "completions/slargest log-prob gapgiven answers/s" in text  # the heads of the last three columns
    assert f"936403.0e-06{NOTHING}" in text and f"93{NOTHING}{NOTHING}640" in text  # after the seconds


def read_text(found: Page) -> str:
    """Return the text of a page in one line, without its style sheet and its configuration."""
    return " ".join(found.text.split("* { box-sizing")[1].split("Configuration")[0].split())
