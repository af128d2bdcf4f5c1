"""Charts as matplotlib figures, in colours that any eye tells apart."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter
from matplotlib.transforms import ScaledTranslation

from pruneflow.report.charts import Axis, Chart, HeatMap, Line, Panel

# Okabe & Ito's palette, its yellow darkened to be seen on white: told apart with any colour
# vision, and by marker and dash in print.
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F", "#000000",
)  # fmt: skip
REFERENCE = "#888888"
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")
_SIZES = {"*": 8, "P": 6, "X": 6}  # points, of markers that are mostly gaps
_DASHES = {"solid": "-", "dotted": ":", "dashed": "--", "steps": "-", "none": "none"}
_HOLLOW = ("dotted", "none")
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    # names are shown as they are: a pair of dollar signs in one is no formula
    "text.parse_math": False,
}
_COLUMNS = 3
_NUMBERED = 60  # rows of a heat map whose cells still have room for a number


def draw(chart: Chart) -> Figure:
    """A chart as a figure that is ready to be saved.

    Its axes are those of `chart.panels`, in order, then the colour bar of heat maps.

    Raises:
        ValueError: if panels and heat maps are mixed.
    """
    panels = [panel for panel in chart.panels if isinstance(panel, Panel)]
    maps = [panel for panel in chart.panels if isinstance(panel, HeatMap)]
    if panels and maps:
        raise ValueError(f"{chart.title!r} mixes panels and heat maps; make it two charts")
    with matplotlib.rc_context(_STYLE):
        return _heat_maps(chart, maps) if maps else _panels(chart, panels)


def grid(chart: Chart) -> tuple[int, int]:
    """Rows and columns of the grid that a chart's panels lie in."""
    panels = max(1, len(chart.panels))
    columns = 2 if panels == 4 else min(_COLUMNS, panels)
    return math.ceil(panels / columns), columns


def ticks(values: Sequence[float], most: int = 8) -> list[float]:
    """Ticks of a shrinking axis, largest first: values that occur, thinned to what can be read.

    The whole and the smallest model are kept.
    """
    if not values:
        return []
    ordered = sorted(set(values), reverse=True)
    last = ordered[-1]
    apart = max(1.02, (ordered[0] / last) ** (1 / most))
    kept = ordered[:1]
    for value in ordered[1:-1]:
        # a hair of slack: levels of one fraction are equally far apart but for rounding
        if kept[-1] / value >= 0.999 * apart and value / last >= 0.999 * apart:
            kept.append(value)
    return kept if last in kept else [*kept, last]


def _wrapped(text: str, width: int) -> str:
    """A title in lines of about so many characters, broken at its commas and line ends."""
    lines: list[str] = []
    for given in text.split("\n"):
        lines.append("")
        for part in given.split(", "):
            if lines[-1] and len(lines[-1]) + len(part) + 2 > width:
                lines[-1] += ","
                lines.append("")
            lines[-1] += (", " if lines[-1] else "") + part
    return "\n".join(lines)


def _title(chart: Chart, width: int) -> str:
    alone = chart.panels[0].title if len(chart.panels) == 1 else ""
    return "\n".join(_wrapped(text, width) for text in (chart.title, alone) if text)


def _axes(chart: Chart, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    rows, columns = grid(chart)
    figure = Figure(figsize=size, layout="constrained")
    every = figure.subplots(rows, columns, squeeze=False).ravel()
    count = max(1, len(chart.panels))
    for axes in every[count:]:
        axes.remove()
    return figure, list(every[:count])


def _panels(chart: Chart, panels: Sequence[Panel]) -> Figure:
    rows, columns = grid(chart)
    alone = len(panels) == 1
    size = (6.4, 4.6) if columns == 1 else (3.6 * columns, 0.6 + 3.3 * rows)
    figure, drawn = _axes(chart, size)
    references = [line.label for panel in panels for line in panel.lines if line.reference]
    grey = {label: number for number, label in enumerate(dict.fromkeys(references))}
    for axes, panel in zip(drawn, panels, strict=False):
        _panel(axes, panel, grey)
        title = "" if alone else _wrapped(panel.title, 44)
        axes.set_title("\n".join(part for part in (title, _seeds(panel)) if part))
    figure.suptitle(_title(chart, 90 if columns > 1 else 70), fontsize=10)
    if alone or _share_a_legend(panels):
        handles: dict[str, Any] = {}
        for axes in drawn:
            here, labels = axes.get_legend_handles_labels()
            handles = dict(zip(labels, here, strict=True)) | handles
        if handles:
            across = _legend_columns(list(handles), size[0])
            letters = int(18 * (size[0] / across - 0.6))
            labels = [_wrapped(label, letters) for label in handles]
            figure.legend(handles.values(), labels, loc="outside lower center", ncols=across)
    else:
        _legends_below(figure, drawn, 3.6)
    return figure


def _seeds(panel: Panel) -> str:
    """How many seeds are behind the points of a panel, in words; points that differ have theirs."""
    counts = Counter(int(n) for line in panel.lines for n in line.n or ())
    if not counts:
        return ""
    count = _usual(counts)
    text = f"n = {count} seed{'s' * (count > 1)}"
    return text if len(counts) == 1 else f"{text}, else beside the point"


def _usual(counts: Counter[int]) -> int:
    return counts.most_common(1)[0][0]


def _share_a_legend(panels: Sequence[Panel]) -> bool:
    """Whether one legend serves all panels: no label is drawn in two styles, and few are alone.

    A panel may lack lines that others have. Where panels compare different things, one legend
    would be longer than anyone reads.
    """
    styles: dict[str, tuple[object, ...]] = {}
    for panel in panels:
        for line in panel.lines:
            style = (line.style, line.dash, line.reference)
            if styles.setdefault(line.label, style) != style:
                return False
    return len(styles) <= 1.5 * max((len(panel.lines) for panel in panels), default=0)


def _legend_columns(labels: Sequence[str], inches: float) -> int:
    """Columns of a legend that fit: its letters are about an eighteenth of an inch wide."""
    longest = max(map(len, labels))
    fitting = max(1, min(4, int(inches / (0.45 + longest / 18))))
    # as few as its rows need: two and two, not three and one
    return math.ceil(len(labels) / math.ceil(len(labels) / fitting))


def _legends_below(figure: Figure, all_axes: Sequence[Axes], inches: float) -> None:
    """A legend beneath each panel, under its axis's label wherever that comes to lie."""
    figure.draw_without_rendering()  # lays out the labels, which are of any height
    for axes in all_axes:
        handles, labels = axes.get_legend_handles_labels()
        if not handles:
            continue
        beneath = axes.xaxis.get_tightbbox()
        depth = (axes.bbox.y0 - beneath.y0) / figure.dpi if beneath is not None else 0.0
        axes.legend(
            handles,
            labels,
            loc="upper center",
            bbox_to_anchor=(0.5, 0.0),
            bbox_transform=axes.transAxes + ScaledTranslation(0, -depth, figure.dpi_scale_trans),
            ncols=_legend_columns(labels, inches),
            borderaxespad=0.2,
        )


def _panel(axes: Axes, panel: Panel, grey: dict[str, int]) -> None:
    axes.set_axisbelow(True)
    axes.grid(True, alpha=0.3, linewidth=0.6)
    counts = Counter(int(n) for line in panel.lines for n in line.n or ())
    for line in panel.lines:
        # references are all grey: their markers tell them apart
        _line(axes, line, grey.get(line.label, 0) if line.reference else line.style)
        for x, y, n in zip(line.x, line.y, line.n or (), strict=False):
            if n != _usual(counts) and math.isfinite(y):
                axes.annotate(
                    str(n), (x, y), xytext=(4, 3), textcoords="offset points", fontsize=6.5,
                    color=PALETTE[line.style % len(PALETTE)], zorder=4,
                )  # fmt: skip
    _axis(axes, "x", panel.x, [float(x) for line in panel.lines for x in line.x])
    _axis(axes, "y", panel.y, [float(y) for line in panel.lines for y in line.y])


def _line(axes: Axes, line: Line, marker: int) -> None:
    thin = line.reference
    colour = REFERENCE if thin else PALETTE[line.style % len(PALETTE)]
    bars = None
    y = np.array(line.y, dtype=float)
    if line.low is not None and line.high is not None:
        low, high = np.array(line.low, dtype=float), np.array(line.high, dtype=float)
        bars = np.stack([y - low, high - y]).clip(min=0)
        if not np.isfinite(bars).any():
            bars = None
    kind = _MARKERS[marker % len(_MARKERS)]
    # between two points of a front what the cheaper one reaches, in whichever order they are
    steps = "steps-pre" if len(line.x) > 1 and line.x[0] > line.x[-1] else "steps-post"
    axes.errorbar(
        np.array(line.x, dtype=float),
        y,
        yerr=bars,
        color=colour,
        linestyle="-." if thin and line.dash == "solid" else _DASHES[line.dash],
        drawstyle=steps if line.dash == "steps" else "default",
        marker=kind,
        markerfacecolor="white" if line.dash in _HOLLOW else colour,
        markersize=3 if thin else _SIZES.get(kind, 5),
        linewidth=0.8 if thin else 1.4,
        capsize=2,
        elinewidth=0.8,
        label=line.label,
        zorder=1 if thin else 2,
    )


def _axis(axes: Axes, which: str, axis: Axis, values: Sequence[float]) -> None:
    drawn = axes.xaxis if which == "x" else axes.yaxis
    set_limits = axes.set_xlim if which == "x" else axes.set_ylim
    drawn.set_label_text(axis.label)
    low, high = axis.limits
    if axis.scale == "linear":
        if axis.percent:
            drawn.set_major_formatter(PercentFormatter(1, symbol=" %"))
        set_limits(low, high)
        return
    positive = [value for value in values if 0 < value < math.inf]
    (axes.set_xscale if which == "x" else axes.set_yscale)(
        "log", base=2 if axis.scale == "log2" else 10
    )
    if axis.scale == "shrinking":
        marks = ticks(positive)
        least, most = (low or min(positive), high or max(positive)) if positive else (0.1, 1.0)
        room = max(1.05, (most / least) ** 0.06)
        low, high = most * room, least / room
        drawn.set_ticks(marks)
        if len(marks) > 4:
            for label in axes.get_xticklabels():
                label.set(rotation=45, ha="right", rotation_mode="anchor")
    elif axis.scale == "log2":
        drawn.set_ticks(sorted(set(positive)))
    else:
        drawn.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    drawn.set_minor_locator(NullLocator())
    drawn.set_major_formatter(FuncFormatter(lambda value, _: axis.text(value, 3)))
    if low is not None or high is not None:
        set_limits(low, high)


def _heat_maps(chart: Chart, maps: Sequence[HeatMap]) -> Figure:
    rows, columns = grid(chart)
    most = max(len(heat.rows) for heat in maps)
    # inches a row, and points of its name: 160 rows still fill no more than two feet
    pitch, letters = (0.24, 8.0) if most <= _NUMBERED else (0.13, 6.5)
    names = max((len(name) for heat in maps for name in heat.rows), default=0)
    wide = 0.4 + names * letters / 115 + 0.46 * max(len(heat.columns) for heat in maps)
    tall = 1.0 + pitch * max(1, most)
    # the colour bar, and room for a title over a single narrow map
    size = (max(5.0, wide * columns + 0.9), 0.5 + tall * rows)
    figure, drawn = _axes(chart, size)
    for axes, heat in zip(drawn, maps, strict=True):
        _heat_map(axes, heat, letters=letters, numbers=most <= _NUMBERED)
        if len(maps) > 1:
            axes.set_title(_wrapped(heat.title, max(24, int(wide * 12))))
    # of one height in every figure: as tall as the figure it would be a tower
    bar = figure.colorbar(
        drawn[0].images[0], ax=drawn, format=PercentFormatter(1, symbol=" %"),
        shrink=min(1.0, 4.0 / size[1]), anchor=(0.0, 1.0), aspect=25, fraction=0.05,
    )  # fmt: skip
    bar.set_label(f"{maps[0].value_label}{' (numbers: percent)' if most <= _NUMBERED else ''}")
    figure.suptitle(_title(chart, int(size[0] * 12)), fontsize=10)
    return figure


def _heat_map(axes: Axes, heat: HeatMap, *, letters: float, numbers: bool) -> None:
    table = np.array(heat.values, dtype=float).reshape(len(heat.rows), len(heat.columns))
    axes.imshow(table, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="none")
    axes.set_xticks(range(len(heat.columns)), list(heat.columns), fontsize=8)
    axes.set_yticks(range(len(heat.rows)), list(heat.rows), fontsize=letters)
    axes.tick_params(length=2)
    axes.set_xlabel(heat.column_label)
    for (y, x), value in np.ndenumerate(table):
        if numbers and math.isfinite(value):
            colour = "black" if value > 0.6 else "white"
            axes.text(
                x, y, f"{100 * value:.1f}", ha="center", va="center", color=colour, fontsize=7
            )
