"""Charts as figures: what is drawn is what the chart says, and is told apart without colour."""

from __future__ import annotations

import math
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from pruneflow.report import static
from pruneflow.report.charts import FORMS, Axis, Chart, HeatMap, Line, Panel

LEFT = Axis("parameters left", "shrinking", percent=True)
ACCURACY = Axis("accuracy", percent=True, limits=(0.0, 1.02))
X = [1.0, 0.5, 0.25]


def chart(*lines: Line, x: Axis = LEFT, y: Axis = ACCURACY, panels: int = 1) -> Chart:
    return Chart("title", [Panel(f"panel {i}", x, y, lines) for i in range(panels)])


def only(drawn: Any) -> Axes:
    (axes,) = drawn.axes
    return axes


def tick_labels(axes: Axes) -> list[str]:
    axes.figure.draw_without_rendering()
    return [label.get_text() for label in axes.get_xticklabels()]


def test_points_are_those_of_the_line_and_gaps_stay() -> None:
    axes = only(static.draw(chart(Line("a", X, [0.9, math.nan, 0.7]))))
    line = axes.containers[0].lines[0]
    assert list(line.get_xdata()) == X
    np.testing.assert_array_equal(line.get_ydata(), [0.9, math.nan, 0.7])


def test_shrinking_axis_runs_from_whole_to_small_with_percent_where_values_are() -> None:
    axes = only(static.draw(chart(Line("a", [1.0, 0.5, 0.125], [0.9, 0.8, 0.7]))))
    left, right = axes.get_xlim()
    assert axes.get_xscale() == "log"
    assert left > 1.0 > 0.125 > right
    assert tick_labels(axes) == ["100 %", "50 %", "12.5 %"]


def test_ticks_keep_both_ends_and_are_apart() -> None:
    levels = [0.8**k for k in range(30)]
    kept = static.ticks(levels)
    assert (kept[0], kept[-1]) == (1.0, levels[-1])
    assert 5 <= len(kept) <= 9
    steps = [math.log(a / b) for a, b in pairwise(kept)]
    assert min(steps) >= 0.99 * math.log(1 / levels[-1]) / 8
    assert static.ticks([0.5, 1.0, 0.25]) == [1.0, 0.5, 0.25]
    assert static.ticks([]) == []


def test_labels_of_thirteen_levels_do_not_overlap() -> None:
    axes = only(static.draw(chart(Line("a", [0.7**k for k in range(13)], [0.5] * 13))))
    axes.figure.draw_without_rendering()
    at = [label.get_window_extent().x1 for label in axes.get_xticklabels()]
    # turned by 45 degrees, lines of text are apart by the distance of their ends / sqrt 2
    assert min(np.diff(at)) / math.sqrt(2) > 9 / 72 * axes.figure.dpi


def test_batch_sizes_are_plain_numbers_at_what_occurs() -> None:
    line = Line("dense", [1, 8, 64], [3.0, 20.0, 150.0])
    figure = static.draw(chart(line, x=Axis("batch size", "log2"), y=Axis("ms", "log")))
    axes = only(figure)
    assert tick_labels(axes) == ["1", "8", "64"]
    assert [label.get_text() for label in axes.get_yticklabels() if "$" in label.get_text()] == []


def test_intervals_are_error_bars_and_none_where_there_is_none() -> None:
    line = Line("a", X, [0.9, 0.8, 0.7], low=[0.8, math.nan, 0.65], high=[0.95, math.nan, 0.75])
    axes = only(static.draw(chart(line)))
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
    axes = only(static.draw(chart(Line("a", X, [0.9, 0.8, 0.7], n=n))))
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
    axes = only(static.draw(chart(Line("front", x, y, dash="steps"))))
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
    axes = only(static.draw(chart(*lines)))
    drawn = [bars.lines[0] for bars in axes.containers]
    assert len(drawn) == 27
    for one, other in combinations(drawn, 2):
        assert (one.get_marker(), one.get_linestyle()) != (
            other.get_marker(),
            other.get_linestyle(),
        )


def test_references_are_grey_thin_and_behind() -> None:
    axes = only(static.draw(chart(Line("run", X, X), Line("paper", X, X, reference=True))))
    run, paper = (bars.lines[0] for bars in axes.containers)
    assert paper.get_color() == static.REFERENCE
    assert paper.get_linewidth() < run.get_linewidth()
    assert paper.get_zorder() < run.get_zorder()


def test_hollow_markers_are_white() -> None:
    axes = only(static.draw(chart(Line("a", X, X, dash="dotted"), Line("b", X, X))))
    assert axes.containers[0].lines[0].get_markerfacecolor() == "white"
    assert axes.containers[1].lines[0].get_markerfacecolor() == static.PALETTE[0]


def test_one_legend_where_panels_share_their_lines_though_some_lack_one() -> None:
    a, b = Line("a", X, X), Line("b", X, X, style=1)
    shared = Chart("t", [Panel("1", LEFT, ACCURACY, [a]), Panel("2", LEFT, ACCURACY, [a, b])])
    figure = static.draw(shared)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    assert all(axes.get_legend() is None for axes in figure.axes)


def test_a_legend_a_panel_where_one_label_is_drawn_in_two_ways() -> None:
    one, other = Line("l1", X, X), Line("l1", X, X, style=2)
    mixed = Chart("t", [Panel("1", LEFT, ACCURACY, [one]), Panel("2", LEFT, ACCURACY, [other])])
    figure = static.draw(mixed)
    assert figure.legends == []
    figure.draw_without_rendering()
    for axes in figure.axes:
        legend = axes.get_legend()
        assert legend is not None
        assert legend.get_window_extent().y1 <= axes.xaxis.get_tightbbox().y0 + 1


@pytest.mark.parametrize(("panels", "grid"), [(1, (1, 1)), (3, (1, 3)), (4, (2, 2)), (12, (4, 3))])
def test_panels_are_wrapped_into_a_grid(panels: int, grid: tuple[int, int]) -> None:
    many = chart(Line("a", X, X), panels=panels)
    assert static.grid(many) == grid
    assert len(static.draw(many).axes) == panels


def test_names_with_dollars_are_no_formulas() -> None:
    figure = static.draw(chart(Line("$x_1$ {", X, X)))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    (text,) = legend.get_texts()
    assert not text.get_parse_math()


def heat(rows: int) -> HeatMap:
    values = [[0.0, 0.5, math.nan] for _ in range(rows)]
    return HeatMap("", [f"r{i}" for i in range(rows)], ["0", "1", "2"], values, "level", "sparsity")


def test_heat_map_has_numbers_where_they_fit_and_white_where_there_are_none() -> None:
    axes = static.draw(Chart("t", [heat(2)])).axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.0", "50.0"] * 2
    assert axes.images[0].get_clim() == (0, 1)
    assert axes.images[0].to_rgba(np.ma.masked_invalid([[math.nan]]))[0, 0, 3] == 0
    assert [label.get_text() for label in axes.get_yticklabels()] == ["r0", "r1"]


def test_heat_map_of_160_rows_keeps_names_apart() -> None:
    figure = static.draw(Chart("t", [heat(160)]))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    assert list(axes.texts) == []
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert len(boxes) == 160
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in pairwise(boxes))


def test_heat_maps_share_one_colour_bar() -> None:
    assert len(static.draw(Chart("t", [heat(2), heat(3)])).axes) == 3


def test_panels_and_heat_maps_are_not_mixed() -> None:
    mixed = Chart("both", [heat(2), Panel("", LEFT, ACCURACY, [])])
    with pytest.raises(ValueError, match="'both' mixes"):
        static.draw(mixed)


def test_forms_have_colours_and_markers_of_their_own() -> None:
    assert len({static.PALETTE[number] for number in FORMS.values()}) == 4
