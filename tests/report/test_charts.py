"""Charts as figures: what is drawn is what the chart says, and is told apart without colour."""

from __future__ import annotations

import math
import re
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from pruneflow.report import charts
from pruneflow.report.charts import FORMS, Axis, Chart, HeatMap, Line, Panel

LEFT = Axis("parameters left", "shrinking", percent=True)
ACCURACY = Axis("accuracy", percent=True, limits=(0.0, 1.02))
X = [1.0, 0.5, 0.25]
HOSTILE = '</svg></title><script>alert(1)</script>--> <b>b</b> & "q" $x$\x00\x0b'
SVG = "{http://www.w3.org/2000/svg}"


def chart(*lines: Line, x: Axis = LEFT, y: Axis = ACCURACY, panels: int = 1) -> Chart:
    return Chart("title", [Panel(f"panel {i}", x, y, lines) for i in range(panels)])


def only(drawn: Any) -> Axes:
    (axes,) = drawn.axes
    return axes


def tick_labels(axes: Axes) -> list[str]:
    axes.figure.draw_without_rendering()
    return [label.get_text() for label in axes.get_xticklabels()]


def test_points_are_those_of_the_line_and_gaps_stay() -> None:
    axes = only(charts.draw(chart(Line("a", X, [0.9, math.nan, 0.7]))))
    line = axes.containers[0].lines[0]
    assert list(line.get_xdata()) == X
    np.testing.assert_array_equal(line.get_ydata(), [0.9, math.nan, 0.7])


def test_shrinking_axis_runs_from_whole_to_small_with_percent_where_values_are() -> None:
    axes = only(charts.draw(chart(Line("a", [1.0, 0.5, 0.125], [0.9, 0.8, 0.7]))))
    left, right = axes.get_xlim()
    assert axes.get_xscale() == "log"
    assert left > 1.0 > 0.125 > right
    assert tick_labels(axes) == ["100 %", "50 %", "12.5 %"]


def test_ticks_keep_both_ends_and_are_apart() -> None:
    levels = [0.8**k for k in range(30)]
    kept = charts.ticks(levels)
    assert (kept[0], kept[-1]) == (1.0, levels[-1])
    assert 5 <= len(kept) <= 9
    steps = [math.log(a / b) for a, b in pairwise(kept)]
    assert min(steps) >= 0.99 * math.log(1 / levels[-1]) / 8
    assert charts.ticks([0.5, 1.0, 0.25]) == [1.0, 0.5, 0.25]
    assert charts.ticks([]) == []


def test_labels_of_thirteen_levels_do_not_overlap() -> None:
    axes = only(charts.draw(chart(Line("a", [0.7**k for k in range(13)], [0.5] * 13))))
    axes.figure.draw_without_rendering()
    at = [label.get_window_extent().x1 for label in axes.get_xticklabels()]
    # turned by 45 degrees, lines of text are apart by the distance of their ends / sqrt 2
    assert min(np.diff(at)) / math.sqrt(2) > 9 / 72 * axes.figure.dpi


def test_batch_sizes_are_plain_numbers_at_what_occurs() -> None:
    line = Line("dense", [1, 8, 64], [3.0, 20.0, 150.0])
    figure = charts.draw(chart(line, x=Axis("batch size", "log2"), y=Axis("ms", "log")))
    axes = only(figure)
    assert tick_labels(axes) == ["1", "8", "64"]
    assert [label.get_text() for label in axes.get_yticklabels() if "$" in label.get_text()] == []


def test_intervals_are_error_bars_and_none_where_there_is_none() -> None:
    line = Line("a", X, [0.9, 0.8, 0.7], low=[0.8, math.nan, 0.65], high=[0.95, math.nan, 0.75])
    axes = only(charts.draw(chart(line)))
    bars = axes.containers[0].lines[2][0].get_segments()
    ends = [tuple(segment[:, 1]) for segment in bars if len(segment)]
    drawn = [end for end in ends if np.isfinite(end).all()]
    assert drawn == [pytest.approx((0.8, 0.95)), pytest.approx((0.65, 0.75))]


@pytest.mark.parametrize(
    ("n", "said", "beside"),
    [
        ([3, 3, 3], "n = 3 seeds", []),
        ([1, 1, 1], "n = 1 seed", []),
        ([3, 3, 2], "n = 3 seeds, else beside the point", ["2"]),
        (None, "", []),
    ],
)
def test_number_of_seeds_is_said_once_and_beside_what_differs(
    n: list[int] | None, said: str, beside: list[str]
) -> None:
    axes = only(charts.draw(chart(Line("a", X, [0.9, 0.8, 0.7], n=n))))
    assert axes.get_title() == said
    assert [text.get_text() for text in axes.texts] == beside
    if beside:
        assert axes.texts[0].xy == (0.25, 0.7)


def height(line: Any, x: float) -> float:
    """Height at which a line of steps passes x, which is between two of its points."""
    xs, ys, style = line.get_xdata(), line.get_ydata(), line.get_drawstyle()
    (i,) = (i for i in range(len(xs) - 1) if min(xs[i : i + 2]) < x < max(xs[i : i + 2]))
    return float({"steps-pre": ys[i + 1], "steps-post": ys[i]}[style])


@pytest.mark.parametrize("order", [1, -1])
def test_a_front_claims_between_two_points_what_the_cheaper_reaches(order: int) -> None:
    x, y = [1.0, 0.5, 0.25][::order], [0.9, 0.8, 0.6][::order]
    axes = only(charts.draw(chart(Line("front", x, y, dash="steps"))))
    line = axes.containers[0].lines[0]
    assert height(line, 0.7) == 0.8
    assert height(line, 0.3) == 0.6


def test_every_line_of_a_panel_differs_in_marker_or_dash() -> None:
    lines = [
        Line(f"{i} {dash}", X, [0.5] * 3, style=i, dash=dash)
        for i in range(12)
        for dash in ("solid", "dotted")
    ]
    lines += [Line(f"paper {i}", X, [0.4] * 3, reference=True) for i in range(3)]
    axes = only(charts.draw(chart(*lines)))
    drawn = [bars.lines[0] for bars in axes.containers]
    assert len(drawn) == 27
    for one, other in combinations(drawn, 2):
        assert (one.get_marker(), one.get_linestyle()) != (
            other.get_marker(),
            other.get_linestyle(),
        )


def test_references_are_grey_thin_and_behind() -> None:
    axes = only(charts.draw(chart(Line("run", X, X), Line("paper", X, X, reference=True))))
    run, paper = (bars.lines[0] for bars in axes.containers)
    assert paper.get_color() == charts.REFERENCE
    assert paper.get_linewidth() < run.get_linewidth()
    assert paper.get_zorder() < run.get_zorder()


def test_hollow_markers_are_white() -> None:
    axes = only(charts.draw(chart(Line("a", X, X, dash="dotted"), Line("b", X, X))))
    assert axes.containers[0].lines[0].get_markerfacecolor() == "white"
    assert axes.containers[1].lines[0].get_markerfacecolor() == charts.PALETTE[0]


def test_one_legend_where_panels_share_their_lines_though_some_lack_one() -> None:
    a, b = Line("a", X, X), Line("b", X, X, style=1)
    shared = Chart("t", [Panel("1", LEFT, ACCURACY, [a]), Panel("2", LEFT, ACCURACY, [a, b])])
    figure = charts.draw(shared)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    assert all(axes.get_legend() is None for axes in figure.axes)


@pytest.mark.parametrize(("panels", "grid"), [(1, (1, 1)), (3, (1, 3)), (4, (2, 2)), (12, (4, 3))])
def test_panels_are_wrapped_into_a_grid(panels: int, grid: tuple[int, int]) -> None:
    many = chart(Line("a", X, X), panels=panels)
    assert charts.grid(many) == grid
    assert len(charts.draw(many).axes) == panels


def test_names_with_dollars_are_no_formulas() -> None:
    figure = charts.draw(chart(Line("$x_1$ {", X, X)))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    (text,) = legend.get_texts()
    assert not text.get_parse_math()


def heat(rows: int) -> HeatMap:
    values = [[0.0, 0.5, math.nan] for _ in range(rows)]
    return HeatMap("", pd.DataFrame(values, [f"r{i}" for i in range(rows)], [0, 1, 2]))


def test_heat_map_has_numbers_where_they_fit_and_white_where_there_are_none() -> None:
    axes = charts.draw(Chart("t", [heat(2)])).axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.0", "50.0"] * 2
    assert axes.images[0].get_clim() == (0, 1)
    assert axes.images[0].to_rgba(np.ma.masked_invalid([[math.nan]]))[0, 0, 3] == 0
    assert [label.get_text() for label in axes.get_yticklabels()] == ["r0", "r1"]


def test_heat_map_of_160_rows_keeps_names_apart() -> None:
    figure = charts.draw(Chart("t", [heat(160)]))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    assert list(axes.texts) == []
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert len(boxes) == 160
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in pairwise(boxes))


def test_heat_maps_share_one_colour_bar() -> None:
    assert len(charts.draw(Chart("t", [heat(2), heat(3)])).axes) == 3


def test_forms_have_colours_and_markers_of_their_own() -> None:
    assert len({charts.PALETTE[number] for number in FORMS.values()}) == 4


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "DPI", 40)


def drawn(chart: Chart, folder: Path, name: str = "curve") -> ElementTree.Element:
    return ElementTree.fromstring(charts.save(chart, folder, name))


def rects(root: ElementTree.Element) -> list[ElementTree.Element]:
    return [rect for rect in root.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None]


def targets(root: ElementTree.Element) -> dict[str, tuple[float, float]]:
    """Text of each target -> where its middle is, in points."""
    found = {}
    for rect in rects(root):
        x, y, width, height = (float(rect.attrib[k]) for k in ("x", "y", "width", "height"))
        found[rect.findtext(f"{SVG}title") or ""] = (x + width / 2, y + height / 2)
    return found


def markers(root: ElementTree.Element) -> set[tuple[float, float]]:
    """Where markers are drawn."""
    uses = root.iter(f"{SVG}use")
    return {(float(use.get("x", "nan")), float(use.get("y", "nan"))) for use in uses}


def test_a_point_shows_its_values_interval_and_seeds_where_it_is_drawn(tmp_path: Path) -> None:
    line = Line(
        "l1", X, [0.9, math.nan, 0.7], low=[0.8, math.nan, math.nan],
        high=[0.95, math.nan, math.nan], notes=["3 seeds", "", "1 seed"],
    )  # fmt: skip
    root = drawn(chart(line), tmp_path)
    found = targets(root)
    assert list(found) == ["l1\n90 % at 100 %\n80 % to 95 %\n3 seeds", "l1\n70 % at 25 %\n1 seed"]
    for x, y in found.values():
        assert min(math.dist((x, y), at) for at in markers(root)) < 0.2


@pytest.mark.parametrize("panels", [1, 3])
def test_every_point_of_every_line_is_where_its_marker_is(tmp_path: Path, panels: int) -> None:
    lines = [
        Line(f"{i}", X, [0.9 / i, 0.8 / i, 0.0], style=i, notes=["a", "b", "c"]) for i in (1, 2)
    ]
    root = drawn(chart(*lines, panels=panels), tmp_path)
    found = rects(root)
    assert len(found) == panels * 6
    assert [rect.findtext(f"{SVG}title") for rect in found[:2]] == [
        "1\n90 % at 100 %\na",
        "1\n80 % at 50 %\nb",
    ]
    for rect in found:
        at = (float(rect.get("x", "")) + charts._REACH, float(rect.get("y", "")) + charts._REACH)
        assert min(math.dist(at, mark) for mark in markers(root)) < 0.2


def test_points_outside_of_the_axes_have_no_target(tmp_path: Path) -> None:
    line = Line("a", [1.0, 0.5, 0.0], [0.9, 2.0, 0.5])
    assert list(targets(drawn(chart(line), tmp_path))) == ["a\n90 % at 100 %"]


def test_a_cell_shows_its_value_and_gaps_none(tmp_path: Path) -> None:
    values = [[0.0, 0.5], [math.nan, 0.123456]]
    heat = HeatMap("", pd.DataFrame(values, ["conv.weight", "fc"], [0, 1]))
    found = targets(drawn(Chart("t", [heat]), tmp_path))
    texts = [
        "conv.weight\nlevel 0: 0.00 %",
        "conv.weight\nlevel 1: 50.00 %",
        "fc\nlevel 1: 12.35 %",
    ]
    assert list(found) == texts
    first, second, third = found.values()
    assert first[0] < second[0] == third[0]
    assert first[1] == second[1] < third[1]


def hostile() -> list[Chart]:
    line = Line(HOSTILE, X, X, notes=[HOSTILE] * 3)
    panels = [Panel(HOSTILE, Axis(HOSTILE), Axis(HOSTILE), [line]) for _ in range(2)]
    heat = HeatMap(HOSTILE, pd.DataFrame([[0.5]], [HOSTILE], [0]))
    return [Chart(HOSTILE, panels), Chart(HOSTILE, [heat])]


@pytest.mark.parametrize("chart", hostile(), ids=["panels", "heat map"])
def test_names_are_text_in_whatever_they_stand(tmp_path: Path, chart: Chart) -> None:
    text = charts.save(chart, tmp_path, "curve")
    root = ElementTree.fromstring(text)
    assert not {e.tag for e in root.iter()} & {f"{SVG}script", f"{SVG}b"}
    assert "<script" not in text
    assert "<!--" not in text
    shown = [e.text or "" for e in root.iter(f"{SVG}text")] + list(targets(root))
    assert any("<script>alert(1)</script>" in one for one in shown)


def test_figures_of_one_page_share_no_id_and_find_their_own(tmp_path: Path) -> None:
    seen: set[str] = set()
    for name in ("one", "two"):
        text = charts.save(chart(Line("a", X, X), panels=2), tmp_path, name)
        ids = re.findall(r'\bid="([^"]+)"', text)
        assert len(ids) == len(set(ids))
        assert not seen & set(ids)
        seen |= set(ids)
        used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
        assert {a or b for a, b in used} == set(ids)


def test_nothing_is_fetched_and_the_same_chart_gives_the_same_bytes(tmp_path: Path) -> None:
    text = charts.save(chart(Line("a", X, X)), tmp_path, "curve")
    assert (tmp_path / "curve.svg").read_text("utf-8") == text
    assert (tmp_path / "curve.png").stat().st_size > 1_000
    addresses = set(re.findall(r"https?://[^\"]+", text))
    assert addresses == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert charts.save(chart(Line("a", X, X)), tmp_path, "curve") == text
