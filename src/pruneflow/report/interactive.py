"""Charts as plotly figures: for the page, where points tell what they are. Nothing is fetched."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from pruneflow.report.charts import Axis, Chart, HeatMap, Line, Panel
from pruneflow.report.static import (
    colour_of,
    front_is_pre,
    places,
    reference_markers,
    seeds_of,
    ticks,
    usual_n,
    wrapped,
)

_SYMBOLS = (
    "circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star",
    "triangle-left", "triangle-right", "pentagon", "hexagon",
)  # fmt: skip
_DASHES = {"solid": "solid", "dotted": "dot", "dashed": "dash", "steps": "solid", "none": "solid"}
_CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "showSendToCloud": False,
    "plotlyServerURL": "",
    # named one by one: plotly's own choice has one that sends the figure to its makers' service
    "modeBarButtons": [["toImage"], ["zoom2d", "pan2d", "resetScale2d"]],
}
# pixels: title; labels between rows; labels of the last row; a panel; a row of the legend
_TOP, _BETWEEN, _BELOW, _PANEL, _LEGEND = 130, 160, 85, 300, 29


def library() -> str:
    """The source of plotly.js, to be written into a page once."""
    return str(get_plotlyjs())


def fragment(figure: go.Figure, element_id: str) -> str:
    """A figure as a div and the script that draws it, for a page that holds the library."""
    described = json.loads(figure.to_json())
    data, layout = (_in_script(described[part]) for part in ("data", "layout"))
    return (
        f'<div id="{html.escape(element_id)}" class="figure"></div>\n<script>Plotly.newPlot('
        f"{_in_script(element_id)}, {data}, {layout}, {_in_script(_CONFIG)});</script>"
    )


def _in_script(value: object) -> str:
    """JSON that cannot end the script it stands in."""
    text = json.dumps(value)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _as_text(name: str) -> str:
    """A name that plotly shows as it is: it takes some markup, but does not know `&quot;`."""
    return html.escape(name, quote=False)


def _lines(texts: Sequence[str]) -> str:
    return "<br>".join(_as_text(text) for text in texts if text)


def draw(chart: Chart) -> go.Figure:
    """A chart as a plotly figure. Names are shown as they are, whatever markup they hold.

    A line of one label and look is switched off and on in all panels together.
    """
    rows, columns = places(chart)
    alone = len(chart.panels) == 1
    titles = []
    for panel in chart.panels:
        seeds = seeds_of(panel) if isinstance(panel, Panel) else ""
        titles.append(_lines([*wrapped("" if alone else panel.title, 46), seeds]))
    tallest = max((len(p.rows) for p in chart.panels if isinstance(p, HeatMap)), default=0)
    panel_height = max(400 if alone else _PANEL, 15 * tallest)
    inner = rows * panel_height + (rows - 1) * _BETWEEN
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=titles,
        vertical_spacing=_BETWEEN / inner if rows > 1 else 0,
        horizontal_spacing=_room(chart, columns),
    )
    told: set[str] = set()
    grey = reference_markers(chart)
    for number, panel in enumerate(chart.panels):
        at = {"row": number // columns + 1, "col": number % columns + 1}
        if isinstance(panel, HeatMap):
            _heat_map(figure, panel, at, scale=number == 0)
        else:
            _panel(figure, panel, at, told, grey)
    for number in range(len(chart.panels), rows * columns):
        empty = {"row": number // columns + 1, "col": number % columns + 1}
        figure.update_xaxes(visible=False, **empty)
        figure.update_yaxes(visible=False, **empty)
    # as many rows as it takes on a page of usual width
    shown = [len(trace.name) for trace in figure.data if trace.showlegend and trace.name]
    legend = _LEGEND * math.ceil(sum(7 * letters + 50 for letters in shown) / 1000)
    title = [*chart.title.split("\n"), chart.panels[0].title if alone else ""]
    figure.update_annotations(font_size=12)
    figure.update_layout(
        template="plotly_white",
        title={
            "text": _lines(title),
            "x": 0.01,
            "y": 1,
            "yanchor": "top",
            "pad": {"t": 24},
            "font": {"size": 15},
        },
        height=_TOP + inner + _BELOW + legend,
        margin={"t": _TOP, "l": 70, "r": 20, "b": _BELOW + legend},
        legend={
            "orientation": "h",
            "x": 0,
            "y": 0,
            "yref": "container",
            "yanchor": "bottom",
        },
        font={"family": "system-ui, sans-serif"},
        hoverlabel={"namelength": -1},
    )
    return figure


def _room(chart: Chart, columns: int) -> float:
    """Share of the width between panels: heat maps have long names beside them."""
    if columns == 1:
        return 0.0
    longest = max(
        (len(name) for p in chart.panels if isinstance(p, HeatMap) for name in p.rows), default=0
    )
    return min(0.6 / columns, 0.07 + 0.004 * longest)


def _panel(
    figure: go.Figure, panel: Panel, at: dict[str, int], told: set[str], grey: Mapping[str, int]
) -> None:
    usual = usual_n(panel)
    # references first: they lie behind
    for line in sorted(panel.lines, key=lambda line: not line.reference):
        figure.add_trace(_trace(line, panel, usual, grey), **at)
        trace = figure.data[-1]
        trace.showlegend = trace.legendgroup not in told
        trace.legendrank = 1001 if line.reference else 1000
        told.add(trace.legendgroup)
    if not panel.lines:  # an axis of no trace is not drawn
        figure.add_trace(go.Scatter(x=[None], y=[None], showlegend=False), **at)
    xs = [float(x) for line in panel.lines for x in line.x if math.isfinite(x)]
    figure.update_xaxes(**_axis(panel.x, xs), **at)
    figure.update_yaxes(**_axis(panel.y, []), **at)


def _trace(line: Line, panel: Panel, usual: int | None, grey: Mapping[str, int]) -> go.Scatter:
    colour = colour_of(line)
    marker = grey.get(line.label, 0) if line.reference else line.marker
    bars = None
    if line.low is not None and line.high is not None:
        up = [max(0.0, h - y) for h, y in zip(line.high, line.y, strict=True)]
        down = [max(0.0, y - low) for low, y in zip(line.low, line.y, strict=True)]
        apart = [math.isfinite(u) and math.isfinite(d) for u, d in zip(up, down, strict=True)]
        if any(apart):
            bars = {
                "type": "data",
                "symmetric": False,
                "array": [u if there else 0.0 for u, there in zip(up, apart, strict=True)],
                "arrayminus": [d if there else 0.0 for d, there in zip(down, apart, strict=True)],
                "thickness": 1,
                "width": 3,
            }
    beside = [str(n) if n != usual else "" for n in line.n or ()]
    joined = "markers" if line.dash == "none" else "lines+markers"
    steps = "vh" if front_is_pre(line.x) else "hv"
    dash = "dashdot" if line.reference and line.dash == "solid" else _DASHES[line.dash]
    x_form, y_form = (".3~%" if axis.percent else ".4~g" for axis in (panel.x, panel.y))
    return go.Scatter(
        x=_finite(line.x),
        y=_finite(line.y),
        error_y=bars,
        name=_as_text(line.label),
        legendgroup=f"{line.label} {colour} {marker} {line.dash} {line.hollow}",
        mode=f"{joined}+text" if any(beside) else joined,
        line={
            "color": colour,
            "dash": dash,
            "width": 1 if line.reference else 2,
            "shape": steps if line.dash == "steps" else "linear",
        },
        marker={
            "symbol": _SYMBOLS[marker % len(_SYMBOLS)],
            # white, not open: the line must not be seen through it
            "color": "white" if line.hollow else colour,
            "line": {"color": colour, "width": 1.5},
            "size": 4 if line.reference else 7,
        },
        text=beside or None,
        textposition="top right",
        textfont={"size": 9, "color": colour},
        customdata=_told(line, panel.y.percent),
        # the name is filled in by plotly: in the template, one with %{x} in it would be read
        hovertemplate=f"%{{y:{y_form}}} at %{{x:{x_form}}}%{{customdata}}"
        "<extra>%{fullData.name}</extra>",
    )


def _told(line: Line, percent: bool) -> list[str]:
    """What is said of each point beneath its values: the interval, and its note or its seeds."""
    found = []
    for i in range(len(line.x)):
        parts = []
        if line.low is not None and line.high is not None:
            low, high = line.low[i], line.high[i]
            if math.isfinite(low) and math.isfinite(high):
                parts.append(
                    f"{100 * low:.4g} % to {100 * high:.4g} %"
                    if percent
                    else f"{low:.4g} to {high:.4g}"
                )
        if line.notes is not None:
            parts.append(line.notes[i])
        elif line.n is not None:
            parts.append(f"{line.n[i]} seed{'s' * (line.n[i] > 1)}")
        found.append("".join(f"<br>{_as_text(part)}" for part in parts if part))
    return found


def _finite(values: Sequence[float]) -> list[float | None]:
    """Numbers as JSON takes them: a gap where there is none."""
    return [float(value) if math.isfinite(value) else None for value in values]


def _axis(axis: Axis, values: Sequence[float]) -> dict[str, Any]:
    settings: dict[str, Any] = {"title": {"text": _as_text(axis.label)}}
    low, high = axis.limits
    if axis.scale == "linear":
        if axis.percent:
            settings["tickformat"] = ".0%"
        return settings | _range(low, high)
    settings["type"] = "log"
    positive = [value for value in values if value > 0]
    if axis.scale == "shrinking":
        marks = ticks(positive)
        texts = [f"{100 * v:.3g} %" if axis.percent else f"{v:g}" for v in marks]
        settings |= {"tickvals": marks, "ticktext": texts, "tickangle": -45}
        if not positive:
            return settings | {"autorange": "reversed"}
        least, most = math.log10(low or min(positive)), math.log10(high or max(positive))
        room = max(0.02, 0.06 * (most - least))
        return settings | {"range": [most + room, least - room]}
    if axis.scale == "log2":
        sizes = sorted(set(positive))
        settings |= {"tickvals": sizes, "ticktext": [f"{size:g}" for size in sizes]}
    elif positive:
        # plotly's own marks between the powers of ten are bare digits: 5 for 50
        first, last = (math.floor(math.log10(end(positive))) for end in (min, max))
        marks = [d * 10.0**power for power in range(first - 1, last + 2) for d in (1, 2, 5)]
        texts = [f"{100 * v:.3g} %" if axis.percent else f"{v:g}" for v in marks]
        settings |= {"tickvals": marks, "ticktext": texts}
    return settings | _range(low and math.log10(low), high and math.log10(high))


def _range(low: float | None, high: float | None) -> dict[str, Any]:
    if low is None and high is None:
        return {}
    return {"range": [low, high], "autorange": _open_end(low, high)}


def _open_end(low: float | None, high: float | None) -> str | bool:
    """Which ends plotly is to find: `min`, `max`, or none of them."""
    if low is None:
        return "min"
    return "max" if high is None else False


def _heat_map(figure: go.Figure, heat: HeatMap, at: dict[str, int], *, scale: bool) -> None:
    numbers = len(heat.rows) <= 60
    figure.add_trace(
        go.Heatmap(
            z=[_finite(row) for row in heat.values],
            x=[_as_text(name) for name in heat.columns],
            y=[_as_text(name) for name in heat.rows],
            zmin=0,
            zmax=1,
            colorscale="Viridis",
            showscale=scale,
            colorbar={
                "tickformat": ".0%",
                "title": {"text": _as_text(heat.value_label) + "<br> "},
                "lenmode": "pixels",
                "len": 300,
                "y": 1,
                "yanchor": "top",
            },
            # in percent, as in print: the heading of the colours says so
            text=[
                [f"{100 * v:.1f}" if math.isfinite(v) else "" for v in row] for row in heat.values
            ],
            texttemplate="%{text}" if numbers else None,
            textfont={"size": 10},
            hoverongaps=False,
            hovertemplate=f"%{{y}}<br>{_in_template(heat.column_label)} %{{x}}: "
            "%{z:.2%}<extra></extra>",
        ),
        **at,
    )
    figure.update_xaxes(
        title={"text": _as_text(heat.column_label)}, type="category", showgrid=False, **at
    )
    figure.update_yaxes(
        autorange="reversed", type="category", showgrid=False, automargin=True,
        dtick=1, tickfont={"size": 10}, **at,
    )  # fmt: skip


def _in_template(name: str) -> str:
    return _as_text(name).replace("{", "&#123;")
