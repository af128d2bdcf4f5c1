"""Charts: what a figure shows, and how matplotlib draws it: as PNG, and as SVG with tooltips."""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any, Literal
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

# Okabe & Ito's palette, its yellow darkened to be seen on white: told apart with any colour
# vision, and by marker and dash in print.
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F", "#000000",
)  # fmt: skip
REFERENCE = "#888888"
# form -> number of its colour and marker, the same in every figure
FORMS = {"dense": 7, "masked": 0, "compact": 1, "sparse": 2}
DPI = 110  # of the PNG
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")
_MARKER_SIZES = {"*": 8, "P": 6, "X": 6}  # points, of markers that are mostly gaps
_DASHES = {"solid": "-", "dotted": ":", "dashed": "--", "steps": "-", "none": "none"}
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.parse_math": False,  # a pair of dollar signs in a name is no formula
}
_NUMBERED = 60  # rows of a heat map whose cells still have room for a number
_REACH = 5.0  # points around a point that count as pointing at it
_SVG = "http://www.w3.org/2000/svg"
ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


@dataclass(frozen=True)
class Axis:
    """An axis; `shrinking` is a log axis from the whole model on the left to the smallest."""

    label: str  # with its unit
    scale: Literal["linear", "log", "log2", "shrinking"] = "linear"
    percent: bool = False  # values are fractions, shown as percent
    limits: tuple[float | None, float | None] = (None, None)  # of a linear axis

    def text(self, value: float, digits: int = 4) -> str:
        return f"{100 * value:.{digits}g} %" if self.percent else f"{value:.{digits}g}"


@dataclass(frozen=True)
class Line:
    """A line with markers. Lines that belong together share a style; `steps` are a front of costs.

    A label looks the same in all panels of a chart, which has one legend.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]  # NaN is a gap
    low: Sequence[float] | None = None  # ends of an interval around each point, NaN for none
    high: Sequence[float] | None = None
    n: Sequence[int] | None = None  # seeds behind each point
    style: int = 0  # number of its colour and marker
    dash: Literal["solid", "dotted", "dashed", "steps", "none"] = "solid"
    notes: Sequence[str] | None = None  # shown when a point is pointed at
    reference: bool = False  # measured by others: grey, thin and behind


@dataclass(frozen=True)
class Panel:
    """Lines on one pair of axes."""

    title: str
    x: Axis
    y: Axis
    lines: Sequence[Line]


@dataclass(frozen=True)
class HeatMap:
    """A table of fractions as colours, in percent within the cells where numbers fit."""

    title: str
    table: pd.DataFrame  # fractions in [0, 1]; NaN is white
    columns: str = "level"  # what a column is
    values: str = "sparsity"  # what a cell is


@dataclass(frozen=True)
class Chart:
    """A figure: panels, or heat maps, side by side and wrapped into rows."""

    title: str
    panels: Sequence[Panel | HeatMap]


@dataclass(frozen=True)
class Overlay:
    """Curves measured by others, laid beneath those of runs."""

    # of a configuration's levels and the label of their line: test accuracy against what is left
    accuracy: Callable[[pd.DataFrame, str], list[Line]] = lambda levels, label: []
    # of a configuration's times, against `batch_size` (rows of one level) or `params_left`
    times: Callable[[pd.DataFrame, str], list[Line]] = lambda rows, x: []


def draw(chart: Chart) -> Figure:
    """A chart as a figure, whose axes are its panels in order, then the colour bar of heat maps."""
    panels = [panel for panel in chart.panels if isinstance(panel, Panel)]
    maps = [panel for panel in chart.panels if isinstance(panel, HeatMap)]
    with matplotlib.rc_context(_STYLE):
        return _draw_heat_maps(chart, maps) if maps else _draw_panels(chart, panels)


def save(chart: Chart, folder: Path, name: str) -> str:
    """Write a chart as `<name>.png` and `<name>.svg`; the same chart and name, the same bytes.

    Returns the SVG as an element of a page: self-contained, with ids that no other figure has.
    """
    figure, text = draw(chart), io.StringIO()
    figure.savefig(folder / f"{name}.png", dpi=DPI)
    figure.set_dpi(72)  # an SVG's unit is a point
    style: dict[Any, Any] = {"svg.hashsalt": name, "svg.fonttype": "none"}
    with matplotlib.rc_context(style | {"font.sans-serif": ["DejaVu Sans"]}):
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", metadata=no_metadata)
    element = _valid(_with_tooltips(_valid(text.getvalue()), figure, chart))
    (folder / f"{name}.svg").write_text(element, "utf-8")
    return element


def grid(chart: Chart) -> tuple[int, int]:
    """Rows and columns of the grid that a chart's panels lie in."""
    columns = 2 if len(chart.panels) == 4 else min(3, len(chart.panels))
    return math.ceil(len(chart.panels) / columns), columns


def ticks(values: Sequence[float], most: int = 8) -> list[float]:
    """Values that occur, largest first, thinned to what can be read; both ends are kept."""
    ordered = sorted(set(values), reverse=True)
    if len(ordered) < 2:
        return ordered
    # a hair of slack: levels of one fraction are equally far apart but for rounding
    apart = 0.999 * max(1.02, (ordered[0] / ordered[-1]) ** (1 / most))
    kept = ordered[:1]
    for value in ordered[1:-1]:
        if min(kept[-1] / value, value / ordered[-1]) >= apart:
            kept.append(value)
    return [*kept, ordered[-1]]


def _wrapped(text: str, width: int) -> str:
    """Lines of at most so many letters where they can be broken at commas."""
    lines = text.replace(" ", "\xa0").replace(",\xa0", ", ").split("\n")
    broken = [fill(line, width, break_long_words=False, break_on_hyphens=False) for line in lines]
    return "\n".join(broken).replace("\xa0", " ")


def _empty(chart: Chart, size: tuple[float, float], width: int) -> tuple[Figure, list[Axes]]:
    """A figure with a title of so many letters a line, and axes for each panel."""
    figure = Figure(figsize=size, layout="constrained")
    alone = chart.panels[0].title if len(chart.panels) == 1 else ""
    title = "\n".join(_wrapped(text, width) for text in (chart.title, alone) if text)
    figure.suptitle(title, fontsize=10)
    return figure, [figure.add_subplot(*grid(chart), i + 1) for i in range(len(chart.panels))]


def _draw_panels(chart: Chart, panels: Sequence[Panel]) -> Figure:
    rows, columns = grid(chart)
    size = (6.4, 4.6) if columns == 1 else (3.6 * columns, 0.6 + 3.3 * rows)
    figure, drawn = _empty(chart, size, 90 if columns > 1 else 70)
    lines = [line for panel in panels for line in panel.lines]
    # references are all grey: their markers tell them apart
    grey = list(dict.fromkeys(line.label for line in lines if line.reference))
    handles: dict[str, Any] = {}
    for axes, panel in zip(drawn, panels, strict=True):
        _draw_panel(axes, panel, grey, "" if len(panels) == 1 else _wrapped(panel.title, 44))
        handles |= {str(handle.get_label()): handle for handle in axes.containers}
    if handles:
        # as many columns as fit of letters of an eighteenth of an inch, and as few as its rows need
        most = max(1, min(4, int(size[0] / (0.45 + max(map(len, handles)) / 18))))
        across = math.ceil(len(handles) / math.ceil(len(handles) / most))
        labels = [_wrapped(label, int(18 * (size[0] / across - 0.6))) for label in handles]
        figure.legend(handles.values(), labels, loc="outside lower center", ncols=across)
    return figure


def _draw_panel(axes: Axes, panel: Panel, grey: list[str], title: str) -> None:
    counts = Counter(int(n) for line in panel.lines for n in line.n or ())
    usual = max(counts, key=counts.__getitem__, default=0)
    seeds = f"n = {usual} seed{'s' * (usual > 1)}" if counts else ""
    seeds += ", else beside the point" if len(counts) > 1 else ""
    axes.set_title("\n".join(filter(None, (title, seeds))))
    axes.set_axisbelow(True)
    axes.grid(True, alpha=0.3, linewidth=0.6)
    for line in panel.lines:
        marker = grey.index(line.label) if line.reference else line.style
        _draw_line(axes, line, _MARKERS[marker % len(_MARKERS)])
        for x, y, n in zip(line.x, line.y, line.n or (), strict=False):
            if n != usual and math.isfinite(y):
                axes.annotate(
                    str(n), (x, y), xytext=(4, 3), textcoords="offset points", fontsize=6.5,
                    color=PALETTE[line.style % len(PALETTE)], zorder=4,
                )  # fmt: skip
    _set_axis(axes, "x", panel.x, [float(x) for line in panel.lines for x in line.x])
    _set_axis(axes, "y", panel.y, [float(y) for line in panel.lines for y in line.y])


def _draw_line(axes: Axes, line: Line, marker: str) -> None:
    thin = line.reference
    colour = REFERENCE if thin else PALETTE[line.style % len(PALETTE)]
    x, y = np.array(line.x, dtype=float), np.array(line.y, dtype=float)
    bars = None
    if line.low is not None and line.high is not None:
        ends = np.array([line.low, line.high], dtype=float)
        bars = np.abs(ends - y) if np.isfinite(ends).any() else None
    # between two points of a front what the cheaper one reaches, in whichever order they are
    steps = "steps-pre" if len(x) and x[0] > x[-1] else "steps-post"
    axes.errorbar(
        x,
        y,
        yerr=bars,
        color=colour,
        linestyle="-." if thin and line.dash == "solid" else _DASHES[line.dash],
        drawstyle=steps if line.dash == "steps" else "default",
        marker=marker,
        markerfacecolor="white" if line.dash in ("dotted", "none") else colour,
        markersize=3 if thin else _MARKER_SIZES.get(marker, 5),
        linewidth=0.8 if thin else 1.4,
        capsize=2,
        elinewidth=0.8,
        label=line.label,
        zorder=1 if thin else 2,
    )


def _set_axis(axes: Axes, which: Literal["x", "y"], axis: Axis, values: Sequence[float]) -> None:
    drawn = axes.xaxis if which == "x" else axes.yaxis
    drawn.set_label_text(axis.label)
    if axis.scale == "linear":
        axes.set(**{f"{which}lim": axis.limits})
        if axis.percent:
            drawn.set_major_formatter(PercentFormatter(1, symbol=" %"))
        return
    axes.set(**{f"{which}scale": "log"})
    drawn.set_inverted(axis.scale == "shrinking")
    drawn.set_minor_locator(NullLocator())
    if axis.scale == "log":
        drawn.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        drawn.set_major_formatter(FuncFormatter(lambda value, _: axis.text(value, 3)))
        return
    marks = sorted({value for value in values if 0 < value < math.inf})
    marks = ticks(marks) if axis.scale == "shrinking" else marks
    turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    texts = [axis.text(mark, 3) for mark in marks]
    drawn.set_ticks(marks, texts, **turned if axis.scale == "shrinking" and len(marks) > 4 else {})


def _draw_heat_maps(chart: Chart, maps: Sequence[HeatMap]) -> Figure:
    rows, columns = grid(chart)
    tables = [heat.table for heat in maps]
    most, numbers = max(map(len, tables)), max(map(len, tables)) <= _NUMBERED
    # inches a row, and points of its name: 160 rows still fill no more than two feet
    pitch, letters = (0.24, 8.0) if numbers else (0.13, 6.5)
    names = max(len(str(name)) for table in tables for name in table.index)
    wide = 0.4 + names * letters / 115 + 0.46 * max(len(table.columns) for table in tables)
    # the colour bar, and room for a title over a single narrow map
    size = (max(5.0, wide * columns + 0.9), 0.5 + (1.0 + pitch * most) * rows)
    figure, drawn = _empty(chart, size, int(size[0] * 12))
    for axes, heat in zip(drawn, maps, strict=True):
        _draw_heat_map(axes, heat, letters, numbers=numbers)
        if len(maps) > 1:
            axes.set_title(_wrapped(heat.title, max(24, int(wide * 12))))
    # of one height in every figure: as tall as the figure it would be a tower
    bar = figure.colorbar(
        drawn[0].images[0], ax=drawn, format=PercentFormatter(1, symbol=" %"),
        shrink=min(1.0, 4.0 / size[1]), anchor=(0.0, 1.0), aspect=25, fraction=0.05,
    )  # fmt: skip
    bar.set_label(maps[0].values + " (numbers: percent)" * numbers)
    return figure


def _draw_heat_map(axes: Axes, heat: HeatMap, letters: float, *, numbers: bool) -> None:
    table = heat.table
    values = table.to_numpy(dtype=float)
    axes.imshow(values, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="none")
    axes.set_xticks(range(len(table.columns)), list(map(str, table.columns)), fontsize=8)
    axes.set_yticks(range(len(table)), list(map(str, table.index)), fontsize=letters)
    axes.tick_params(length=2)
    axes.set_xlabel(heat.columns)
    for (y, x), value in np.ndenumerate(values if numbers else values[:0]):
        if math.isfinite(value):
            style: Any = {"ha": "center", "va": "center", "fontsize": 7}
            colour = "black" if value > 0.6 else "white"
            axes.text(x, y, f"{100 * value:.1f}", color=colour, **style)


def _valid(text: str) -> str:
    """Text without the characters that XML has no way to write."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", "\ufffd", text)


def _with_tooltips(svg: str, figure: Figure, chart: Chart) -> str:
    root = ElementTree.fromstring(svg)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    for element in root.iter():  # names of matplotlib's that are the same in every figure
        if element.get("id") not in used:
            element.attrib.pop("id", None)
    root.attrib |= {"class": "chart", "role": "img", "aria-label": chart.title}
    group = {"fill": "none", "pointer-events": "all"}
    targets = ElementTree.SubElement(root, f"{{{_SVG}}}g", group)
    for axes, panel in zip(figure.axes, chart.panels, strict=False):
        for (left, bottom), (right, top), text in _tooltips(axes, panel):
            shape = (left, figure.get_figheight() * 72 - top, right - left, top - bottom)
            names = ("x", "y", "width", "height")
            attributes = {k: f"{value:.1f}" for k, value in zip(names, shape, strict=True)}
            target = ElementTree.SubElement(targets, f"{{{_SVG}}}rect", attributes)
            ElementTree.SubElement(target, f"{{{_SVG}}}title").text = text
    return ElementTree.tostring(root, encoding="unicode")


def _tooltips(axes: Axes, panel: Panel | HeatMap) -> Iterator[tuple[Any, Any, str]]:
    """Lower left and upper right, in points, of what is pointed at, and its text."""
    if isinstance(panel, HeatMap):
        for (y, x), value in np.ndenumerate(panel.table.to_numpy(dtype=float)):
            if math.isfinite(value):
                corners = axes.transData.transform([(x - 0.5, y + 0.5), (x + 0.5, y - 0.5)])
                row, level = panel.table.index[y], panel.table.columns[x]
                yield *corners, f"{row}\n{panel.columns} {level}: {100 * value:.2f} %"
        return
    for line in sorted(panel.lines, key=lambda line: not line.reference):  # those are behind
        for i, point in enumerate(zip(line.x, line.y, strict=True)):
            at = axes.transData.transform(point)
            if np.isfinite(at).all() and axes.bbox.padded(1).contains(*at):
                yield at - _REACH, at + _REACH, _tooltip(line, panel, i)


def _tooltip(line: Line, panel: Panel, i: int) -> str:
    """The text of a point: its line, values, interval, and its note or number of seeds."""
    parts = [line.label, f"{panel.y.text(line.y[i])} at {panel.x.text(line.x[i])}"]
    if line.low is not None and line.high is not None and math.isfinite(line.low[i]):
        parts.append(f"{panel.y.text(line.low[i])} to {panel.y.text(line.high[i])}")
    parts += [line.notes[i]] if line.notes is not None else []
    return "\n".join(parts)
