"""Charts on a page: the same content, names as text, and nothing fetched."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser

import pytest

from pruneflow.report import interactive, static
from pruneflow.report.charts import Axis, Chart, HeatMap, Line, Panel

LEFT = Axis("parameters left", "shrinking", percent=True)
ACCURACY = Axis("accuracy", percent=True, limits=(0.0, 1.02))
X = [1.0, 0.5, 0.25]
HOSTILE = '</script><script>alert(1)</script> <b>b</b> & "q" %{x}'
SHOWN = '&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt; &lt;b&gt;b&lt;/b&gt; &amp; "q" %{x}'


def chart(*lines: Line, panels: int = 1, x: Axis = LEFT) -> Chart:
    return Chart("title", [Panel(f"panel {i}", x, ACCURACY, lines) for i in range(panels)])


def test_points_gaps_and_intervals() -> None:
    line = Line("a", X, [0.9, math.nan, 0.7], low=[0.8, math.nan, 0.7], high=[1.0, math.nan, 0.8])
    (trace,) = interactive.draw(chart(line)).data
    assert list(trace.x) == X
    assert list(trace.y) == [0.9, None, 0.7]
    assert list(trace.error_y.array) == pytest.approx([0.1, 0.0, 0.1])
    assert list(trace.error_y.arrayminus) == pytest.approx([0.1, 0.0, 0.0])
    assert trace.customdata[0] == "<br>80 % to 100 %"


def test_shrinking_axis_is_reversed_and_has_the_ticks_of_print() -> None:
    levels = [0.7**k for k in range(13)]
    axis = interactive.draw(chart(Line("a", levels, [0.5] * 13))).layout.xaxis
    left, right = axis.range
    assert axis.type == "log"
    assert left > 0 > math.log10(levels[-1]) > right
    assert list(axis.tickvals) == static.ticks(levels)
    assert axis.ticktext[0] == "100 %"


def test_batch_sizes_are_plain_numbers() -> None:
    axis = interactive.draw(chart(Line("a", [1, 8, 64], X), x=Axis("batch", "log2"))).layout.xaxis
    assert (axis.type, list(axis.ticktext)) == ("log", ["1", "8", "64"])


def test_times_are_told_in_full_between_the_powers_of_ten() -> None:
    axis = interactive.draw(chart(Line("a", [15, 50], X), x=Axis("ms", "log"))).layout.xaxis
    assert {10, 20, 50} <= set(axis.tickvals)
    assert {"10", "20", "50"} <= set(axis.ticktext)


def test_a_line_is_in_the_legend_once_and_hidden_in_all_panels() -> None:
    traces = interactive.draw(chart(Line("a", X, X), Line("b", X, X, colour=1), panels=3)).data
    assert [trace.showlegend for trace in traces] == [True, True, False, False, False, False]
    assert len({trace.legendgroup for trace in traces if trace.name == "a"}) == 1
    assert len({trace.legendgroup for trace in traces}) == 2


def test_one_label_drawn_in_two_ways_is_in_the_legend_twice() -> None:
    panels = [Panel("", LEFT, ACCURACY, [Line("l1", X, X, colour=i, marker=i)]) for i in (0, 1)]
    assert [trace.showlegend for trace in interactive.draw(Chart("", panels)).data] == [True, True]


def test_number_of_seeds_is_said_once_and_beside_what_differs() -> None:
    figure = interactive.draw(chart(Line("a", X, X, n=[3, 3, 2])))
    assert figure.layout.annotations[0].text == "n = 3 seeds, else beside the point"
    (trace,) = figure.data
    assert list(trace.text) == ["", "", "2"]
    assert list(trace.customdata) == ["<br>3 seeds", "<br>3 seeds", "<br>2 seeds"]


def test_every_line_differs_in_symbol_or_dash_and_references_lie_behind() -> None:
    lines = [Line(f"{i}", X, X, colour=i, marker=i) for i in range(12)]
    lines += [Line(f"paper {i}", X, X, reference=True) for i in range(3)]
    traces = interactive.draw(chart(*lines)).data
    assert len({(trace.marker.symbol, trace.line.dash) for trace in traces}) == 15
    assert [trace.name for trace in traces[:3]] == ["paper 0", "paper 1", "paper 2"]


@pytest.mark.parametrize(("x", "shape"), [(X, "vh"), (X[::-1], "hv")])
def test_a_front_claims_between_two_points_what_the_cheaper_reaches(
    x: list[float], shape: str
) -> None:
    (trace,) = interactive.draw(chart(Line("front", x, x, dash="steps"))).data
    assert trace.line.shape == shape


def test_names_are_text_wherever_they_stand() -> None:
    line = Line(HOSTILE, X, X, notes=[HOSTILE] * 3)
    panels = [Panel(HOSTILE, Axis(HOSTILE), Axis(HOSTILE), [line]) for _ in range(2)]
    figure = interactive.draw(Chart(HOSTILE, panels))
    assert figure.layout.title.text == SHOWN
    assert figure.layout.xaxis.title.text == SHOWN
    assert figure.layout.annotations[0].text == SHOWN
    assert figure.data[0].name == SHOWN
    assert figure.data[0].customdata[0] == f"<br>{SHOWN}"
    # a template fills in %{...}: a name must not be part of one
    assert "alert" not in figure.data[0].hovertemplate
    heat = HeatMap(HOSTILE, [HOSTILE], [HOSTILE], [[0.5]], HOSTILE, HOSTILE)
    mapped = interactive.draw(Chart(HOSTILE, [heat]))
    assert list(mapped.data[0].x) == list(mapped.data[0].y) == [SHOWN]
    assert "%{x}" not in mapped.data[0].hovertemplate.replace(" %{x}: ", "")


class Scripts(HTMLParser):
    """Counts the elements that a page really has."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert {name for name, _ in attrs} <= {"id", "class"}


def test_a_name_cannot_end_the_script() -> None:
    text = interactive.fragment(interactive.draw(chart(Line(HOSTILE, X, X))), 'a"><b>')
    page = Scripts()
    page.feed(text)
    assert page.tags == ["div", "script"]
    assert text.count("</script") == 1


def test_fragment_holds_the_figure_and_no_library() -> None:
    text = interactive.fragment(interactive.draw(chart(Line("a", X, X))), "curve")
    assert '<div id="curve"' in text
    assert len(text) < 50_000
    _, _, arguments = text.partition('newPlot("curve", ')
    data, _ = json.JSONDecoder().raw_decode(arguments)
    assert data[0]["x"] == X


def test_nothing_leaves_the_page() -> None:
    text = interactive.fragment(interactive.draw(chart(Line("a", X, X))), "curve")
    assert "http" not in text
    assert "src=" not in text
    # plotly's own buttons would have one that sends the figure to its makers
    assert '"showSendToCloud": false' in text
    assert '"plotlyServerURL": ""' in text
    buttons = re.search(r'"modeBarButtons": (\[\[.*?\]\])', text)
    assert buttons is not None
    assert "sendChartToCloud" not in buttons[1]


def test_library_can_stand_in_a_script() -> None:
    source = interactive.library()
    assert "plotly.js" in source[:200]
    assert "</script" not in source.lower()
    assert "<!--" not in source


def test_heat_map_leaves_gaps_and_shares_its_colours() -> None:
    heat = HeatMap("", ["a", "b"], ["0", "1"], [[0.0, 0.5], [math.nan, 1.0]], "level", "sparsity")
    traces = interactive.draw(Chart("", [heat, heat])).data
    assert [list(row) for row in traces[0].z] == [[0.0, 0.5], [None, 1.0]]
    assert (traces[0].zmin, traces[0].zmax) == (0, 1)
    assert [trace.showscale for trace in traces] == [True, False]
    assert [list(row) for row in traces[0].text] == [["0.0", "50.0"], ["", "100.0"]]
