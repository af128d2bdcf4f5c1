"""Figures show the records they are drawn from."""

from __future__ import annotations

import pytest
from records import latency, level

from pruneflow.report import figures, static
from pruneflow.report.charts import FORMS, Chart, HeatMap, Panel
from pruneflow.tracking.levels import Layer

LEVELS = [level(0, 1.0, 0.9), level(1, 0.5, 0.85), level(2, 0.25, 0.7)]


def panel(chart: Chart, number: int = 0) -> Panel:
    found = chart.panels[number]
    assert isinstance(found, Panel)
    return found


def test_accuracy_curves_are_the_four_of_the_levels() -> None:
    lines = panel(figures.accuracy_curves(LEVELS, "title")).lines
    drawn = {line.label: list(line.y) for line in lines}
    assert drawn["test, after fine-tuning"] == [0.9, 0.85, 0.7]
    assert drawn["test, before fine-tuning"] == pytest.approx([0.8, 0.75, 0.6])
    assert drawn["train, after fine-tuning"] == pytest.approx([0.95, 0.9, 0.75])
    assert drawn["train, before fine-tuning"] == pytest.approx([0.85, 0.8, 0.65])
    assert len(drawn) == 4
    assert all(list(line.x) == [1.0, 0.5, 0.25] for line in lines)
    assert [line.hollow for line in lines] == [False, True, False, True]


def test_accuracy_is_drawn_against_params_left_from_whole_to_small() -> None:
    axis = panel(figures.accuracy_curves(LEVELS, "title")).x
    assert (axis.scale, axis.percent) == ("shrinking", True)


def test_heat_map_has_a_row_per_tensor_in_model_order_and_a_column_per_level() -> None:
    rows = [
        Layer(number, name, "Linear", "2x2", 4, zeros, zeros / 4)
        for number, (first, second) in enumerate([(0, 0), (1, 3)])
        for name, zeros in (("b.weight", first), ("a.weight", second))
    ]
    (heat,) = figures.layer_sparsity(rows, "title").panels
    assert isinstance(heat, HeatMap)
    assert list(heat.rows) == ["b.weight", "a.weight"]
    assert list(heat.columns) == ["0", "1"]
    assert [list(row) for row in heat.values] == [[0.0, 0.25], [0.0, 0.75]]


TIMES = [
    *(latency(level, "dense", batch, 10.0 * batch) for level in (0, 1, 2) for batch in (1, 4)),
    *(
        latency(level, "sparse", batch, 10.0 * batch / 2**level)
        for level in (1, 2)
        for batch in (1, 4)
    ),
    latency(2, "sparse", 64, None),
    latency(2, "dense", 1, 3.0, engine="openvino"),
    latency(2, "dense", 1, 30.0, threads=1),
    latency(2, "dense", 1, 300.0, machine="another"),
]


def drawn(chart: Chart, number: int = 0) -> dict[str, tuple[list[float], list[float]]]:
    return {line.label: (list(line.x), list(line.y)) for line in panel(chart, number).lines}


def test_latency_by_batch_size_has_a_line_a_form_of_the_last_level() -> None:
    chart = figures.latency_by_batch_size(TIMES, "title")
    assert drawn(chart) == {"dense": ([1, 4], [10.0, 40.0]), "sparse": ([1, 4], [2.5, 10.0])}
    assert "level 2, 25 % of the parameters left; cpu, 2 threads, a processor" in chart.title
    assert (panel(chart).x.scale, panel(chart).y.scale) == ("log2", "log")


def test_bars_reach_from_the_median_to_the_95th_percentile() -> None:
    dense, _ = panel(figures.latency_by_batch_size(TIMES, "title")).lines
    assert dense.low == dense.y == [10.0, 40.0]
    assert dense.high == [15.0, 60.0]


def test_latency_by_params_left_has_a_panel_a_batch_size() -> None:
    chart = figures.latency_by_params_left(TIMES, "title")
    assert [one.title for one in chart.panels] == ["batch size 1", "batch size 4"]
    assert drawn(chart, 1) == {
        "dense": ([1.0, 0.5, 0.25], [40.0, 40.0, 40.0]),
        "sparse": ([0.5, 0.25], [20.0, 10.0]),
    }


def test_a_form_is_drawn_alike_in_both_latency_figures() -> None:
    looks = [
        {line.label: (line.colour, line.marker) for line in panel(figure(TIMES, "title")).lines}
        for figure in figures.LATENCY_FIGURES.values()
    ]
    assert looks == [{form: (FORMS[form], FORMS[form]) for form in ("dense", "sparse")}] * 2


@pytest.mark.parametrize("name", figures.LATENCY_FIGURES)
def test_latency_figures_of_nothing_that_could_be_run_are_empty(name: str) -> None:
    chart = figures.LATENCY_FIGURES[name]([latency(1, "dense", 8, None)], "title")
    assert panel(chart).lines == []
    assert static.draw(chart).axes
