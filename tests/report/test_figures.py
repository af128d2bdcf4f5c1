"""Figures show the records they are drawn from, those of a run as those of many."""

from __future__ import annotations

from dataclasses import replace

import pytest
from frames import Frames
from records import latency, level

from pruneflow.report import charts
from pruneflow.report.charts import FORMS, Chart, HeatMap, Line, Overlay, Panel
from pruneflow.report.figures import FIGURES, RUN_FIGURES
from pruneflow.report.timings import LATENCY_FIGURES
from pruneflow.tracking.levels import Layer

LEVELS = [level(0, 1.0, 0.9), level(1, 0.5, 0.85), level(2, 0.25, 0.7)]


def panel(chart: Chart | None, number: int = 0) -> Panel:
    assert chart is not None
    found = chart.panels[number]
    assert isinstance(found, Panel)
    return found


def test_accuracy_curves_are_the_four_of_the_levels() -> None:
    lines = panel(RUN_FIGURES["accuracy_curves"](LEVELS, [], "title")).lines
    drawn = {line.label: list(line.y) for line in lines}
    assert drawn["test, after fine-tuning"] == [0.9, 0.85, 0.7]
    assert drawn["test, before fine-tuning"] == pytest.approx([0.8, 0.75, 0.6])
    assert drawn["train, after fine-tuning"] == pytest.approx([0.95, 0.9, 0.75])
    assert drawn["train, before fine-tuning"] == pytest.approx([0.85, 0.8, 0.65])
    assert len(drawn) == 4
    assert all(list(line.x) == [1.0, 0.5, 0.25] for line in lines)
    assert [line.dash for line in lines] == ["solid", "dotted"] * 2


def test_accuracy_is_drawn_against_what_is_left_from_whole_to_small() -> None:
    axis = panel(RUN_FIGURES["accuracy_curves"](LEVELS, [], "title")).x
    assert (axis.scale, axis.percent) == ("shrinking", True)
    channels = [replace(one, channels_left=one.params_left**2) for one in LEVELS]
    of_channels = panel(RUN_FIGURES["accuracy_curves"](channels, [], "title"))
    assert list(of_channels.lines[0].x) == [1.0, 0.25, 0.0625]
    assert "channels" in of_channels.x.label


def test_heat_map_has_a_row_per_tensor_in_model_order_and_a_column_per_level() -> None:
    rows = [
        Layer(number, name, "Linear", "2x2", 4, zeros, zeros / 4)
        for number, (first, second) in enumerate([(0, 0), (1, 3)])
        for name, zeros in (("b.weight", first), ("a.weight", second))
    ]
    (heat,) = RUN_FIGURES["layer_sparsity"](LEVELS, rows, "title").panels
    assert isinstance(heat, HeatMap)
    assert list(heat.table.index) == ["b.weight", "a.weight"]
    assert list(heat.table.columns) == [0, 1]
    assert heat.table.to_numpy().tolist() == [[0.0, 0.25], [0.0, 0.75]]


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
    chart = LATENCY_FIGURES["latency_by_batch_size"](TIMES, "title")
    assert drawn(chart) == {"dense": ([1, 4], [10.0, 40.0]), "sparse": ([1, 4], [2.5, 10.0])}
    assert chart.title == "title; cpu, 2 threads, a processor"
    assert panel(chart).title == "level 2, 25 % of the parameters left"
    assert (panel(chart).x.scale, panel(chart).y.scale) == ("log2", "log")


def test_bars_reach_from_the_median_to_the_95th_percentile() -> None:
    dense, _ = panel(LATENCY_FIGURES["latency_by_batch_size"](TIMES, "title")).lines
    assert dense.low == dense.y == [10.0, 40.0]
    assert dense.high == [15.0, 60.0]


def test_latency_by_params_left_has_a_panel_a_batch_size() -> None:
    chart = LATENCY_FIGURES["latency_by_params_left"](TIMES, "title")
    assert [one.title for one in chart.panels] == ["batch size 1", "batch size 4"]
    assert drawn(chart, 1) == {
        "dense": ([1.0, 0.5, 0.25], [40.0, 40.0, 40.0]),
        "sparse": ([0.5, 0.25], [20.0, 10.0]),
    }


def test_a_form_is_drawn_alike_in_both_latency_figures() -> None:
    looks = [
        {line.label: line.style for line in panel(figure(TIMES, "title")).lines}
        for figure in LATENCY_FIGURES.values()
    ]
    assert looks == [{form: FORMS[form] for form in ("dense", "sparse")}] * 2


@pytest.mark.parametrize("name", LATENCY_FIGURES)
def test_latency_figures_of_nothing_that_could_be_run_are_empty(name: str) -> None:
    chart = LATENCY_FIGURES[name]([latency(1, "dense", 8, None)], "title")
    assert panel(chart).lines == []
    (axes,) = charts.draw(chart).axes
    assert axes.get_ylabel().startswith("milliseconds")


@pytest.mark.parametrize("name", LATENCY_FIGURES)
def test_a_run_that_is_timed_twice_is_one_seed(name: str) -> None:
    runs = Frames()
    for seed, times in enumerate([(2.0, 4.0), (5.0,)]):
        pruned = runs.prune(seed=seed, base=f"b{seed}")
        for p50 in times:
            runs.benchmark(pruned, [latency(1, "dense", 1, p50)])
    (line,) = panel(FIGURES[name].draw(runs.evidence(), Overlay())).lines
    assert (list(line.y), list(line.n or ())) == ([4.0], [2])  # of 3 and 5


def on_two_machines() -> Frames:
    """Times of one run on a machine, and faster ones on another, which has one row less."""
    runs = Frames()
    pruned = runs.prune()
    slow = [latency(n, "dense", 1, 8.0, machine="slow", speedup=1.0) for n in (0, 1)]
    slow.append(latency(1, "masked", 1, 8.0, machine="slow", speedup=2.0))
    fast = [latency(n, "dense", 1, 2.0, machine="fast", speedup=8.0) for n in (0, 1)]
    runs.benchmark(pruned, fast)
    runs.benchmark(pruned, slow)
    return runs


@pytest.mark.parametrize("name", LATENCY_FIGURES)
def test_a_figure_of_times_is_of_one_machine_and_names_it(name: str) -> None:
    chart = FIGURES[name].draw(on_two_machines().evidence(), Overlay())
    assert chart is not None
    assert chart.title.endswith("cpu, 2 threads, slow")
    assert {y for line in panel(chart).lines for y in line.y} == {8.0}


def test_the_front_of_times_is_of_one_machine() -> None:
    chart = FIGURES["pareto"].draw(on_two_machines().evidence(), Overlay())
    assert chart is not None
    (of_time,) = [panel(chart, i) for i, p in enumerate(chart.panels) if p.title.startswith("time")]
    assert min(x for line in of_time.lines for x in line.x) == 0.5


def test_a_front_has_no_point_that_another_beats() -> None:
    runs = Frames()
    first = level(0, 1.0, 0.9)
    runs.prune([first, level(1, 0.5, 0.8), level(2, 0.25, 0.8), level(3, 0.125, 0.3)])
    runs.prune([first, level(1, 0.125, 0.5)], stage="prune_direct", iterations=3)
    points, front = panel(FIGURES["pareto"].draw(runs.evidence(), Overlay())).lines
    assert len(points.x) == 6
    assert list(zip(front.x, front.y, strict=True)) == [(1.0, 0.9), (0.25, 0.8), (0.125, 0.5)]


@pytest.mark.parametrize("name", ["accuracy_weights", "criteria", "models"])
def test_curves_of_others_are_laid_beneath(name: str) -> None:
    runs = Frames()
    for how in ({}, {"criterion": "random"}, {"model": "resnet18"}):
        runs.prune(**how)
    overlay = Overlay(lambda levels, label: [Line(label, [1], levels["level"][:1], reference=True)])
    laid = panel(FIGURES[name].draw(runs.evidence(), overlay))
    assert [line for line in laid.lines if line.reference]
    plain = panel(FIGURES[name].draw(runs.evidence(), Overlay()))
    assert [line.label for line in laid.lines if not line.reference] == [
        line.label for line in plain.lines
    ]


def test_without_runs_nothing_is_drawn() -> None:
    evidence = Frames().evidence()
    assert [n for n, figure in FIGURES.items() if figure.draw(evidence, Overlay())] == []


def test_a_label_looks_the_same_in_every_panel() -> None:
    runs = Frames()
    for model, criterion in (("alexnet", "l1"), ("alexnet", "random"), ("vgg16", "random")):
        runs.prune(model=model, criterion=criterion)
    runs.prune(model="vgg16", criterion="l2")
    chart = FIGURES["criteria"].draw(runs.evidence(), Overlay())
    lines = [line for number in (0, 1) for line in panel(chart, number).lines]
    looks = {(line.label, line.style, line.dash) for line in lines}
    assert len(looks) == len({line.label for line in lines}) == 6
