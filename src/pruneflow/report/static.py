"""Charts as matplotlib figures: for files and print, in colours that any eye tells apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from pruneflow.report.charts import Axis, Chart, HeatMap, Line, Panel

# Okabe & Ito's palette: told apart with any colour vision, and by marker and dash in print.
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F", "#000000",
)  # fmt: skip
REFERENCE = "#888888"
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES: dict[str, Any] = {
    "solid": "-",
    "dotted": ":",
    "dashed": "--",
    "steps": "-",
    "none": "none",
}
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
_COLUMNS = 3
_CELLS = 400  # a heat map of more has no numbers in it


def colour_of(line: Line) -> str:
    """The colour that a line is drawn in."""
    return REFERENCE if line.reference else PALETTE[line.colour % len(PALETTE)]


def places(chart: Chart) -> tuple[int, int]:
    """Rows and columns of the grid that a chart's panels lie in."""
    columns = min(_COLUMNS, max(1, len(chart.panels)))
    return max(1, math.ceil(len(chart.panels) / columns)), columns


def shared_legend(chart: Chart) -> bool:
    """Whether one legend says it for all panels."""
    labels = [{line.label for line in p.lines} for p in chart.panels if isinstance(p, Panel)]
    return len(labels) > 1 and all(one <= max(labels, key=len) for one in labels)


def seeds_of(panel: Panel) -> str:
    """How many seeds are behind the points, where that is the same for all of a panel."""
    counts = {int(n) for line in panel.lines for n in line.n or ()}
    if len(counts) != 1:
        return ""
    (count,) = counts
    return f"n = {count} seed{'s' * (count > 1)}"


def wrapped(text: str, width: int) -> list[str]:
    """A title in lines of about so many characters, broken at its commas."""
    lines = [""]
    for part in text.split(", "):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines[-1] += ","
            lines.append("")
        lines[-1] += (", " if lines[-1] else "") + part
    return lines


def draw(chart: Chart) -> Figure:
    """A chart as a figure that is ready to be saved."""
    if any(isinstance(panel, HeatMap) for panel in chart.panels):
        return _heat_maps(chart)
    rows, columns = places(chart)
    with matplotlib.rc_context(_STYLE):
        width = 7.0 if columns == 1 else 4.6 * columns
        figure = Figure(figsize=(width, 0.6 + 4.2 * rows), layout="constrained")
        all_axes = figure.subplots(rows, columns, squeeze=False).ravel()
        shared = shared_legend(chart)
        for axes, panel in zip(all_axes, chart.panels, strict=False):
            assert isinstance(panel, Panel)
            _panel(axes, panel, legend=len(chart.panels) > 1 and not shared)
            if len(chart.panels) > 1:
                axes.set_title("\n".join(wrapped(panel.title, 44)), fontsize=9)
        for axes in all_axes[len(chart.panels) :]:
            axes.remove()
        if shared or len(chart.panels) == 1:
            most = max(all_axes[: len(chart.panels)], key=lambda one: len(one.get_lines()))
            handles, labels = most.get_legend_handles_labels()
            columns = max(1, min(4, len(labels), 90 // max(map(len, labels), default=1)))
            figure.legend(handles, labels, loc="outside lower center", ncols=columns)
        title = chart.title
        if len(chart.panels) == 1 and chart.panels[0].title:
            title += "\n" + "\n".join(wrapped(chart.panels[0].title, 80))
        figure.suptitle(title, fontsize=11)
    return figure


def _panel(axes: Axes, panel: Panel, *, legend: bool) -> None:
    same_seeds = seeds_of(panel)
    for line in panel.lines:
        _line(axes, line, seeds=not same_seeds)
    xs = [x for line in panel.lines for x in line.x if math.isfinite(x)]
    ys = [y for line in panel.lines for y in line.y if math.isfinite(y)]
    _axis(axes, "x", panel.x, xs)
    _axis(axes, "y", panel.y, ys)
    if same_seeds:
        axes.text(
            0.99, 1.0, same_seeds, transform=axes.transAxes, ha="right", va="bottom", fontsize=7
        )
    if legend and panel.lines:
        axes.legend(fontsize=7)


def _line(axes: Axes, line: Line, *, seeds: bool) -> None:
    colour = colour_of(line)
    x, y = np.array(line.x, dtype=float), np.array(line.y, dtype=float)
    bars = None
    if line.low is not None and line.high is not None:
        low, high = np.array(line.low, dtype=float), np.array(line.high, dtype=float)
        bars = np.nan_to_num(np.stack([y - low, high - y]), nan=0.0).clip(min=0)
        if not bars.any():
            bars = None
    thin = line.reference
    axes.errorbar(
        x,
        y,
        yerr=bars,
        color=colour,
        linestyle=_DASHES[line.dash],
        drawstyle="steps-post" if line.dash == "steps" else "default",
        marker=_MARKERS[line.marker % len(_MARKERS)],
        markerfacecolor="white" if line.hollow else colour,
        markersize=3 if thin else 5,
        linewidth=0.8 if thin else 1.5,
        capsize=2,
        elinewidth=0.8,
        label=line.label,
        zorder=1 if thin else 2,
    )
    if seeds and line.n is not None:
        for at, value, n in zip(x, y, line.n, strict=True):
            axes.annotate(
                str(n), (at, value), xytext=(4, 3), textcoords="offset points", fontsize=6,
                color=colour,
            )  # fmt: skip


def ticks(values: Sequence[float]) -> list[float]:
    """Ticks of a shrinking axis: values that occur, thinned so that their labels do not meet."""
    kept: list[float] = []
    span = max(values) / min(values) if values else 1.0
    apart = max(1.02, span ** (1 / 9))
    for value in sorted(set(values), reverse=True):
        if not kept or kept[-1] / value >= apart:
            kept.append(value)
    return kept


def _axis(axes: Axes, which: str, axis: Axis, values: list[float]) -> None:
    own = getattr(axes, f"{which}axis")
    getattr(axes, f"set_{which}label")(axis.label)
    if axis.scale == "shrinking":
        values = [value for value in values if value > 0]
        axes.set_xscale("log")
        if values:
            low, high = min(values), max(values)
            room = max(1.05, (high / low) ** 0.06)
            axes.set_xlim(high * room, low / room)
            axes.set_xticks(ticks(values))
        own.set_minor_locator(NullLocator())
        own.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
        axes.tick_params(axis="x", labelrotation=45)
        return
    if axis.scale == "log2":
        axes.set_xscale("log", base=2)
        sizes = sorted(set(values))
        axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
        own.set_minor_locator(NullLocator())
        return
    if axis.scale == "log":
        getattr(axes, f"set_{which}scale")("log")
        own.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        own.set_minor_formatter(FuncFormatter(_minor))
        own.set_tick_params(which="minor", labelsize=7)
    elif axis.percent:
        own.set_major_formatter(PercentFormatter(1))
    getattr(axes, f"set_{which}lim")(*axis.limits)


def _minor(value: float, _: object) -> str:
    """Labels of a log axis between its powers of ten: 2 and 5 of each."""
    leading = value / 10 ** math.floor(math.log10(value))
    return f"{value:g}" if round(leading) in (2, 5) else ""


def _heat_maps(chart: Chart) -> Figure:
    maps = [panel for panel in chart.panels if isinstance(panel, HeatMap)]
    rows, columns = places(chart)
    with matplotlib.rc_context(_STYLE | {"axes.grid": False}):
        widest = max(
            2.6 + 0.09 * max(map(len, m.rows), default=0) + 0.5 * len(m.columns) for m in maps
        )
        tallest = max(1.6 + min(0.26 * len(m.rows), 20.0) for m in maps)
        size = (max(5.0, widest * columns), 0.5 + tallest * rows)
        figure = Figure(figsize=size, layout="constrained")
        all_axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, heat in zip(all_axes, maps, strict=False):
            _heat_map(axes, heat)
            if len(maps) > 1:
                axes.set_title("\n".join(wrapped(heat.title, 40)), fontsize=9)
        for axes in all_axes[len(maps) :]:
            axes.remove()
        image = all_axes[0].images[0]
        bar = figure.colorbar(image, ax=list(all_axes[: len(maps)]), format=PercentFormatter(1))
        bar.set_label(f"{maps[0].value_label} (numbers: percent)")
        figure.suptitle(chart.title if len(maps) > 1 else f"{chart.title}\n{maps[0].title}".strip())
    return figure


def _heat_map(axes: Axes, heat: HeatMap) -> None:
    table = np.array(heat.values, dtype=float).reshape(len(heat.rows), len(heat.columns))
    axes.imshow(table, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    axes.set_xticks(range(len(heat.columns)), list(heat.columns))
    size = 9 if len(heat.rows) <= 60 else 5
    axes.set_yticks(range(len(heat.rows)), list(heat.rows), fontsize=size)
    axes.set_xlabel(heat.column_label)
    if table.size > _CELLS:
        return
    for (y, x), value in np.ndenumerate(table):
        if math.isfinite(value):
            colour = "black" if value > 0.6 else "white"
            axes.text(
                x, y, f"{100 * value:.1f}", ha="center", va="center", color=colour, fontsize=7
            )
