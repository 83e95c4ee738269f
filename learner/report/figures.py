"""Which curves of one run, or of several over one another, make which figure."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from learner.report.data import Evaluation, RunData
from learner.report.format import name as shown
from learner.report.plots import (
    BARS,
    LARGEST_MATRIX,
    POINTS,
    Panel,
    Series,
    Values,
    bin_size,
    draw_matrix,
    draw_panel,
    draw_timing,
    smooth,
    window,
)
from learner.tracking.records import STAGES

MOST_SETS = 6  # evaluated sets, and reward functions, that get a figure of their own
_CURVES = (  # title, unit, columns, whether shares, whether on a log scale
    ("Reward", "mean of a step", ("reward",), False, False),
    ("KL to the reference", "nats a token", ("kl",), False, False),
    ("Entropy", "nats a token", ("entropy",), False, False),
    ("Groups of equal rewards", "share", ("all_equal_share",), True, False),
    ("Gradient norm", "before clipping", ("grad_norm",), False, False),
    ("Loss", "mean of a step", ("loss",), False, False),
    ("Completion length", "tokens", ("completion_length",), False, False),
    ("Log-prob gap, engine to learner", "nats, log scale", ("logprob_gap_max", "logprob_gap_mean"), False, True),
)
_NAMES = {"logprob_gap_max": "largest", "logprob_gap_mean": "mean"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A drawn figure and the words around it, all of them still to be escaped but for the SVG."""

    title: str
    svg: str
    legend: tuple[tuple[int, str], ...] = ()  # number of the series, its name
    note: str = ""


@dataclass(slots=True)
class Drawing:
    """Draws until the time is up; the rest is named."""

    until: float  # time.monotonic()
    left_out: list[str]

    def curves(self, runs: Sequence[RunData]) -> list[Figure]:
        """Figures of every curve that at least one run has."""
        figures = []
        for what, more in (("evaluated sets", len(_sets(runs))), ("reward functions", len(_functions(runs)))):
            if more > MOST_SETS:
                self.left_out.append(f"curves of {more - MOST_SETS} further {what}")
        for panel, legend in _panels(runs):
            if self._late(panel.title):
                continue
            figures.append(Figure(title=panel.title, svg=draw_panel(panel), legend=legend))
        return figures

    def timing(self, run: RunData) -> Figure | None:
        steps = run.curves["step"]
        known = {stage: run.curves[f"seconds/{stage}"] for stage in STAGES if f"seconds/{stage}" in run.curves}
        if not len(steps) or not known or self._late("Time of a step"):
            return None
        each = bin_size(len(steps), BARS)
        note = f"bars of {each} steps" if each > 1 else "a bar a step"
        legend = tuple((number, _time_line(stage, seconds)) for number, (stage, seconds) in enumerate(known.items()))
        svg = draw_timing(steps, list(known.values()))
        return Figure(title="Time of a step", svg=svg, legend=legend, note=note)

    def confusion(self, one: Evaluation) -> Figure | None:
        """Shares of each class's rows by what was answered; None where there are too many classes for a picture."""
        names = list(one.per_class)
        if not one.confusion or not 1 < len(names) <= LARGEST_MATRIX or self._late(f"Confusions of {shown(one.set)}"):
            return None
        counts = _count_confusions(one, names)  # (K, K + 1)
        columns = [*names, "none of the list"] if counts[:, -1].any() else names
        shares = counts[:, : len(columns)] / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        svg = draw_matrix(shares, names, columns, shown=_percent, unit=("answer", "label"))
        return Figure(title="Confusion matrix", svg=svg, note="per cent of each class's pictures")

    def across(self, matrix: Mapping[str, Mapping[str, float]]) -> Figure | None:
        """Accuracy of each model on each set."""
        models, sets = list(matrix), list(dict.fromkeys(name for row in matrix.values() for name in row))
        if not sets or max(len(models), len(sets)) > LARGEST_MATRIX or self._late("Models by data sets"):
            return None
        values = np.array([[row.get(name, np.nan) for name in sets] for row in matrix.values()], dtype=np.float64)
        svg = draw_matrix(values, models, sets, shown=_tenths, unit=("data set", "model"))
        return Figure(title="Models by data sets", svg=svg, note="per cent right, strict")

    def _late(self, title: str) -> bool:
        late = time.monotonic() > self.until
        if late:
            self.left_out.append(f"figure “{title}”: the time for it was up")
        return late


def note(runs: Sequence[RunData]) -> str:
    """How the curves were smoothed."""
    steps = max((run.steps for run in runs), default=0)
    each = bin_size(steps, POINTS)
    width = window(-(-steps // each)) * each
    pale = "line is each step" if each == 1 else f"band is the lowest and highest of {each} steps"
    behind = "" if len(runs) > 1 else f" The pale {pale}."
    return f"Curves are the mean over {width} steps.{behind}" if width > 1 else "Curves are of each step."


def _panels(runs: Sequence[RunData]) -> Iterator[tuple[Panel, tuple[tuple[int, str], ...]]]:
    yield from _accuracies(runs)
    for title, unit, columns, share, log in _CURVES:
        wanted = columns if len(runs) == 1 else columns[:1]
        names = [_NAMES.get(column, column) for column in wanted]
        yield from _overlay(runs, wanted, names, Panel(title=title, unit=unit, series=(), share=share, log=log))
        if title == "Reward":
            yield from _by_function(runs)


def _by_function(runs: Sequence[RunData]) -> Iterator[tuple[Panel, tuple[tuple[int, str], ...]]]:
    """One figure of all reward functions of a run; of several runs, one of each function."""
    if len(_functions(runs)) < 2:
        return
    found = _functions(runs)[:MOST_SETS]
    names = [shown(column.removeprefix("rewards/")) for column in found]
    if len(runs) == 1:
        yield from _overlay(runs, found, names, Panel(title="Reward by function", unit="mean of a step", series=()))
        return
    for column, name in zip(found, names, strict=True):
        yield from _overlay(runs, [column], [name], Panel(title=f"Reward: {name}", unit="mean of a step", series=()))


def _functions(runs: Sequence[RunData]) -> list[str]:
    """Columns of reward functions."""
    return list(dict.fromkeys(name for run in runs for name in run.curves if name.startswith("rewards/")))


def _sets(runs: Sequence[RunData]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.sets))


def _overlay(
    runs: Sequence[RunData], columns: Sequence[str], names: Sequence[str], panel: Panel
) -> Iterator[tuple[Panel, tuple[tuple[int, str], ...]]]:
    """The panel with a curve for each run, or for each column of the only run; nothing where there is none."""
    series, legend, single = [], [], len(runs) == 1
    for place, run in enumerate(runs):
        for number, (column, name) in enumerate(zip(columns, names, strict=True)):
            values = run.curves.get(column)
            values = np.where(values > 0, values, np.nan) if panel.log and values is not None else values
            if values is None or np.isnan(values).all():
                continue
            series.append(smooth(run.curves["step"], values, number if single else place, band=single))
            legend.append((number, name))
    if series:
        yield replace(panel, series=tuple(series)), tuple(legend) if single and len(legend) > 1 else ()


def _accuracies(runs: Sequence[RunData]) -> Iterator[tuple[Panel, tuple[tuple[int, str], ...]]]:
    """Accuracy of every set in one figure for one run; of several runs by set, over steps and over time."""
    sets = _sets(runs)[:MOST_SETS]
    if len(runs) == 1:
        series = [_accuracy(runs[0].evaluated(name), number) for number, name in enumerate(sets)]
        if series:
            legend = tuple(enumerate(map(shown, sets))) if len(sets) > 1 else ()
            yield Panel(title="Accuracy", unit="strict, share right", series=tuple(series), share=True), legend
        return
    for name in sets:
        pairs = [(place, run.evaluated(name), run) for place, run in enumerate(runs) if run.evaluated(name)]
        series = [_accuracy(found, place) for place, found, _ in pairs]
        yield Panel(title=f"Accuracy, {shown(name)}", unit="share right", series=tuple(series), share=True), ()
        timed = [_accuracy(found, place, times=_times(run)) for place, found, run in pairs if run.steps]
        if timed:
            title, x_unit = f"Accuracy over time, {shown(name)}", "seconds of training steps"
            yield Panel(title=title, unit="share right", series=tuple(timed), share=True, x_unit=x_unit), ()


def _accuracy(found: Sequence[Evaluation], number: int, *, times: Values | None = None) -> Series:
    bands = [one.intervals.get("accuracy", (np.nan, np.nan)) for one in found]
    steps = [one.step for one in found]
    x = np.array(steps, dtype=np.float64) if times is None else times[np.clip(steps, 0, len(times) - 1)]
    return Series(
        x=x,
        y=np.array([one.measures.get("accuracy", np.nan) for one in found]),
        number=number,
        low=np.array([low for low, _ in bands]),
        high=np.array([high for _, high in bands]),
        dots=True,
    )


def _times(run: RunData) -> Values:
    """(S + 1,) seconds that the first s steps took."""
    return np.concatenate([[0.0], np.cumsum(np.nan_to_num(run.curves.get("step_seconds", np.zeros(run.steps))))])


def _time_line(stage: str, seconds: Values) -> str:
    return f"{stage} {np.nanmean(seconds):.2g} s"


def _count_confusions(one: Evaluation, names: Sequence[str]) -> Values:
    """(K, K + 1) counts of label by answer, the last column for answers that are none of the classes."""
    place = {name: number for number, name in enumerate(names)}
    counts = np.zeros((len(names), len(names) + 1))
    for label, answer, count in one.confusion:
        if label in place:
            counts[place[label], place.get(answer, -1)] += count
    for label, (right, _) in one.per_class.items():
        counts[place[label], place[label]] = right  # a list of confusions may leave out what was right
    return counts


def _percent(share: float) -> str:
    return f"{share * 100:.0f}" if share > 0 else ""


def _tenths(share: float) -> str:
    return f"{share * 100:.1f}"
