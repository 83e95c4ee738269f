"""What a run looks like on a screen: a live display on a terminal, one readable line a step everywhere else."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Protocol, TextIO

from common.config import Config
from common.types import ScoredGroup
from learner.measures import HELD_OUT
from learner.records import STAGES, History, StepRecord

_SHORT = dict(zip(STAGES, ("gen", "rew", "learn", "pub", "idle"), strict=True))
QUIET = frozenset(
    {"start", "weights_loaded", "probe", "evaluation", "phase"}
)  # events that are shown otherwise, or every step


class Console(Protocol):
    """Where a run is shown. Every text from model or data is made printable first."""

    def opened(self, folder: Path, history: History, *, first_step: int) -> None: ...
    def phase(self, what: str, seconds: float) -> None: ...
    def step(self, record: StepRecord) -> None: ...
    def evaluation(self, step: int, lines: Mapping[str, Mapping[str, Any]]) -> None: ...
    def sample(self, group: ScoredGroup) -> None: ...
    def event(self, kind: str, fields: Mapping[str, Any]) -> None: ...
    def closed(self, lines: Sequence[str]) -> None: ...


def open_console(config: Config) -> Console:
    """The live display if stdout is a terminal, else lines (`ray job submit`, CI, a pipe)."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an ASCII stdout shows ? rather than ending the run
    if sys.stdout.isatty():
        from learner.live import LiveConsole  # rich is only paid for where it is seen

        return LiveConsole(config)
    return LineConsole(config)


class LineConsole:
    """`key=value` cells in columns, under 150 characters a step; the rest is in metrics.jsonl."""

    def __init__(self, config: Config, out: TextIO | None = None) -> None:
        self._steps, self._name = config.steps, config.name
        self._out = out or sys.stdout
        self._pace: Pace | None = None

    def opened(self, folder: Path, history: History, *, first_step: int) -> None:
        where = f", from step {first_step}" if first_step else ""
        self._print(f"{self._name}: {self._steps} steps{where}")

    def phase(self, what: str, seconds: float) -> None:
        self._print(f"{what} in {seconds:.1f} s")

    def step(self, record: StepRecord) -> None:
        self._pace = self._pace or Pace(record)
        width = len(str(self._steps))
        cells = [
            f"step={record.step + 1:>{width}}/{self._steps}",
            f"reward={record.reward:<6.3f}",
            f"equal={record.all_equal_share:<4.2f}",
            f"kl={record.kl:<6.4f}",
            f"entropy={record.entropy:<5.3f}",
            f"grad={record.grad_norm:<5.2g}",
            f"gap={record.logprob_gap_max:<5.0e}",
            f"comp/s={record.completions_per_second:<4.0f}",
            f"s={record.step_seconds:<5.2f}",
            *(f"{_SHORT[stage]}={record.shares[stage]:<3.0%}" for stage in ("generate", "learn", "publish", "idle")),
            f"eta={clock(self._pace.left(record, self._steps))}",
        ]
        cells += [f"{name}={count}" for name, count in troubles(record).items()]
        self._print(" ".join(cells))

    def evaluation(self, step: int, lines: Mapping[str, Mapping[str, Any]]) -> None:
        self._print(f"evaluation after {step} steps: {measured(lines)}")

    def sample(self, group: ScoredGroup) -> None:
        self._print("sample " + sample_line(group))

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        if kind not in QUIET:
            self._print("event " + event_line(kind, fields))

    def closed(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._print(line)

    def _print(self, line: str) -> None:
        print(line, file=self._out, flush=True)


class Pace:
    """How fast this start goes, evaluations and checkpoints included."""

    def __init__(self, first: StepRecord) -> None:
        self.started = time.monotonic() - first.step_seconds
        self._first_step = first.step

    def left(self, record: StepRecord, steps: int) -> float:
        """Seconds to the end of the run at this pace."""
        each = (time.monotonic() - self.started) / (record.step + 1 - self._first_step)
        return each * (steps - record.step - 1)


def troubles(record: StepRecord) -> dict[str, int]:
    """Counts worth showing only when they are not 0."""
    counts = {
        "dropped": record.groups_dropped,
        "checkpoint_failures": record.checkpoint_failures,
        "engine_restarts": record.engine_restarts,
    }
    return {name: count for name, count in counts.items() if count}


def measured(lines: Mapping[str, Mapping[str, Any]]) -> str:
    """`accuracy 0.915, invalid 0.000, closed-set 0.920; new 0.700; H 0.794`, the held-out rows first."""
    own = lines.get(HELD_OUT, {})
    named = {"accuracy": "accuracy", "invalid_rate": "invalid", "closed_set": "closed-set"}
    cells = [f"{name} {own[key]:.3f}" for key, name in named.items() if own.get(key) is not None]
    others = [f"{printable(name)} {line['accuracy']:.3f}" for name, line in lines.items() if name != HELD_OUT]
    return "; ".join([", ".join(cells), *others] if cells else others)


def sample_line(group: ScoredGroup, limit: int = 110) -> str:
    """Label, then completions by frequency: `label 7 · 7 x9 · 1 x4 · 2 x3`."""
    counts = Counter(completion.text for completion in group.group.completions)
    said = " · ".join(f"{shorten(text, 40)} x{count}" for text, count in counts.most_common())
    return shorten(f"{printable(group.prompt.id)} label {printable(group.prompt.example.label)}: {said}", limit)


def event_line(kind: str, fields: Mapping[str, Any]) -> str:
    return " ".join([printable(kind), *(f"{key}={shorten(str(value), 100)}" for key, value in fields.items())])


def printable(text: str) -> str:
    """Text with every control, invisible and line-breaking character escaped: it may come from a model."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def shorten(text: str, limit: int) -> str:
    text = printable(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def clock(seconds: float) -> str:
    """93 -> `1:33`, 7384 -> `2:03:04`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
