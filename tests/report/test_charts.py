"""Charts: what is drawn of them, in files and on the page."""

from __future__ import annotations

import math

import pytest

from pruneflow.report import interactive, static
from pruneflow.report.charts import Axis, Chart, HeatMap, Line, Panel

LEFT = Axis("left", "shrinking", percent=True)
ACCURACY = Axis("accuracy", percent=True, limits=(0.0, 1.0))
NASTY = "<b>x</b></script><script>alert(1)</script> & y"


def chart(*lines: Line, x: Axis = LEFT) -> Chart:
    return Chart("title", [Panel("panel", x, ACCURACY, lines)])


def test_a_shrinking_axis_runs_from_whole_to_small_with_ticks_where_points_are() -> None:
    drawn = static.draw(chart(Line("a", [1.0, 0.5, 0.25], [0.9, 0.8, 0.7])))
    axes = drawn.axes[0]
    left, right = axes.get_xlim()
    assert left > 1.0 > 0.25 > right
    drawn.canvas.draw()
    assert [t.get_text() for t in axes.get_xticklabels()] == ["100 %", "50 %", "25 %"]
    layout = interactive.draw(chart(Line("a", [1.0, 0.5, 0.25], [0.9, 0.8, 0.7]))).layout
    assert layout.xaxis.range[0] > layout.xaxis.range[1]
    assert list(layout.xaxis.ticktext) == ["100 %", "50 %", "25 %"]


def test_ticks_that_would_meet_are_thinned() -> None:
    values = [0.9**n for n in range(60)]
    kept = static.ticks(values)
    assert 5 <= len(kept) <= 11
    assert set(kept) <= set(values)


def test_intervals_and_gaps_are_drawn_as_they_are() -> None:
    line = Line(
        "a", [1.0, 0.5], [0.8, math.nan], low=[0.7, math.nan], high=[0.95, math.nan], n=[3, 3]
    )
    (trace,) = interactive.draw(chart(line)).data
    assert list(trace.y) == [0.8, None]
    assert trace.error_y.array[0] == pytest.approx(0.15)
    assert trace.error_y.arrayminus[0] == pytest.approx(0.1)
    segments = static.draw(chart(line)).axes[0].containers[0].lines[2][0].get_segments()
    assert segments[0][:, 1].tolist() == pytest.approx([0.7, 0.95])


@pytest.mark.parametrize(
    ("counts", "once", "beside"), [([3, 3], "n = 3 seeds", []), ([3, 1], "", ["3", "1"])]
)
def test_the_number_of_seeds_is_said_once_or_beside_each_point(
    counts: list[int], once: str, beside: list[str]
) -> None:
    axes = static.draw(chart(Line("a", [1.0, 0.5], [0.8, 0.7], n=counts))).axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert texts == ([once] if once else beside)


def test_lines_of_a_panel_differ_in_marker_so_that_print_tells_them_apart() -> None:
    lines = [Line(str(n), [1.0, 0.5], [0.8, 0.7], colour=n, marker=n) for n in range(8)]
    drawn = static.draw(chart(*lines)).axes[0].get_lines()
    markers = {line.get_marker() for line in drawn if line.get_marker() not in ("None", "_", "|")}
    assert len(markers) == 8


def test_panels_that_show_the_same_lines_have_one_legend() -> None:
    panel = Panel("p", LEFT, ACCURACY, [Line("a", [1.0], [0.5]), Line("b", [1.0], [0.6])])
    drawn = static.draw(Chart("t", [panel, panel]))
    assert len(drawn.legends) == 1
    assert all(axes.get_legend() is None for axes in drawn.axes)
    shown = [trace.showlegend for trace in interactive.draw(Chart("t", [panel, panel])).data]
    assert shown == [True, True, False, False]


def test_a_front_stays_until_a_smaller_model_costs_accuracy() -> None:
    line = Line("front", [1.0, 0.5], [0.9, 0.7], dash="steps")
    assert static.draw(chart(line)).axes[0].get_lines()[0].get_drawstyle() == "steps-post"
    assert interactive.draw(chart(line)).data[0].line.shape == "hv"


def test_heat_maps_show_their_numbers_where_they_fit() -> None:
    heat = HeatMap("h", ["a", "b"], ["0", "1"], [[0.0, 0.5], [math.nan, 1.0]], "level", "sparsity")
    axes = static.draw(Chart("t", [heat])).axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.0", "50.0", "100.0"]
    (trace,) = interactive.draw(Chart("t", [heat])).data
    assert trace.z[1][0] is None
    large = HeatMap("h", list(map(str, range(200))), ["0", "1", "2"], [[0.5] * 3] * 200, "l", "s")
    assert not static.draw(Chart("t", [large])).axes[0].texts


def test_names_that_hold_markup_are_shown_as_text() -> None:
    line = Line(NASTY, [1.0], [0.5], notes=[NASTY])
    figure = interactive.draw(Chart(NASTY, [Panel(NASTY, LEFT, ACCURACY, [line])]))
    assert "<b>" not in figure.data[0].name
    text = interactive.fragment(figure, "one")
    assert text.count("</script>") == 1
    assert "<b>" not in text
    assert "alert(1)" in text  # shown, and not run
