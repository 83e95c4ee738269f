"""The histogram of log-prob gaps: how many tokens engine and learner disagreed about, and by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from common.types import GAP_EDGES
from learner.report.plots import COLOURS, Values, choose_colour, name_axes, render_svg
from learner.report.rows import Row, as_list, as_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMN = "gap_counts/"  # of metrics.jsonl, with the lag behind it
_BINS = len(GAP_EDGES) + 1
# Where each bin begins and ends, as a power of ten; what is below the first edge or above the last gets one bin each.
_POWERS = np.log10([GAP_EDGES[0] / 10**0.5, *GAP_EDGES, GAP_EDGES[-1] * 10**0.5])
_LEAST = 6  # bins that are shown at least


class Bars(NamedTuple):
    """One histogram."""

    counts: Values  # (_BINS,) tokens
    number: int  # decides its colour


def add_counts(totals: dict[int, Values], row: Row) -> None:
    """Add the counts of one row of metrics.jsonl to those of its lags; what is no count, and a further lag, is not."""
    for name in row:
        lag = name.removeprefix(COLUMN)
        if lag == name or not lag.isdecimal() or len(lag) > 6:
            continue
        counts = np.array([as_number(one) for one in as_list(row[name])[: _BINS + 1]])
        if len(counts) == _BINS and (counts >= 0).all() and (int(lag) in totals or len(totals) < COLOURS):
            totals[int(lag)] = totals.get(int(lag), np.zeros(_BINS)) + counts


def name_lag(lag: int) -> str:
    """Name the tokens of one lag: "same weights", "weights one step older"."""
    return ("same weights", "weights one step older")[lag] if lag < 2 else f"weights {lag} steps older"


def draw_histogram(histograms: Sequence[Bars]) -> str:
    """Draw histograms of gaps over each other as SVG: shares of tokens by the power of ten of their gap."""
    found = np.flatnonzero(sum(one.counts for one in histograms))
    first, last = int(found[0]), int(found[-1]) + 1
    first = max(0, min(first - 1, last + 1 - _LEAST))
    last = min(_BINS, max(last + 1, first + _LEAST))

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        edges = _POWERS[first : last + 1]
        for counts, number in histograms:
            shares, colour = counts[first:last] / counts.sum(), choose_colour(number)
            axes.stairs(shares, edges, fill=True, color=colour, alpha=0.25, linewidth=0)
            axes.stairs(shares, edges, color=colour, linewidth=1.2)
        whole = np.arange(np.ceil(edges[0]), np.floor(edges[-1]) + 1)[:: 1 if last - first <= 12 else 2]
        axes.set_xticks(whole, [f"{10**power:g}" if abs(power) < 3 else f"1e{power:.0f}" for power in whole])
        axes.set_ylim(bottom=0)
        axes.margins(x=0.01)
        name_axes(axes, "gap of a token, nats", "share of tokens")

    return render_svg("gaps", (4.0, 2.3), draw)


def merge_lags(counts: Mapping[int, Values]) -> Values:
    """Return the (_BINS,) counts over all lags."""
    total = np.zeros(_BINS)
    for own in counts.values():
        total = total + own
    return total
