"""Choose which curves make which figure, for one run or for several drawn over each other; `plots.py` draws them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from learner.report.data import RunData, samples_answers
from learner.report.evaluations import Evaluation
from learner.report.format import shorten_name
from learner.report.histogram import Bars, draw_histogram, merge_lags, name_lag
from learner.report.plots import (
    BARS,
    LARGEST_MATRIX,
    POINTS,
    Panel,
    Series,
    Values,
    choose_bin_size,
    choose_window,
    draw_matrix,
    draw_panel,
    draw_timing,
    smooth,
)
from learner.tracking.records import STAGES

MOST_SETS = 6  # evaluated sets, and reward functions, that get a curve


class _Curve(NamedTuple):
    """One figure of the page: which columns of `metrics.jsonl` it draws, and how."""

    title: str
    unit: str
    columns: tuple[str, ...]
    share: bool = False  # the y axis goes from 0 to 1
    log: bool = False


_CURVES = (
    _Curve("Reward", "mean of a step", ("reward",)),
    _Curve("Listed mass", "probability", ("listed_mass",), share=True),
    _Curve("KL to the reference", "nats a token", ("kl",)),
    _Curve("Entropy", "nats a token", ("entropy",)),
    _Curve("Zero-std groups", "share of groups", ("zero_std_share",), share=True),
    _Curve("Rows by solve rate", "share of rows", ("solve_rates/hard", "solve_rates/easy"), share=True),
    _Curve("Gradient norm", "before clipping", ("grad_norm",)),
    _Curve("Loss", "mean of a step", ("loss",)),
    _Curve("Completion length", "mean tokens", ("completion_length",)),
    _Curve("Log-prob gap, engine to learner", "nats, log scale", ("logprob_gap_max", "logprob_gap_mean"), log=True),
)
_GAPS = "Histogram of log-prob gaps"
_NAMES = {
    "logprob_gap_max": "largest",
    "logprob_gap_mean": "mean",
    "solve_rates/hard": "hard",
    "solve_rates/easy": "easy",
}
_NOTES = {
    "Zero-std groups": "All answers earn the same, so the group teaches nothing.",
    "Rows by solve rate": "Under a tenth of the sampled answers to a hard row were right, over 90 % to an easy one.",
    _GAPS: "All sampled tokens. The first and the last bin also hold what is beyond.",
    "Listed mass": "All listed answers together; the rest are answers outside the list.",
}
Legend = tuple[tuple[int, str], ...]  # number of a series, its name


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A drawn figure and the words around it. The words are not escaped yet; the SVG is."""

    title: str
    svg: str
    legend: Legend = ()
    note: str = ""


@dataclass(slots=True)
class Drawing:
    """Draws figures until its time is up, and names those left out."""

    until: float  # time.monotonic()
    left_out: list[str]

    def draw_curves(self, runs: Sequence[RunData]) -> list[Figure]:
        """Draw every curve that at least one run has."""
        figures = []
        for what, more in (
            ("evaluated sets", len(_find_sets(runs))),
            ("reward functions", len(_find_reward_columns(runs))),
        ):
            if more > MOST_SETS:
                self.left_out.append(f"curves of {more - MOST_SETS} further {what}")
        for panel, legend in _build_panels(runs):
            if self._is_late(panel.title):
                continue
            note = _NOTES.get(panel.title, "")
            figures.append(Figure(title=panel.title, svg=draw_panel(panel), legend=legend, note=note))
        return [*figures, *self._draw_gaps(runs)]

    def _draw_gaps(self, runs: Sequence[RunData]) -> Iterator[Figure]:
        """Draw the histogram of log-prob gaps: of one run by lag, of several all lags together; nothing without any."""
        if len(runs) == 1:
            lags = sorted(runs[0].gap_counts)
            found = [Bars(runs[0].gap_counts[lag], number) for number, lag in enumerate(lags)]
            legend = tuple((number, name_lag(lag)) for number, lag in enumerate(lags)) if len(lags) > 1 else ()
        else:
            found = [Bars(merge_lags(run.gap_counts), place) for place, run in enumerate(runs)]
            legend = ()
        found = [one for one in found if one.counts.any()]
        if found and not self._is_late(_GAPS):
            yield Figure(title=_GAPS, svg=draw_histogram(found), legend=legend, note=_NOTES[_GAPS])

    def draw_stage_times(self, run: RunData) -> Figure | None:
        """Draw the share of each stage in the time of a step; None where no step is on file."""
        steps = run.curves["step"]
        known = {stage: run.curves[f"seconds/{stage}"] for stage in STAGES if f"seconds/{stage}" in run.curves}
        if not len(steps) or not known or self._is_late("Time of a step"):
            return None
        each = choose_bin_size(len(steps), BARS)
        note = f"one bar for {each} steps" if each > 1 else "one bar for each step"
        legend = tuple(
            (number, _format_stage_time(stage, seconds)) for number, (stage, seconds) in enumerate(known.items())
        )
        svg = draw_timing(steps, list(known.values()))
        return Figure(title="Time of a step", svg=svg, legend=legend, note=note)

    def draw_confusion(self, one: Evaluation) -> Figure | None:
        """Draw, for each class, what share of its rows got which answer; None with too many classes to read."""
        names = list(one.per_class)
        if (
            not one.confusion
            or not 1 < len(names) <= LARGEST_MATRIX
            or self._is_late(f"Confusions of {shorten_name(one.set)}")
        ):
            return None
        counts = _count_confusions(one, names)  # (K, K + 1)
        columns = [*names, "outside the list"] if counts[:, -1].any() else names
        shares = counts[:, : len(columns)] / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        svg = draw_matrix(shares, names, columns, shown=_format_percent, unit=("answer", "label"))
        return Figure(title="Confusion matrix", svg=svg, note="per cent of each class's rows")

    def draw_models_by_sets(self, matrix: Mapping[str, Mapping[str, float]]) -> Figure | None:
        """Draw the accuracy of each model on each set; None without any, or with too many to read."""
        models, sets = list(matrix), list(dict.fromkeys(name for row in matrix.values() for name in row))
        if not sets or max(len(models), len(sets)) > LARGEST_MATRIX or self._is_late("Models by data sets"):
            return None
        values = np.array([[row.get(name, np.nan) for name in sets] for row in matrix.values()], dtype=np.float64)
        svg = draw_matrix(values, models, sets, shown=_format_tenths, unit=("data set", "model"))
        return Figure(title="Models by data sets", svg=svg, note="strict accuracy, per cent")

    def _is_late(self, title: str) -> bool:
        late = time.monotonic() > self.until
        if late:
            self.left_out.append(f"figure “{title}”: the time for it was up")
        return late


def describe_smoothing(runs: Sequence[RunData]) -> str:
    """Say how the curves were smoothed, for the longest of the runs."""
    steps = max((run.steps for run in runs), default=0)
    each = choose_bin_size(steps, POINTS)
    width = choose_window(-(-steps // each)) * each
    if width == 1:
        return "Each point is one step."
    pale = "line shows each step" if each == 1 else f"band spans the lowest and highest of {each} steps"
    behind = "" if len(runs) > 1 else f" The pale {pale}."
    return f"Each point is the mean over {width} steps.{behind}"


def _build_panels(runs: Sequence[RunData]) -> Iterator[tuple[Panel, Legend]]:
    yield from _build_accuracy_panels(runs)
    for curve in _CURVES:
        columns = curve.columns if len(runs) == 1 else curve.columns[:1]
        names = [_NAMES.get(column, column) for column in columns]
        unit = _name_reward(runs) if curve.title == "Reward" else curve.unit
        panel = Panel(title=curve.title, unit=unit, series=(), share=curve.share, log=curve.log)
        yield from _overlay_curves(runs, columns, names, panel)
        if curve.title == "Reward":
            yield from _build_reward_panels(runs)


def _name_reward(runs: Sequence[RunData]) -> str:
    """Name the reward of a step: a mean over sampled answers, or what the policy's probabilities would earn."""
    return "mean of a step" if any(samples_answers(run.config) for run in runs) else "expected, mean of a step"


def _build_reward_panels(runs: Sequence[RunData]) -> Iterator[tuple[Panel, Legend]]:
    """Build one figure of all reward functions of a run; of several runs, one figure for each function."""
    if len(_find_reward_columns(runs)) < 2:
        return
    found = _find_reward_columns(runs)[:MOST_SETS]
    names = [shorten_name(column.removeprefix("rewards/")) for column in found]
    if len(runs) == 1:
        yield from _overlay_curves(
            runs, found, names, Panel(title="Reward by function", unit=_name_reward(runs), series=())
        )
        return
    for column, name in zip(found, names, strict=True):
        yield from _overlay_curves(
            runs, [column], [name], Panel(title=f"Reward: {name}", unit=_name_reward(runs), series=())
        )


def _find_reward_columns(runs: Sequence[RunData]) -> list[str]:
    """Return the columns of reward functions, each once."""
    return list(dict.fromkeys(name for run in runs for name in run.curves if name.startswith("rewards/")))


def _find_sets(runs: Sequence[RunData]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.sets))


def _overlay_curves(
    runs: Sequence[RunData], columns: Sequence[str], names: Sequence[str], panel: Panel
) -> Iterator[tuple[Panel, Legend]]:
    """Yield the panel with a curve for each run, or for each column of an only run; nothing where no run has one."""
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


def _build_accuracy_panels(runs: Sequence[RunData]) -> Iterator[tuple[Panel, Legend]]:
    """Build one figure of all sets for one run; for several runs two of each set, over steps and over time."""
    sets = _find_sets(runs)[:MOST_SETS]
    if len(runs) == 1:
        series = [_build_accuracy_series(runs[0].evaluations_of(name), number) for number, name in enumerate(sets)]
        if series:
            legend = tuple(enumerate(map(shorten_name, sets))) if len(sets) > 1 else ()
            yield Panel(title="Accuracy", unit="strict accuracy", series=tuple(series), share=True), legend
        return
    for name in sets:
        pairs = [(place, run.evaluations_of(name), run) for place, run in enumerate(runs) if run.evaluations_of(name)]
        series = [_build_accuracy_series(found, place) for place, found, _ in pairs]
        yield (
            Panel(title=f"Accuracy, {shorten_name(name)}", unit="strict accuracy", series=tuple(series), share=True),
            (),
        )
        timed = [
            _build_accuracy_series(found, place, times=_sum_times(run)) for place, found, run in pairs if run.steps
        ]
        if timed:
            title, x_unit = f"Accuracy over time, {shorten_name(name)}", "seconds spent in steps"
            yield Panel(title=title, unit="strict accuracy", series=tuple(timed), share=True, x_unit=x_unit), ()


def _build_accuracy_series(found: Sequence[Evaluation], number: int, *, times: Values | None = None) -> Series:
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


def _sum_times(run: RunData) -> Values:
    """Return (S + 1,): entry s is the seconds that the first s steps took."""
    return np.concatenate([[0.0], np.cumsum(np.nan_to_num(run.curves.get("step_seconds", np.zeros(run.steps))))])


def _format_stage_time(stage: str, seconds: Values) -> str:
    return f"{stage} {np.nanmean(seconds):.2g} s"


def _count_confusions(one: Evaluation, names: Sequence[str]) -> Values:
    """Count answers by label: (K, K + 1), the last column for answers that are none of the K classes."""
    place = {name: number for number, name in enumerate(names)}
    counts = np.zeros((len(names), len(names) + 1))
    for label, answer, count in one.confusion:
        if label in place:
            counts[place[label], place.get(answer, -1)] += count
    for label, (right, _) in one.per_class.items():
        counts[place[label], place[label]] = right  # the file may list mistakes alone
    return counts


def _format_percent(share: float) -> str:
    return f"{share * 100:.0f}" if share > 0 else ""


def _format_tenths(share: float) -> str:
    return f"{share * 100:.1f}"
