"""The console of a run: a live display on a terminal, one readable line a step everywhere else."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TextIO

from common.command import say
from common.config.schema import Config
from common.types import ScoredGroup
from learner.text import format_clock
from learner.tracking.lines import QUIET, Pace, count_troubles, format_evaluation, format_line, format_sample, name_gap
from learner.tracking.records import STAGES, History, StepRecord, list_unmeasured_of

_SHORT = dict(zip(STAGES, ("gen", "rew", "learn", "pub", "idle"), strict=True))


class Console(Protocol):
    """Shows a run. Every text from model or data is made printable first."""

    def open(self, folder: str, history: History, *, first_step: int) -> None: ...
    def phase(self, what: str, seconds: float) -> None: ...
    def step(self, record: StepRecord) -> None: ...
    def evaluation(self, step: int, lines: Mapping[str, Mapping[str, Any]]) -> None: ...
    def sample(self, group: ScoredGroup) -> None: ...
    def event(self, kind: str, fields: Mapping[str, Any]) -> None: ...
    def close(self, lines: Sequence[str]) -> None: ...


def open_console(config: Config) -> Console:
    """The live display if stdout is a terminal, else lines (`ray job submit`, CI, a pipe)."""
    if sys.stdout.isatty():
        from learner.tracking.live import LiveConsole  # rich is slow to import

        return LiveConsole(config)
    return LineConsole(config)


class LineConsole:
    """Prints `key=value` cells in columns, under 150 characters a step; everything else is in metrics.jsonl."""

    def __init__(self, config: Config, out: TextIO | None = None) -> None:
        self._steps, self._name = config.steps, config.name
        self._unmeasured = list_unmeasured_of(config)
        self._out = out or sys.stdout
        self._pace: Pace | None = None

    def open(self, folder: str, history: History, *, first_step: int) -> None:
        where = f", from step {first_step}" if first_step else ""
        self._print(f"{self._name}: {self._steps} steps{where}")

    def phase(self, what: str, seconds: float) -> None:
        self._print(f"{what} in {seconds:.1f} s")

    def step(self, record: StepRecord) -> None:
        self._pace = self._pace or Pace(record)
        width = len(str(self._steps))
        measured = {
            "reward": f"reward={record.reward:<6.3f}",
            "zero_std_share": f"zero-std={record.zero_std_share:<4.2f}",
            "listed_mass": f"listed={record.listed_mass:<5.3f}",
            "kl": f"kl={record.kl:<6.4f}",
            "entropy": f"entropy={record.entropy:<5.3f}",
            "grad_norm": f"grad={record.grad_norm:<5.2g}",
            "logprob_gap_max": f"{name_gap(record)}={record.youngest_gap:<5.0e}",
        }
        cells = [
            f"step={record.step + 1:>{width}}/{self._steps}",
            *(cell for column, cell in measured.items() if column not in self._unmeasured),
            f"comp/s={record.completions_per_second:<4.0f}",
            f"s={record.step_seconds:<5.2f}",
            *(f"{_SHORT[stage]}={record.shares[stage]:<3.0%}" for stage in ("generate", "learn", "publish", "idle")),
            f"eta={format_clock(self._pace.estimate_left(record, self._steps))}",
        ]
        cells += [f"{name}={count}" for name, count in count_troubles(record).items()]
        self._print(" ".join(cells))

    def evaluation(self, step: int, lines: Mapping[str, Mapping[str, Any]]) -> None:
        self._print(f"evaluation after {step} steps: {format_evaluation(lines)}")

    def sample(self, group: ScoredGroup) -> None:
        self._print(format_sample(group))

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        if kind not in QUIET:
            self._print(format_line(kind, fields))

    def close(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._print(line)

    def _print(self, line: str) -> None:
        say(line, file=self._out)
