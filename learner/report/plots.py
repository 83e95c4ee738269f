"""Figures of a report as SVG that stands inside its page and takes that page's colours, light or dark.

matplotlib draws them on figures of their own: no pyplot, no backend and no setting is left behind.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from learner.text import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = npt.NDArray[np.float64]
COLOURS = 7  # of the page's palette; further series repeat it in other dashes
POINTS = 240  # of a curve: more steps are binned
BARS = 60  # of the timing: the same
LARGEST_MATRIX = 40  # rows or columns of a picture that can still be read
_DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
# Colours that stand for the page's: text, grid and series 0, 1, … of its style sheet.
_INK, _GRID, _SERIES = "#010101", "#020202", "#0300{:02x}"
_STYLE = {
    "font.size": 9,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
    "savefig.facecolor": "none",
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "figure.subplot.left": 0.17,
    "figure.subplot.right": 0.95,
    "figure.subplot.bottom": 0.18,
    "figure.subplot.top": 0.93,
    "axes.formatter.limits": (-2, 4),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One curve. NaN is a gap."""

    x: Values  # (S,)
    y: Values  # (S,)
    number: int  # its colour
    low: Values | None = None  # (S,) of its band
    high: Values | None = None
    raw: tuple[Values, Values, Values] | None = None  # x, lowest and highest before smoothing
    dots: bool = False  # each point was measured by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One small picture: what is on its axes, and its curves."""

    title: str
    unit: str  # of y
    series: tuple[Series, ...]
    x_unit: str = "step"
    log: bool = False
    share: bool = False  # y is of 0 to 1


def smooth(x: Values, y: Values, number: int, *, band: bool) -> Series:
    """A curve of many steps: binned to POINTS, under a moving mean of a twentieth of them, over what it hides.

    Args:
        x, y: (S,)
        band: draw each bin's lowest and highest value behind the mean.
    """
    known = ~np.isnan(y)
    starts = np.arange(0, len(x), bin_size(len(x), POINTS))
    counts = np.add.reduceat(known, starts)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.add.reduceat(np.where(known, y, 0.0), starts) / counts  # (B,)
    low = np.minimum.reduceat(np.where(known, y, np.inf), starts)
    high = np.maximum.reduceat(np.where(known, y, -np.inf), starts)
    low, high = np.where(counts > 0, low, np.nan), np.where(counts > 0, high, np.nan)
    middles = x[starts]
    return Series(
        x=middles, y=_moving_mean(means, window(len(starts))), number=number, raw=(middles, low, high) if band else None
    )


def bin_size(steps: int, most: int) -> int:
    """Steps a bin so that there are at most `most` bins."""
    return max(1, -(-steps // most))


def window(points: int) -> int:
    """Points under the moving mean: odd, about a twentieth of all."""
    return 2 * (points // 40) + 1


def _moving_mean(values: Values, width: int) -> Values:
    """(B,) centred mean over `width` values, of those that are there; NaN stays NaN."""
    known = ~np.isnan(values)
    kernel = np.ones(width)
    sums = np.convolve(np.where(known, values, 0.0), kernel, mode="same")
    counts = np.convolve(known.astype(float), kernel, mode="same")
    return np.where(known, sums / np.maximum(counts, 1), np.nan)


def draw_panel(panel: Panel) -> str:
    """SVG of one panel."""
    return _render_svg(panel.title, (4.0, 2.3), lambda figure: _curves(figure.add_subplot(), panel))


def draw_timing(x: Values, seconds: Sequence[Values]) -> str:
    """SVG of where the time of the steps went: stacked shares, binned to BARS.

    Args:
        x: (S,) steps.
        seconds: of each stage, (S,).
    """

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        starts = np.arange(0, len(x), bin_size(len(x), BARS))
        sums = np.stack([np.add.reduceat(np.nan_to_num(stage), starts) for stage in seconds])  # (stages, B)
        shares = sums / np.maximum(sums.sum(axis=0), 1e-12)
        edges = np.append(x[starts], x[-1] + 1)
        tops = np.cumsum(shares, axis=0)
        for number, top in enumerate(tops):
            floor = tops[number - 1] if number else np.zeros_like(top)
            axes.stairs(top, edges, baseline=floor, fill=True, color=_colour(number), linewidth=0)
        axes.set_ylim(0, 1)
        axes.margins(x=0)
        _name_axes(axes, "step", "share of the time")

    return _render_svg("timing", (4.0, 2.3), draw)


def draw_matrix(
    values: Values, rows: Sequence[str], columns: Sequence[str], *, shown: Callable[[float], str], unit: tuple[str, str]
) -> str:
    """SVG of a matrix as shaded cells, with its numbers where there is room.

    Args:
        values: (rows, columns) shares of 0 to 1 decide the shade; NaN leaves a cell empty.
        shown: the number in a cell, from its value.
        unit: what columns and rows are.
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    side = 4.0 if len(columns) <= 20 else 6.0

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        places = [(y, x) for y, x in np.argwhere(values > 0)]
        cells = PatchCollection([Rectangle((x - 0.5, y - 0.5), 1, 1) for y, x in places], linewidth=0)
        cells.set_facecolor([to_rgba(_colour(0), 0.08 + 0.92 * min(1.0, float(values[y, x]))) for y, x in places])
        axes.add_collection(cells)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks(range(len(columns)), [shorten(name, 18) for name in columns])
        axes.set_yticks(range(len(rows)), [shorten(name, 18) for name in rows])
        size = min(9.0, 0.55 * 72 * side * 0.75 / max(len(columns), len(rows), 1))
        across = max((len(name) for name in columns), default=0) > 3
        axes.tick_params(axis="x", labelsize=size, labelrotation=90 if across else 0, length=0)
        axes.tick_params(axis="y", labelsize=size, length=0)
        axes.grid(visible=False)
        _name_axes(axes, *unit)
        if len(columns) <= 15:
            for y, x in np.argwhere(~np.isnan(values)):
                if said := shown(float(values[y, x])):
                    ink = "white" if values[y, x] > 0.5 else _INK
                    axes.text(x, y, said, ha="center", va="center", fontsize=size * 0.9, color=ink)

    height = 0.9 + (side - 0.9) * min(1.5, max(0.15, len(rows) / max(len(columns), 1)))
    return _render_svg("matrix", (side, height), draw, layout="constrained")


def _curves(axes: Axes, panel: Panel) -> None:
    crowd = len(panel.series) > 1
    for one in panel.series:
        colour, dash = _colour(one.number), _DASHES[one.number // COLOURS % len(_DASHES)]
        if one.raw is not None:
            x, low, high = one.raw
            if np.array_equal(low, high, equal_nan=True):
                axes.plot(x, low, color=colour, alpha=0.45, linewidth=0.6)
            else:
                axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        if one.low is not None and one.high is not None:
            axes.fill_between(one.x, one.low, one.high, color=colour, alpha=0.12 if crowd else 0.2, linewidth=0)
        marker = "o" if one.dots and len(one.x) <= 30 else ""
        axes.plot(one.x, one.y, color=colour, linestyle=dash, linewidth=1.5, marker=marker, markersize=3)
    if panel.log:
        axes.set_yscale("log")
        least, most = np.log10(axes.get_ylim())
        axes.set_ylim(10 ** np.floor(least), 10 ** np.ceil(most))  # whole decades: two labels at least
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
        axes.yaxis.set_minor_formatter(lambda *_: "")
    if panel.share:
        axes.set_ylim(-0.02, 1.02)
    axes.margins(x=0.01)
    _name_axes(axes, panel.x_unit, panel.unit)


def _name_axes(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, labelpad=2)
    axes.set_ylabel(y, labelpad=3)


def _colour(number: int) -> str:
    return _SERIES.format(number % COLOURS)


def _render_svg(
    name: str,
    inches: tuple[float, float],
    draw: Callable[[Figure], None],
    *,
    layout: Literal["constrained"] | None = None,
) -> str:
    """The SVG element that `draw` leaves on a figure, without a word that the page does not need.

    Args:
        layout: fit the axes to labels of any length, which takes twice the time.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = {**_STYLE, "svg.hashsalt": name}  # its keys are typed one by one
    out = io.StringIO()
    with warnings.catch_warnings(), mpl.rc_context(style):
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's browser has fonts of its own
        figure = Figure(figsize=inches, layout=layout)
        draw(figure)
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _of_the_page(out.getvalue(), name)


def _of_the_page(svg: str, name: str) -> str:
    """The `<svg>` element alone, in the page's colours, its ids apart from those of other figures.

    Only what stands inside tags is changed: what stands between them is escaped text, some of it from data.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*" height="[^"]*"', r'\1 aria-hidden="true"', svg, count=1)
    prefix = re.sub(r"\W", "-", name)
    return re.sub(r"<[^>]*>", lambda tag: _retouch(tag[0], prefix), svg)


def _retouch(tag: str, prefix: str) -> str:
    tag = re.sub(r"font-family: [^;\"]*", "font-family: inherit", tag)
    tag = tag.replace(_INK, "var(--ink)").replace(_GRID, "var(--grid)")
    tag = re.sub(r"#0300([0-9a-f]{2})", lambda found: f"var(--c{int(found[1], 16)})", tag)
    tag = re.sub(r"(\d+\.\d\d)\d+", r"\1", tag)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", tag)
