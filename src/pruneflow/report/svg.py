"""Figures as files, and as SVG within a page, where a point shows its values when pointed at."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from pruneflow.report.charts import Chart, HeatMap, Line, Panel
from pruneflow.report.static import draw

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
DPI = 110  # of the PNG
_REACH = 5.0  # points around a point that count as pointing at it
ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", _XLINK)


def save(chart: Chart, folder: Path, name: str) -> str:
    """Write a chart as `<name>.png` and `<name>.svg`; the same chart and name, the same bytes.

    Args:
        chart: to be drawn.
        folder: of the files.
        name: of the figure, which the ids of the SVG begin with.

    Returns:
        The SVG as an element for a page: self-contained, of ids that no other figure has.
    """
    figure = draw(chart)
    figure.dpi = DPI
    FigureCanvasAgg(figure).print_png(folder / f"{name}.png")  # type: ignore[no-untyped-call]
    figure.set_layout_engine("none")  # laid out once: both files and the tooltips agree
    text = io.StringIO()
    style: dict[Any, Any] = {"svg.hashsalt": name, "svg.fonttype": "none"}
    with matplotlib.rc_context(style | {"font.sans-serif": ["DejaVu Sans"]}):
        # no date in the file, so that the same runs give the same bytes
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})  # type: ignore[no-untyped-call]
    figure.dpi = 72  # an SVG's unit is a point
    element = _inline(text.getvalue(), figure, chart, name)
    (folder / f"{name}.svg").write_text(element, "utf-8")
    return element


def _inline(text: str, figure: Figure, chart: Chart, name: str) -> str:
    root = ElementTree.fromstring(_valid(text))
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    for element in root.iter():
        if element.get("id") in used:
            element.set("id", f"{name}-{element.get('id')}")
        else:  # a name of matplotlib's that is the same in every figure
            element.attrib.pop("id", None)
        for key, value in element.attrib.items():
            if key.endswith("href") and value.startswith("#"):
                element.set(key, f"#{name}-{value[1:]}")
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{name}-"))
    root.set("class", "chart")
    root.set("role", "img")
    root.set("aria-label", _valid(chart.title))
    height = figure.get_figheight() * 72
    targets = ElementTree.SubElement(
        root, f"{{{_SVG}}}g", {"fill": "none", "pointer-events": "all"}
    )
    for axes, panel in zip(figure.axes, chart.panels, strict=False):
        boxes = _cells(axes, panel) if isinstance(panel, HeatMap) else _points(axes, panel)
        for (left, bottom, right, top), shown in boxes:
            shape = {"x": left, "y": height - top, "width": right - left, "height": top - bottom}
            attributes = {key: f"{value:.1f}" for key, value in shape.items()}
            target = ElementTree.SubElement(targets, f"{{{_SVG}}}rect", attributes)
            ElementTree.SubElement(target, f"{{{_SVG}}}title").text = _valid(shown)
    return ElementTree.tostring(root, encoding="unicode")


def _valid(text: str) -> str:
    """Text without the characters that XML has no way to write."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", "\ufffd", text)


Box = tuple[float, float, float, float]  # left, bottom, right, top, in points


def _points(axes: Axes, panel: Panel) -> Iterator[tuple[Box, str]]:
    """Where each point that is drawn lies, and its text; references first, being behind."""
    for line in sorted(panel.lines, key=lambda line: not line.reference):
        for i, point in enumerate(zip(line.x, line.y, strict=True)):
            x, y = axes.transData.transform(point)
            if math.isfinite(x) and math.isfinite(y) and axes.bbox.padded(1).contains(x, y):
                yield (x - _REACH, y - _REACH, x + _REACH, y + _REACH), tooltip(line, panel, i)


def tooltip(line: Line, panel: Panel, i: int) -> str:
    """The text of a point: its line, values, interval, and its note or number of seeds."""
    parts = [line.label, f"{panel.y.text(line.y[i])} at {panel.x.text(line.x[i])}"]
    if line.low is not None and line.high is not None:
        low, high = line.low[i], line.high[i]
        if math.isfinite(low) and math.isfinite(high):
            parts.append(f"{panel.y.text(low)} to {panel.y.text(high)}")
    if line.notes is not None:
        parts.append(line.notes[i])
    elif line.n is not None:
        parts.append(f"{line.n[i]} seed{'s' * (line.n[i] > 1)}")
    return "\n".join(part for part in parts if part)


def _cells(axes: Axes, heat: HeatMap) -> Iterator[tuple[Box, str]]:
    for (y, x), value in np.ndenumerate(np.array(heat.values, dtype=float)):
        if math.isfinite(value):
            (left, top), (right, bottom) = axes.transData.transform(
                [(x - 0.5, y - 0.5), (x + 0.5, y + 0.5)]
            )
            column = f"{heat.column_label} {heat.columns[x]}"
            text = f"{heat.rows[y]}\n{column}: {100 * value:.2f} %"
            yield (left, bottom, right, top), text
