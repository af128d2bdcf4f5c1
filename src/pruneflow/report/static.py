"""Charts as matplotlib figures: for files and print, in colours that any eye tells apart."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis as DrawnAxis
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
_DASHES: dict[str, Any] = {
    "solid": "-",
    "dotted": ":",
    "dashed": "--",
    "steps": "-",
    "none": "none",
}
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


def colour_of(line: Line) -> str:
    """The colour that a line is drawn in."""
    return REFERENCE if line.reference else PALETTE[line.colour % len(PALETTE)]


def reference_markers(chart: Chart) -> dict[str, int]:
    """A marker's number for each label of a reference: all are grey and would look the same."""
    labels = [
        line.label
        for panel in chart.panels
        if isinstance(panel, Panel)
        for line in panel.lines
        if line.reference
    ]
    return {label: number for number, label in enumerate(dict.fromkeys(labels))}


def places(chart: Chart) -> tuple[int, int]:
    """Rows and columns of the grid that a chart's panels lie in."""
    panels = max(1, len(chart.panels))
    columns = 2 if panels == 4 else min(_COLUMNS, panels)
    return math.ceil(panels / columns), columns


def shared_legend(chart: Chart) -> bool:
    """Whether one legend says it for all panels: no label is drawn in two ways, and few are alone.

    A panel may lack lines that others have. Where panels compare different things, one legend
    would be longer than anyone reads.
    """
    looks: dict[str, tuple[object, ...]] = {}
    fullest = 0
    for panel in chart.panels:
        if not isinstance(panel, Panel):
            return False
        fullest = max(fullest, len(panel.lines))
        for line in panel.lines:
            look = (line.colour, line.marker, line.dash, line.hollow, line.reference)
            if looks.setdefault(line.label, look) != look:
                return False
    return len(looks) <= 1.5 * fullest


def front_is_pre(x: Sequence[float]) -> bool:
    """Whether a front's steps go down or up first and along second, in the order of its points.

    A front tells the best accuracy measured at most at a cost. Between two points that is what
    the cheaper one reaches, whichever way the points are listed and the axis runs.
    """
    return len(x) > 1 and x[0] > x[-1]


def usual_n(panel: Panel) -> int | None:
    """The number of seeds behind most points of a panel; None where points have none."""
    counts = Counter(int(n) for line in panel.lines for n in line.n or ())
    return counts.most_common(1)[0][0] if counts else None


def seeds_of(panel: Panel) -> str:
    """How many seeds are behind the points of a panel, in words; points that differ say so."""
    count = usual_n(panel)
    if count is None:
        return ""
    text = f"n = {count} seed{'s' * (count > 1)}"
    same = all(n == count for line in panel.lines for n in line.n or ())
    return text if same else f"{text}, else beside the point"


def wrapped(text: str, width: int) -> list[str]:
    """A title in lines of about so many characters, broken at its commas and line ends."""
    lines: list[str] = []
    for given in text.split("\n"):
        lines.append("")
        for part in given.split(", "):
            if lines[-1] and len(lines[-1]) + len(part) + 2 > width:
                lines[-1] += ","
                lines.append("")
            lines[-1] += (", " if lines[-1] else "") + part
    return lines


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


def draw(chart: Chart) -> Figure:
    """A chart as a figure that is ready to be saved.

    Raises:
        ValueError: if panels and heat maps are mixed.
    """
    panels = [panel for panel in chart.panels if isinstance(panel, Panel)]
    maps = [panel for panel in chart.panels if isinstance(panel, HeatMap)]
    if panels and maps:
        raise ValueError(f"{chart.title!r} mixes panels and heat maps; make it two charts")
    with matplotlib.rc_context(_STYLE):
        return _heat_maps(chart, maps) if maps else _panels(chart, panels)


def _panels(chart: Chart, panels: Sequence[Panel]) -> Figure:
    rows, columns = places(chart)
    alone = len(panels) == 1
    size = (6.4, 4.6) if columns == 1 else (3.6 * columns, 0.6 + 3.3 * rows)
    figure = Figure(figsize=size, layout="constrained")
    every = figure.subplots(rows, columns, squeeze=False).ravel()
    grey = reference_markers(chart)
    for axes, panel in zip(every, panels, strict=False):
        _panel(axes, panel, grey)
        title = wrapped("" if alone else panel.title, 44)
        axes.set_title("\n".join(part for part in [*title, seeds_of(panel)] if part))
    for axes in every[len(panels) :]:
        axes.remove()
    figure.suptitle(_title(chart, 90 if columns > 1 else 70), fontsize=10)
    drawn = every[: len(panels)]
    if alone or shared_legend(chart):
        handles: dict[str, Any] = {}
        for axes in drawn:
            found, labels = axes.get_legend_handles_labels()
            handles = dict(zip(labels, found, strict=True)) | handles
        if handles:
            across = _legend_columns(list(handles), size[0])
            letters = int(18 * (size[0] / across - 0.6))
            labels = ["\n".join(wrapped(label, letters)) for label in handles]
            figure.legend(handles.values(), labels, loc="outside lower center", ncols=across)
    else:
        _legends_below(figure, list(drawn), 3.6)
    return figure


def _title(chart: Chart, width: int) -> str:
    own = chart.panels[0].title if len(chart.panels) == 1 else ""
    return "\n".join(line for text in (chart.title, own) if text for line in wrapped(text, width))


def _legend_columns(labels: Sequence[str], inches: float) -> int:
    """Columns of a legend that fit: its letters are about an eighteenth of an inch wide."""
    longest = max(map(len, labels))
    fitting = max(1, min(4, int(inches / (0.45 + longest / 18))))
    # as few as its rows need: two and two, not three and one
    return math.ceil(len(labels) / math.ceil(len(labels) / fitting))


def _legends_below(figure: Figure, all_axes: Sequence[Axes], inches: float) -> None:
    """A legend beneath each panel, under its axis's label wherever that comes to lie."""
    figure.draw_without_rendering()  # places the labels, which are of any height
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


def _panel(axes: Axes, panel: Panel, grey: Mapping[str, int]) -> None:
    axes.set_axisbelow(True)
    axes.grid(True, alpha=0.3, linewidth=0.6)
    usual = usual_n(panel)
    for line in panel.lines:
        _line(axes, line, grey.get(line.label, 0) if line.reference else line.marker, usual)
    xs = [float(x) for line in panel.lines for x in line.x if math.isfinite(x)]
    _axis(axes, "x", panel.x, xs)
    ys = [float(y) for line in panel.lines for y in line.y if math.isfinite(y)]
    _axis(axes, "y", panel.y, ys)


def _line(axes: Axes, line: Line, marker: int, usual: int | None) -> None:
    colour, thin = colour_of(line), line.reference
    x, y = np.array(line.x, dtype=float), np.array(line.y, dtype=float)
    bars = None
    if line.low is not None and line.high is not None:
        low, high = np.array(line.low, dtype=float), np.array(line.high, dtype=float)
        bars = np.stack([y - low, high - y]).clip(min=0)
        if not np.isfinite(bars).any():
            bars = None
    kind = _MARKERS[marker % len(_MARKERS)]
    steps = "steps-pre" if front_is_pre(line.x) else "steps-post"
    axes.errorbar(
        x,
        y,
        yerr=bars,
        color=colour,
        linestyle="-." if thin and line.dash == "solid" else _DASHES[line.dash],
        drawstyle=steps if line.dash == "steps" else "default",
        marker=kind,
        markerfacecolor="white" if line.hollow else colour,
        markersize=3 if thin else _SIZES.get(kind, 5),
        linewidth=0.8 if thin else 1.4,
        capsize=2,
        elinewidth=0.8,
        label=line.label,
        zorder=1 if thin else 2,
    )
    for at, value, n in zip(x, y, line.n or (), strict=False):
        if n != usual and math.isfinite(value):
            axes.annotate(
                str(n), (at, value), xytext=(4, 3), textcoords="offset points", fontsize=6.5,
                color=colour, zorder=4,
            )  # fmt: skip


def _axis(axes: Axes, which: str, axis: Axis, values: Sequence[float]) -> None:
    own: DrawnAxis = getattr(axes, f"{which}axis")
    own.set_label_text(axis.label)
    low, high = axis.limits
    positive = [value for value in values if value > 0]
    if axis.scale == "linear":
        if axis.percent:
            own.set_major_formatter(PercentFormatter(1, symbol=" %"))
        getattr(axes, f"set_{which}lim")(low, high)
        return
    getattr(axes, f"set_{which}scale")("log", base=2 if axis.scale == "log2" else 10)
    shown: FuncFormatter = FuncFormatter(lambda value, _: f"{value:g}")
    if axis.percent:
        shown = FuncFormatter(lambda value, _: f"{100 * value:.3g} %")
    if axis.scale == "shrinking":
        if positive:
            least, most = low or min(positive), high or max(positive)
            room = max(1.05, (most / least) ** 0.06)
            low, high = most * room, least / room
            marks = ticks(positive)
            own.set_ticks(marks)
            if len(marks) > 4:
                for label in axes.get_xticklabels():
                    label.set(rotation=45, ha="right", rotation_mode="anchor")
        else:
            low, high = high, low
            own.set_inverted(True)
            own.set_ticks([])
    elif axis.scale == "log2":
        own.set_ticks(sorted(set(positive)))
    else:
        own.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    own.set_minor_locator(NullLocator())
    own.set_major_formatter(shown)
    if low is not None or high is not None:
        getattr(axes, f"set_{which}lim")(low, high)


def _heat_maps(chart: Chart, maps: Sequence[HeatMap]) -> Figure:
    rows, columns = places(chart)
    most = max(len(heat.rows) for heat in maps)
    # inches a row, and points of its name: 160 rows still fill no more than two feet
    pitch, letters = (0.24, 8.0) if most <= 60 else (0.13, 6.5)
    names = max((len(name) for heat in maps for name in heat.rows), default=0)
    wide = 0.4 + names * letters / 115 + 0.46 * max(len(heat.columns) for heat in maps)
    tall = 1.0 + pitch * max(1, most)
    # the colour bar, and room for a title over a single narrow map
    size = (max(5.0, wide * columns + 0.9), 0.5 + tall * rows)
    figure = Figure(figsize=size, layout="constrained")
    every = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, heat in zip(every, maps, strict=False):
        _heat_map(axes, heat, letters=letters, numbers=most <= 60)
        if len(maps) > 1:
            axes.set_title("\n".join(wrapped(heat.title, max(24, int(wide * 12)))))
    for axes in every[len(maps) :]:
        axes.remove()
    # of one height wherever it stands: as tall as the figure it would be a tower
    share = min(1.0, 4.0 / size[1])
    bar = figure.colorbar(
        every[0].images[0], ax=list(every[: len(maps)]), format=PercentFormatter(1, symbol=" %"),
        shrink=share, anchor=(0.0, 1.0), aspect=25, fraction=0.05,
    )  # fmt: skip
    bar.set_label(f"{maps[0].value_label}{' (numbers: percent)' if most <= 60 else ''}")
    figure.suptitle(_title(chart, int(size[0] * 12)), fontsize=10)
    return figure


def _heat_map(axes: Axes, heat: HeatMap, *, letters: float, numbers: bool) -> None:
    table = np.array(heat.values, dtype=float).reshape(len(heat.rows), len(heat.columns))
    axes.imshow(table, aspect="auto", cmap="viridis", vmin=0, vmax=1)
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
