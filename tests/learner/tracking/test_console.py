"""What is shown fits its screen, and nothing a model says can draw on it."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console as RichConsole

from common.config.schema import Config
from common.errors import escape_unprintable
from learner.text import format_clock
from learner.tracking.console import LineConsole, open_console
from learner.tracking.lines import format_event, format_sample
from learner.tracking.live import LiveConsole, draw_sparkline
from learner.tracking.records import History
from tests.helpers.fake_run import record, scored

CONFIG = Config(steps=250, name="digits")


def test_without_a_terminal_there_are_lines() -> None:
    assert isinstance(open_console(CONFIG), LineConsole)


def test_step_lines_are_aligned_and_fit() -> None:
    out = io.StringIO()
    console = LineConsole(CONFIG, out)
    for changes in ({}, {"kl": 0.1234, "grad_norm": 12.3, "entropy": 3.21, "reward": -0.5}):
        console.step(record(99, **changes))
    first, second = out.getvalue().splitlines()
    assert [at for at, sign in enumerate(first) if sign == "="] == [at for at, sign in enumerate(second) if sign == "="]
    assert first.startswith("step=100/250 reward=0.8") and len(first) <= 150
    console.step(record(99, engine_restarts=2, kl=math.nan))
    assert "engine_restarts=2" in out.getvalue() and "kl=nan" in out.getvalue()


HOSTILE = "\x1b[2J[red]seven[/red]\n\r\u200b\u202e"


def test_hostile_text_is_escaped() -> None:
    assert escape_unprintable(HOSTILE) == "\\x1b[2J[red]seven[/red]\\n\\r\\u200b\\u202e"
    assert escape_unprintable("Größe 七") == "Größe 七"
    assert format_sample(scored(("seven", "seven", "a\nb"))) == "sampled train/17 label seven: seven x2 · a\\nb x1"
    assert format_event("dropped", {"why": "\x1b]0;x\a"}) == "dropped why=\\x1b]0;x\\x07"


def test_an_event_is_plain_text() -> None:
    fields = {"version": None, "engines": ["engine-0", "engine-1"], "seconds": 0.07531, "step": 12345678}
    expected = "joined version=none engines=engine-0, engine-1 seconds=0.07531 step=12345678"
    assert format_event("joined", fields) == expected


def drawn(width: int, *, evaluated: bool = True, **changes: object) -> list[str]:
    out = io.StringIO()
    screen = RichConsole(file=out, width=width, height=40, force_terminal=True, color_system=None, legacy_windows=False)
    console = LiveConsole(CONFIG, screen)
    steps = 120
    history = History(accuracies={step: step / 250 for step in range(0, steps, 20)} if evaluated else {})
    console.open("runs/20260304-050607-digits", history, first_step=0)
    for step in range(steps):
        history.add_step(record(step).flat())
    console.sample(scored((HOSTILE, "seven")))
    for number in range(6):
        console.event("engine_lost", {"engine": f"engine-{number}", "why": HOSTILE * 20})
    console.step(record(0))
    console.step(record(steps - 1, **changes))
    console.close(())
    out.seek(0)
    out.truncate()
    screen.print(console)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [70, 80, 120, 200])
def test_the_live_panel_fits(width: int) -> None:
    lines = drawn(width, engine_restarts=1, groups_dropped=0)
    inner = min(width, 120)
    assert {len(line.rstrip()) for line in lines} == {inner}
    assert len(lines) <= 22  # a terminal of 24 lines shows all of it
    assert all(line[0] + line.rstrip()[-1] in ("╭╮", "││", "╰╯") for line in lines)
    text = "\n".join(lines)
    assert "\x1b[2J" not in text and "\\x1b[2J[red]seven" in text
    assert "engine-5" in text and "engine-1" not in text  # the last four
    for name in ("held-out", "reward", "zero-std", "KL", "entropy", "grad norm", "lr", "gap", "restarts   1"):
        assert name in text
    assert width < 80 or "of 0.6" in text  # the legend is whole


def test_the_live_panel_shows_nan_and_no_evaluation() -> None:
    assert "nan" in "\n".join(drawn(80, kl=math.nan))
    assert "not evaluated" in "\n".join(drawn(80, evaluated=False))


@pytest.mark.parametrize(
    ("values", "width", "bars"),
    [
        ([], 5, ""),
        ([0.0, 0.5, 1.0], 5, "▁▅█"),
        ([1.0, 1.0], 5, "▅▅"),
        ([0.0, 0.0, 1.0, 1.0], 2, "▁█"),
        ([0.0, math.nan, 1.0], 5, "▁ █"),
    ],
)
def test_sparklines(values: list[float], width: int, bars: str) -> None:
    assert draw_sparkline(values, width) == bars


def test_clock() -> None:
    assert [format_clock(seconds) for seconds in (0, 93, 7384)] == ["0:00", "1:33", "2:03:04"]


@pytest.mark.parametrize(
    ("lags", "cell"),
    [({"0": 1e-6}, "gap=1e-06"), ({"0": 1e-6, "2": 0.5}, "gap=1e-06"), ({"1": 0.25, "2": 0.5}, "gap@1=2e-01")],
)
def test_the_gap_is_of_the_youngest_weights_that_sampled(lags: dict[str, float], cell: str) -> None:
    """The limit of a run is of lag 0: older weights are another policy."""
    out = io.StringIO()
    counts = dict.fromkeys(lags, (1, 2))
    gaps = {f"{lag}/gap_max": gap for lag, gap in lags.items()}
    LineConsole(CONFIG, out).step(record(3, gap_counts=counts, lag=gaps, logprob_gap_max=0.5))
    assert cell in out.getvalue().split()
