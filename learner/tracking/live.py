"""The live display: one panel of about twenty lines that fits terminals from 70 columns on."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Container, Mapping, Sequence
from itertools import pairwise
from typing import Any

from rich import box
from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from common.config.schema import Config
from common.errors import escape_unprintable
from common.types import ScoredGroup
from learner.evaluation.measures import HELD_OUT
from learner.text import format_clock
from learner.tracking.lines import (
    QUIET,
    Pace,
    count_troubles,
    format_bottleneck,
    format_evaluation,
    format_line,
    format_sample,
    name_gap,
)
from learner.tracking.records import STAGES, History, StepRecord, list_unmeasured_of

_COLOURS = dict(zip(STAGES, ("cyan", "yellow", "green", "magenta", "bright_black"), strict=True))
_EVENTS = 4
_WIDEST = 120


class LiveConsole:
    """Keeps the latest of everything, and draws it as a panel in `__rich_console__`."""

    def __init__(self, config: Config, console: RichConsole | None = None) -> None:
        self._steps, self._name = config.steps, escape_unprintable(config.name)
        self._unmeasured = list_unmeasured_of(config)
        self._console = console or RichConsole(highlight=False)
        self._live = Live(self, console=self._console, refresh_per_second=2, vertical_overflow="crop")
        self._events: deque[tuple[str, str]] = deque(maxlen=_EVENTS)
        self._history = History()
        self._record: StepRecord | None = None
        self._pace: Pace | None = None
        self._sample = self._folder = self._bottleneck = ""
        self._others: dict[str, float] = {}  # accuracy, by set

    def open(self, folder: str, history: History, *, first_step: int) -> None:
        self._folder, self._history = escape_unprintable(folder), history
        where = f", from step {first_step}" if first_step else ""
        self._console.print(Text(f"{self._name}: {self._steps} steps{where}"), soft_wrap=True)

    def phase(self, what: str, seconds: float) -> None:
        if not self._live.is_started:
            self._console.print(
                Text.assemble(("✓ ", "green"), escape_unprintable(what), (f" in {seconds:.1f} s", "dim"))
            )

    def step(self, record: StepRecord) -> None:
        self._record = record
        if self._pace is None:
            self._pace = Pace(record)
            self._live.start()
        self._live.refresh()

    def evaluation(self, step: int, lines: Mapping[str, Mapping[str, Any]]) -> None:
        self._others = {name: line["accuracy"] for name, line in lines.items() if name != HELD_OUT}
        if not self._live.is_started:
            self._console.print(Text.assemble(("✓ ", "green"), f"after {step} steps: {format_evaluation(lines)}"))

    def sample(self, group: ScoredGroup) -> None:
        self._sample = format_sample(group, _WIDEST)

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        if kind == "bottleneck":
            self._bottleneck = f"bottleneck: {format_bottleneck(fields)}"
        elif kind not in QUIET:
            self._events.append((time.strftime("%H:%M:%S"), format_line(kind, fields).removeprefix("event ")))

    def close(self, lines: Sequence[str]) -> None:
        self._live.stop()
        for line in lines:
            self._console.print(Text(escape_unprintable(line)), soft_wrap=True)

    def __rich_console__(self, console: RichConsole, options: ConsoleOptions) -> RenderResult:
        if self._record is None or self._pace is None:
            return
        width = min(options.max_width, _WIDEST)
        inner = width - 6
        parts: list[RenderableType] = [
            self._draw_progress(self._record, self._pace, inner),
            Text(),
            self._draw_curves(self._record, inner),
            Text(),
            _draw_numbers(self._record, self._history, inner, self._unmeasured),
            Text(),
            *_draw_timing(self._record, inner, self._bottleneck),
            Rule(style="bright_black"),
            *self._draw_events(inner),
        ]
        yield Panel(
            Padding(Group(*parts), (0, 1)),
            title=Text.assemble(" ", ("rollcall", "bold"), " · ", (self._name, "bold cyan"), " "),
            title_align="left",
            subtitle=_cut_line(Text(f" {self._folder} ", "dim"), inner - 4),
            subtitle_align="right",
            border_style="bright_black",
            box=box.ROUNDED,
            width=width,
        )

    def _draw_progress(self, record: StepRecord, pace: Pace, width: int) -> Table:
        done = record.step + 1
        bar = ProgressBar(total=self._steps, completed=done, complete_style="cyan", finished_style="green")
        spent, left = time.monotonic() - pace.started, pace.estimate_left(record, self._steps)
        row = Table.grid(padding=(0, 2, 0, 0))
        row.width = width
        row.add_column(no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True)
        row.add_row(
            Text.assemble("step ", (f"{done}", "bold"), (f"/{self._steps}", "dim")),
            bar,
            Text.assemble(format_clock(spent), ("  left ", "dim"), (format_clock(left), "bold")),
        )
        return row

    def _draw_curves(self, record: StepRecord, width: int) -> Group:
        history, space = self._history, max(8, width - 52)
        accuracies, best = list(history.accuracies.values()), history.best
        held_out = Text.assemble(("held-out  ", "dim"))
        if best is None or history.before is None or history.now is None:
            held_out.append("not evaluated".ljust(40), "dim")
        else:
            held_out.append(f"{history.before:.3f} → ").append(f"{history.now:.3f}", "bold green")
            held_out.append(f"  best {best[1]:.3f} after {best[0]}".ljust(27), "dim")
            held_out.append(draw_sparkline(accuracies, space, low=0.0, high=1.0), "green")
        reward = Text.assemble(("reward    ", "dim"), (f"{record.reward:.3f}", "bold cyan"))
        reward.append(f" ± {record.reward_std:.3f} in a group".ljust(35), "dim")
        reward.append(draw_sparkline(history.rewards, space), "cyan")
        lines = [_cut_line(held_out, width), _cut_line(reward, width)]
        if self._others:
            cells = "  ".join(f"{escape_unprintable(name)} {accuracy:.3f}" for name, accuracy in self._others.items())
            lines.insert(1, _cut_line(Text.assemble(("sets      ", "dim"), (cells, "green")), width))
        return Group(*lines)

    def _draw_events(self, width: int) -> list[Text]:
        lines = [Text.assemble((f"{when}  ", "dim"), what) for when, what in self._events]
        lines += [Text("no events yet" if not lines else "", "dim")] * (_EVENTS - len(lines))
        lines.append(Text(self._sample) if self._sample else Text("no group kept yet", "dim"))
        return [_cut_line(line, width) for line in lines]


def _draw_numbers(record: StepRecord, history: History, width: int, unmeasured: Container[str]) -> Table:
    """Draw up to thirteen numbers in four columns (three on a narrow screen).

    Args:
        unmeasured: columns of the record to leave out.
    """
    numbers = (
        ("zero-std", f"{record.zero_std_share:.0%}", "zero_std_share"),
        ("listed", f"{record.listed_mass:.3f}", "listed_mass"),
        ("KL", f"{record.kl:.4f}", "kl"),
        ("entropy", f"{record.entropy:.3f}", "entropy"),
        ("grad norm", f"{record.grad_norm:.3g}", "grad_norm"),
        ("lr", f"{record.lr:.1e}", "lr"),
        (name_gap(record), f"{record.youngest_gap:.0e}", "logprob_gap_max"),
        ("worst gap", f"{history.max_logprob_gap:.0e}", "logprob_gap_max"),
        ("tokens", f"{record.completion_length:.1f}", "completion_length"),
        ("truncated", f"{record.truncated_share:.0%}", "truncated_share"),
        ("per second", f"{record.completions_per_second:.0f}", "completions_per_second"),
        ("epoch", f"{record.epoch:.2f}", "epoch"),
        ("weights", f"v{record.weights_version}", "weights_version"),
    )
    cells = {name: shown for name, shown, column in numbers if column not in unmeasured}
    cells |= {name.split("_")[-1]: str(count) for name, count in count_troubles(record).items()}
    columns = 4 if width >= 70 else 3
    table = Table.grid(expand=False)
    table.width = width
    for _ in range(columns):
        table.add_column(ratio=1, no_wrap=True)
    pieces = [_draw_cell(name, value, alarm=_is_alarming(name, value)) for name, value in cells.items()]
    for start in range(0, len(pieces), columns):
        table.add_row(*pieces[start : start + columns])
    return table


def _draw_cell(name: str, value: str, *, alarm: bool) -> Text:
    return Text.assemble((f"{name:<10} ", "dim"), (value, "bold red" if alarm else ""))


def _is_alarming(name: str, value: str) -> bool:
    return "nan" in value or "inf" in value or name in ("dropped", "failures", "restarts")


def _draw_timing(record: StepRecord, width: int, bottleneck: str) -> list[Text]:
    """Draw the step's seconds as a bar by stage, with its legend, and the bottleneck once it is known."""
    seconds = record.seconds
    total = sum(seconds.values()) or 1.0
    bar, legend, drawn, ends = Text(), Text(), 0, 0.0
    for stage in STAGES:
        ends += seconds[stage] / total * width
        bar.append("█" * (round(ends) - drawn), _COLOURS[stage])
        drawn = round(ends)
        legend.append("■ ", _COLOURS[stage]).append(f"{stage} ").append(f"{record.shares[stage]:.0%} ", "dim")
    lines = [bar, _cut_line(legend.append(f"of {record.step_seconds:.2f} s"), width)]
    return [*lines, Text(bottleneck, "dim")] if bottleneck else lines


def _cut_line(text: Text, width: int) -> Text:
    """Cut a text to one line of `width` columns, with an ellipsis."""
    text.truncate(width, overflow="ellipsis")
    text.no_wrap = True
    return text


def draw_sparkline(values: Sequence[float], width: int, *, low: float | None = None, high: float | None = None) -> str:
    """Return the values as bars of one character, `▁▅█`, averaged down to at most `width`; NaN is a gap."""
    blocks = "▁▂▃▄▅▆▇█"
    count = min(width, len(values))
    edges = [round(index * len(values) / count) for index in range(count + 1)] if count else [0]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    known = [mean for mean in means if math.isfinite(mean)]
    floor = min(known, default=0.0) if low is None else low
    span = (max(known, default=1.0) if high is None else high) - floor

    def block(mean: float) -> str:
        if not math.isfinite(mean):
            return " "
        share = (mean - floor) / span if span > 0 else 0.5
        return blocks[min(7, max(0, int(share * 8)))]

    return "".join(map(block, means))
