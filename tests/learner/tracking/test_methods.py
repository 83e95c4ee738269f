"""Every sentence that a run prints or writes follows its configuration: what a method does not do is not spoken of.

The page is in `tests/learner/report/test_methods.py`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pytest
from rich.console import Console as RichConsole

from common.config.schema import Config
from learner.driver.preflight.model import describe_unshared
from learner.storage.run_folder import RunFolder
from learner.tracking.closing import format_closing
from learner.tracking.console import LineConsole
from learner.tracking.live import LiveConsole
from learner.tracking.model_card import make_model_card
from learner.tracking.records import History, Summary
from tests.helpers.fake_run import record, scored
from tests.learner.tracking.test_model_card import SUMMARY

# What each text may say, as patterns: of sampled completions, of candidates, of labels, of a KL.
SAMPLED = (
    "GRPO",
    r"\bgrpo\b",
    "4 sampled completions",
    "at most, engine to learner",
    "difference between engine and learner",
    "^sampled train/17",
    "seven x2",
)
SAMPLED_NUMBERS = ("zero-std", r"\bgap(=| +[0-9])", "truncated")
NONE_SAMPLED = ("nothing was sampled to learn from", "given answers/s")
LISTED = (r"\blisted[ =]+0\.97",)
ALL_SAMPLED = ("[0-9] completions/s",)
BOTH = ("completions and given answers/s",)
GIVEN = ("^given train/17 label seven: seven · nine · one$",)
CANDIDATES = ("exact gradient", r"\bexact\b", "every candidate of each", "once for each candidate")
LABELS = ("SFT", r"\bsft\b", "the label of each")
KL = ("KL weight 0.04", r"\b[Kk][Ll][ =]+[0-9]")
NO_KL = ("no KL to a reference",)
EVERYTHING = {
    *(
        *SAMPLED,
        *SAMPLED_NUMBERS,
        *NONE_SAMPLED,
        *ALL_SAMPLED,
        *BOTH,
        *GIVEN,
        *CANDIDATES,
        *LISTED,
        *LABELS,
        *KL,
        *NO_KL,
    ),
    *("16 prompts with", "12 prompts with", "4 prompts with", "reads every prompt 4 times"),
}
NO_BETA = {"learner": {"beta": 0.0}}
SAID: Mapping[str, tuple[Mapping[str, Any], set[str]]] = {
    "grpo": (
        {"method": "grpo"},
        {*SAMPLED, *SAMPLED_NUMBERS, *ALL_SAMPLED, *KL, "16 prompts with", "reads every prompt 4 times"},
    ),
    "grpo without KL": (
        {"method": "grpo", **NO_BETA},
        {*SAMPLED, *SAMPLED_NUMBERS, *ALL_SAMPLED, *NO_KL, "16 prompts with", "reads every prompt 4 times"},
    ),
    "exact": ({"method": "exact"}, {*GIVEN, *CANDIDATES, *LISTED, *NONE_SAMPLED, *KL, "16 prompts with"}),
    "exact beside samples": (
        {"method": "exact", "exact": {"sampled_share": 0.25}},
        {*SAMPLED, *SAMPLED_NUMBERS, *GIVEN, *CANDIDATES, *LISTED, *BOTH, "given answers/s", *KL}
        | {"12 prompts with", "4 prompts with"},
    ),
    "sft": ({"method": "sft", **NO_BETA}, {*GIVEN, *LABELS, *NONE_SAMPLED, *NO_KL, "16 prompts with"}),
}


def test_every_method_is_here() -> None:
    methods = {settings["method"] for settings, _ in SAID.values()}
    assert methods == set(get_args(Config.model_fields["method"].annotation))


@pytest.mark.parametrize("case", SAID)
def test_a_run_says_what_its_method_does_and_nothing_else(tmp_path: Path, case: str) -> None:
    settings, said = SAID[case]
    config = Config.model_validate({"steps": 250, "name": "digits", **settings})
    text = "\n".join(texts(config, tmp_path))
    assert {pattern for pattern in EVERYTHING if re.search(pattern, text, re.MULTILINE)} == said


def texts(config: Config, folder: Path) -> list[str]:
    """Every sentence of a run of `config` but those of its page."""
    summary = replace(SUMMARY, max_logprob_gap=3e-6 if config.sampled_prompts else 0.0)
    return [
        make_model_card(config, summary),
        *closing_lines(config, summary, folder),
        console_lines(config),
        live_lines(config),
        f"warning: nobody has tried it here{describe_unshared(config)}",
    ]


def closing_lines(config: Config, summary: Summary, folder: Path) -> list[str]:
    opened = RunFolder.open(config.model_copy(update={"run_dir": folder / "run"}), now=datetime.now(UTC))
    lines = format_closing(summary, opened, config, 0, None)
    opened.close()
    return lines


def console_lines(config: Config) -> str:
    out = io.StringIO()
    show(LineConsole(config, out), config)
    return out.getvalue()


def live_lines(config: Config) -> str:
    """The numbers of the panel; its last line, a group, is the console's too."""
    out = io.StringIO()
    screen = RichConsole(file=out, width=120, height=40, force_terminal=True, color_system=None, legacy_windows=False)
    console = LiveConsole(config, screen)
    console.open("run", History(), first_step=0)
    show(console, config)
    console.close(())
    out.seek(0)
    out.truncate()
    screen.print(console)
    return out.getvalue()


def show(console: LineConsole | LiveConsole, config: Config) -> None:
    """One step, and a group of each origin that the method learns from."""
    measured = {} if config.sampled_prompts else {"zero_std_share": 0.0, "logprob_gap_max": 0.0, "truncated_share": 0.0}
    console.step(record(0, **measured, kl=0.03 if config.learner.beta else 0.0))
    if config.sampled_prompts:
        console.sample(scored())
    if config.sampled_prompts < config.rollout.prompts_per_step:
        given = scored(("seven", "nine", "one"))
        console.sample(replace(given, group=replace(given.group, origin="given", engine_id=None)))
