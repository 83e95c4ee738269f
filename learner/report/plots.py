"""Draw figures as SVG elements that stand inside the page and take its colours, light or dark.

matplotlib draws without pyplot, and leaves no backend and no setting behind.
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
COLOURS = 7  # the page's palette; further series repeat it with dashed lines
POINTS = 240  # most points of a curve: more steps are binned
BARS = 60  # most bars of the stage times
LARGEST_MATRIX = 40  # most rows or columns of a matrix that can still be read
_DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
# Placeholders that `_restyle_tag` replaces by the style sheet's colours: text, grid, series 0, 1, …
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
    number: int  # decides its colour
    low: Values | None = None  # (S,) lower edge of its band
    high: Values | None = None  # (S,) upper edge
    raw: tuple[Values, Values, Values] | None = None  # x, lowest and highest value before smoothing
    dots: bool = False  # mark each point


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One small figure: its axes and its curves."""

    title: str
    unit: str  # label of the y axis
    series: tuple[Series, ...]
    x_unit: str = "step"
    log: bool = False
    share: bool = False  # y goes from 0 to 1


def smooth(x: Values, y: Values, number: int, *, band: bool) -> Series:
    """Bin a curve to POINTS and draw a moving mean over about a twentieth of them.

    1,000 steps become 200 bins of 5, each drawn as the mean of 11 bins around it: 55 steps.

    Args:
        x: (S,) steps.
        y: (S,) values, NaN where none was measured.
        number: decides the colour.
        band: keep each bin's lowest and highest value, to draw behind the mean.
    """
    known = ~np.isnan(y)
    starts = np.arange(0, len(x), choose_bin_size(len(x), POINTS))
    counts = np.add.reduceat(known, starts)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.add.reduceat(np.where(known, y, 0.0), starts) / counts  # (B,)
    low = np.minimum.reduceat(np.where(known, y, np.inf), starts)
    high = np.maximum.reduceat(np.where(known, y, -np.inf), starts)
    low, high = np.where(counts > 0, low, np.nan), np.where(counts > 0, high, np.nan)
    middles = x[starts]
    return Series(
        x=middles,
        y=_compute_moving_mean(means, choose_window(len(starts))),
        number=number,
        raw=(middles, low, high) if band else None,
    )


def choose_bin_size(steps: int, most: int) -> int:
    """Return how many steps share a bin, so that there are at most `most` bins: 1000 steps in 240 bins -> 5."""
    return max(1, -(-steps // most))


def choose_window(points: int) -> int:
    """Return the width of the moving mean in points: odd, about a twentieth of all. 200 -> 11."""
    return 2 * (points // 40) + 1


def _compute_moving_mean(values: Values, width: int) -> Values:
    """Return (B,) the mean of the known values among `width` around each one; NaN stays NaN."""
    known = ~np.isnan(values)
    kernel = np.ones(width)
    sums = np.convolve(np.where(known, values, 0.0), kernel, mode="same")
    counts = np.convolve(known.astype(float), kernel, mode="same")
    return np.where(known, sums / np.maximum(counts, 1), np.nan)


def draw_panel(panel: Panel) -> str:
    """Draw one panel as SVG."""
    return render_svg(panel.title, (4.0, 2.3), lambda figure: _draw_curves(figure.add_subplot(), panel))


def draw_timing(x: Values, seconds: Sequence[Values]) -> str:
    """Draw where the time of the steps went as SVG: stacked shares, binned to BARS.

    Args:
        x: (S,) steps.
        seconds: (S,) for each stage.
    """

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        starts = np.arange(0, len(x), choose_bin_size(len(x), BARS))
        sums = np.stack([np.add.reduceat(np.nan_to_num(stage), starts) for stage in seconds])  # (stages, B)
        shares = sums / np.maximum(sums.sum(axis=0), 1e-12)
        edges = np.append(x[starts], x[-1] + 1)
        tops = np.cumsum(shares, axis=0)
        for number, top in enumerate(tops):
            floor = tops[number - 1] if number else np.zeros_like(top)
            axes.stairs(top, edges, baseline=floor, fill=True, color=choose_colour(number), linewidth=0)
        axes.set_ylim(0, 1)
        axes.margins(x=0)
        _use_whole_steps(axes)
        name_axes(axes, "step", "share of the time")

    return render_svg("timing", (4.0, 2.3), draw)


def draw_matrix(
    values: Values, rows: Sequence[str], columns: Sequence[str], *, shown: Callable[[float], str], unit: tuple[str, str]
) -> str:
    """Draw a matrix as SVG: shaded cells, with numbers where there is room.

    Args:
        values: (rows, columns) shares of 0 to 1 decide the shade; NaN leaves a cell empty.
        shown: formats the number in a cell.
        unit: labels of the x and y axes.
    """
    side = 4.0 if len(columns) <= 20 else 6.0
    size = min(9.0, 0.55 * 72 * side * 0.75 / max(len(columns), len(rows), 1))  # points, of the labels

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        _shade_cells(axes, values)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks(range(len(columns)), [shorten(name, 18) for name in columns])
        axes.set_yticks(range(len(rows)), [shorten(name, 18) for name in rows])
        upright = any(len(name) > 3 for name in columns)
        axes.tick_params(axis="x", labelsize=size, labelrotation=90 if upright else 0, length=0)
        axes.tick_params(axis="y", labelsize=size, length=0)
        axes.grid(visible=False)
        name_axes(axes, *unit)
        if len(columns) <= 15:
            _number_cells(axes, values, shown, size=size * 0.9)

    height = 0.9 + (side - 0.9) * min(1.5, max(0.15, len(rows) / max(len(columns), 1)))
    return render_svg("matrix", (side, height), draw, layout="constrained")


def _shade_cells(axes: Axes, values: Values) -> None:
    """Fill every cell above 0, the darker the nearer its value is to 1."""
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    places = np.argwhere(values > 0)
    cells = PatchCollection([Rectangle((x - 0.5, y - 0.5), 1, 1) for y, x in places], linewidth=0)
    shades = [0.08 + 0.92 * min(1.0, float(values[y, x])) for y, x in places]
    cells.set_facecolor([to_rgba(choose_colour(0), shade) for shade in shades])
    axes.add_collection(cells)


def _number_cells(axes: Axes, values: Values, shown: Callable[[float], str], *, size: float) -> None:
    """Write the number of every known cell into it, in white on a dark shade."""
    for y, x in np.argwhere(~np.isnan(values)):
        if number := shown(float(values[y, x])):
            ink = "white" if values[y, x] > 0.5 else _INK
            axes.text(x, y, number, ha="center", va="center", fontsize=size, color=ink)


def _draw_curves(axes: Axes, panel: Panel) -> None:
    crowd = len(panel.series) > 1
    for one in panel.series:
        colour, dash = choose_colour(one.number), _DASHES[one.number // COLOURS % len(_DASHES)]
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
    if panel.x_unit == "step":
        _use_whole_steps(axes)
    name_axes(axes, panel.x_unit, panel.unit)


def _use_whole_steps(axes: Axes) -> None:
    """Label whole steps alone: a short run has no step 0.5."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))


def name_axes(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, labelpad=2)
    axes.set_ylabel(y, labelpad=3)


def choose_colour(number: int) -> str:
    return _SERIES.format(number % COLOURS)


def render_svg(
    name: str,
    inches: tuple[float, float],
    draw: Callable[[Figure], None],
    *,
    layout: Literal["constrained"] | None = None,
) -> str:
    """Return the SVG element of a figure that `draw` fills, without what the page does not need.

    Args:
        layout: "constrained" fits the axes to labels of any length, and takes twice the time.
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
    return _restyle_svg(out.getvalue(), name)


def _restyle_svg(svg: str, name: str) -> str:
    """Return the `<svg>` element alone, in the page's colours, with ids that no other figure has.

    Only tags are changed. Between them is escaped text, some of it from data.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*" height="[^"]*"', r'\1 aria-hidden="true"', svg, count=1)
    prefix = re.sub(r"\W", "-", name)
    return re.sub(r"<[^>]*>", lambda tag: _restyle_tag(tag[0], prefix), svg)


def _restyle_tag(tag: str, prefix: str) -> str:
    """Put the page's font and colours into one tag, shorten its numbers, and prefix its ids."""
    tag = re.sub(r"font-family: [^;\"]*", "font-family: inherit", tag)
    tag = tag.replace(_INK, "var(--ink)").replace(_GRID, "var(--grid)")
    tag = re.sub(r"#0300([0-9a-f]{2})", lambda found: f"var(--c{int(found[1], 16)})", tag)
    tag = re.sub(r"(\d+\.\d\d)\d+", r"\1", tag)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", tag)
