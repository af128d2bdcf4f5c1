"""Charts as plotly figures: for the page, where points tell what they are. Nothing is fetched."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from pruneflow.report.charts import Axis, Chart, HeatMap, Line, Panel
from pruneflow.report.static import colour_of, places, seeds_of, ticks, wrapped

_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star")
_DASHES = {"solid": "solid", "dotted": "dot", "dashed": "dash", "steps": "solid", "none": "solid"}
_CONFIG = {"displaylogo": False, "responsive": True}


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


def draw(chart: Chart) -> go.Figure:
    """A chart as a plotly figure. Names are shown as they are, whatever markup they hold."""
    rows, columns = places(chart)
    titles = ["<br>".join(map(html.escape, wrapped(panel.title, 46))) for panel in chart.panels]
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=titles,
        vertical_spacing=min(0.3, 0.42 / rows) if rows > 1 else 0,
        horizontal_spacing=_room(chart, columns),
    )
    told: set[str] = set()
    for number, panel in enumerate(chart.panels):
        at = {"row": number // columns + 1, "col": number % columns + 1}
        if isinstance(panel, HeatMap):
            _heat_map(figure, panel, at, scale=number == 0)
        else:
            _panel(figure, panel, at, told)
    tallest = max((len(p.rows) for p in chart.panels if isinstance(p, HeatMap)), default=0)
    figure.update_layout(
        template="plotly_white",
        title={"text": html.escape(chart.title), "x": 0.01},
        height=max(460, 60 + max(400, 16 * tallest) * rows),
        margin={"t": 100, "l": 70, "r": 20, "b": 60},
        legend={"font": {"size": 11}},
        font={"family": "system-ui, sans-serif"},
    )
    figure.update_annotations(font_size=12)
    return figure


def _room(chart: Chart, columns: int) -> float:
    """Share of the width between panels: heat maps have long names beside them."""
    if columns == 1:
        return 0.0
    longest = max(
        (len(name) for p in chart.panels if isinstance(p, HeatMap) for name in p.rows), default=0
    )
    return min(0.9 / columns, 0.07 + 0.004 * longest)


def _panel(figure: go.Figure, panel: Panel, at: dict[str, int], told: set[str]) -> None:
    for line in panel.lines:
        figure.add_trace(_trace(line, panel, first=line.label not in told), **at)
        told.add(line.label)
    xs = [x for line in panel.lines for x in line.x if math.isfinite(x)]
    figure.update_xaxes(**_axis(panel.x, xs), **at)
    figure.update_yaxes(**_axis(panel.y, []), **at)
    seeds = seeds_of(panel)
    if seeds:
        figure.add_annotation(
            text=seeds, xref="x domain", yref="y domain", x=1, y=1, showarrow=False,
            xanchor="right", yanchor="bottom", font_size=10, **at,
        )  # fmt: skip


def _trace(line: Line, panel: Panel, *, first: bool) -> go.Scatter:
    colour = colour_of(line)
    bars = None
    if line.low is not None and line.high is not None:
        up = [max(0.0, h - y) for h, y in zip(line.high, line.y, strict=True)]
        down = [max(0.0, y - low) for low, y in zip(line.low, line.y, strict=True)]
        bars = {
            "type": "data",
            "symmetric": False,
            "array": _finite(up),
            "arrayminus": _finite(down),
            "thickness": 1,
            "width": 3,
        }
    tell = [html.escape(note) for note in line.notes or [""] * len(line.x)]
    if line.n is not None and line.notes is None:
        tell = [f"{n} seed{'s' * (n > 1)}" for n in line.n]
    x_form, y_form = (".3~%" if axis.percent else ".4~g" for axis in (panel.x, panel.y))
    name = html.escape(line.label)
    return go.Scatter(
        x=list(line.x),
        y=_finite(line.y),
        error_y=bars,
        name=name,
        legendgroup=name,
        showlegend=first,
        mode="markers" if line.dash == "none" else "lines+markers",
        line={
            "color": colour,
            "dash": _DASHES[line.dash],
            "width": 1 if line.reference else 2,
            "shape": "hv" if line.dash == "steps" else "linear",
        },
        marker={
            "symbol": _SYMBOLS[line.marker % len(_SYMBOLS)] + ("-open" if line.hollow else ""),
            "color": colour,
            "size": 5 if line.reference else 8,
        },
        text=tell,
        hovertemplate=f"%{{y:{y_form}}} at %{{x:{x_form}}}<br>%{{text}}<extra>{name}</extra>",
    )


def _finite(values: Sequence[float]) -> list[float | None]:
    """Numbers as JSON takes them: a gap where there is none."""
    return [float(value) if math.isfinite(value) else None for value in values]


def _axis(axis: Axis, values: list[float]) -> dict[str, Any]:
    settings: dict[str, Any] = {"title": {"text": html.escape(axis.label)}}
    if axis.scale == "shrinking":
        values = [value for value in values if value > 0]
        shown = ticks(values)
        settings |= {
            "type": "log",
            "tickvals": shown,
            "ticktext": [f"{100 * value:.3g} %" for value in shown],
        }
        if values:
            low, high = math.log10(min(values)), math.log10(max(values))
            room = max(0.02, 0.06 * (high - low))
            settings["range"] = [high + room, low - room]
        return settings
    if axis.scale == "log2":
        sizes = sorted(set(values))
        shown_sizes = [f"{size:g}" for size in sizes]
        return settings | {"type": "log", "tickvals": sizes, "ticktext": shown_sizes}
    if axis.scale == "log":
        return settings | {"type": "log", "dtick": "D2"}
    if axis.percent:
        settings["tickformat"] = ".0%"
    low_limit, high_limit = axis.limits
    if high_limit is not None:
        settings["range"] = [low_limit, high_limit]
    elif low_limit is not None:
        settings["rangemode"] = "tozero"
    return settings


def _heat_map(figure: go.Figure, heat: HeatMap, at: dict[str, int], *, scale: bool) -> None:
    figure.add_trace(
        go.Heatmap(
            z=[_finite(row) for row in heat.values],
            x=[html.escape(name) for name in heat.columns],
            y=[html.escape(name) for name in heat.rows],
            zmin=0,
            zmax=1,
            colorscale="Viridis",
            showscale=scale,
            colorbar={"tickformat": ".0%", "title": {"text": html.escape(heat.value_label)}},
            hovertemplate="%{y}, %{x}: %{z:.2%}<extra></extra>",
        ),
        **at,
    )
    figure.update_xaxes(title={"text": html.escape(heat.column_label)}, type="category", **at)
    figure.update_yaxes(autorange="reversed", type="category", tickfont={"size": 9}, **at)
