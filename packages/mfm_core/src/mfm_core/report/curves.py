"""Line charts as SVG text for the report: the same input gives the same bytes, and the page's style gives the colours.

Colours are CSS variables (`--line-0` …, `--ink`, `--grid`) with fallbacks, so one chart reads on light and on dark
paper and also stands alone. Names of runs never enter the SVG; the page writes the legend.
"""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

LINE_COLOURS = ("#2563a8", "#d1620f", "#2f8a4c", "#a8327f", "#6b55c4", "#8a6d1d", "#138a8f", "#b3363b")
"""On light paper, for the first eight runs; then they repeat."""
_MOST_POINTS = 160
_MARKED_POINTS = 20
_INK, _GRID = "#6f7480", "#d8d9dc"


@dataclass
class Series:
    """One line: its (x, y), the number of its colour, solid or dashed."""

    points: list[tuple[float, float]]
    colour: int = 0
    dashed: bool = False


def line_chart(
    series: list[Series], x_label: str = "epoch", y_label: str = "", log_y: bool = False, zero: bool = False
) -> str:
    """An `<svg>` element with the lines of `series`.

    A line of more than 160 points is drawn as means over equal stretches, on a band from their smallest to their
    largest value. `log_y` acts where all values are positive. `zero` lets the axis start at 0.
    """
    import matplotlib  # slow to import: only when a chart is drawn
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings = {
        "svg.hashsalt": "mfm",
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.family": "sans-serif",
        "font.size": 9,
        "path.simplify": False,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(5.2, 2.7), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for line in series:
            _draw(axes, line)
        _dress(axes, x_label, y_label)
        values = [y for line in series for _, y in line.points]
        if log_y and values and min(values) > 0:
            _log_axis(axes)
        elif zero:
            axes.set_ylim(bottom=min(0.0, *values))
        memory = io.StringIO()
        figure.savefig(memory, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _embeddable(memory.getvalue())


def colour(number: int) -> str:
    """The CSS colour of the line with this number, as charts and legends use it."""
    number %= len(LINE_COLOURS)
    return f"var(--line-{number}, {LINE_COLOURS[number]})"


def thin(points: list[tuple[float, float]], most: int = _MOST_POINTS) -> np.ndarray:
    """Points as an array (n, 4) of x, mean, smallest and largest y, over at most `most` stretches of equal length."""
    xy = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    if len(xy) <= most:
        return np.column_stack([xy, xy[:, 1], xy[:, 1]])
    size = -(-len(xy) // most)
    parts = (xy[i : i + size] for i in range(0, len(xy), size))
    return np.array([(p[:, 0].mean(), p[:, 1].mean(), p[:, 1].min(), p[:, 1].max()) for p in parts])


def _draw(axes: Any, line: Series) -> None:
    """One series, thinned; few points are marked."""
    x, mean, low, high = thin(line.points).T
    paint = LINE_COLOURS[line.colour % len(LINE_COLOURS)]
    if (high > low).any():
        axes.fill_between(x, low, high, color=paint, alpha=0.16, linewidth=0)
    marker = "o" if len(x) <= _MARKED_POINTS else None
    style = {"linewidth": 1.7, "linestyle": (0, (4, 2)) if line.dashed else "-", "clip_on": False}
    axes.plot(x, mean, color=paint, marker=marker, markersize=2.6, **style)


def _dress(axes: Any, x_label: str, y_label: str) -> None:
    """Light axes: horizontal grid, two spines, grey text."""
    axes.grid(axis="y", color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color=_GRID, linewidth=0.8)
    axes.tick_params(colors=_INK, length=3, width=0.7)
    axes.margins(x=0.02)
    axes.set_xlabel(x_label, color=_INK)
    axes.set_ylabel(y_label, color=_INK)


def _log_axis(axes: Any) -> None:
    """A logarithmic y axis; labels between the powers of ten only where the data spans few of them."""
    from matplotlib.ticker import LogFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    narrow = high / low < 30
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5) if narrow else (2, 3, 4, 5, 6, 7, 8, 9)))
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(3, 1)) if narrow else NullFormatter())
    axes.tick_params(which="minor", colors=_INK, length=2, width=0.5)
    axes.grid(axis="y", which="minor", color=_GRID, linewidth=0.3)


def _embeddable(svg: str) -> str:
    """matplotlib's file as an element of a page: no prologue or metadata, own ids, colours from the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;]+;", "", svg)
    own = "c" + hashlib.sha256(svg.encode()).hexdigest()[:10]
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{own}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{own}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{own}-\1)", svg)
    for number, hexa in enumerate(LINE_COLOURS):
        svg = svg.replace(f": {hexa}", f": {colour(number)}")
    svg = svg.replace(f": {_INK}", f": var(--ink-soft, {_INK})").replace(f": {_GRID}", f": var(--grid, {_GRID})")
    svg = re.sub(r'<svg ([^>]*?)height="[^"]+"', r"<svg \1", svg, count=1)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would style the whole page
    return re.sub(r'<svg ([^>]*?)width="[^"]+"', r'<svg style="stroke-linejoin: round" \1', svg, count=1)
