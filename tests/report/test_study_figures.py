"""Figures of a report: what their points are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from frames import Frames
from records import latency, level

from pruneflow.report import study_figures
from pruneflow.report.charts import Chart, Panel


def only_panel(chart: Chart | None) -> Panel:
    assert chart is not None
    (panel,) = chart.panels
    assert isinstance(panel, Panel)
    return panel


@pytest.mark.parametrize(
    "figure", [study_figures.latency_by_batch_size, study_figures.latency_by_params_left]
)
def test_a_run_that_is_timed_twice_is_one_seed(figure: Callable[[bool], Any]) -> None:
    runs = Frames()
    for seed, times in enumerate([(2.0, 4.0), (5.0,)]):
        pruned = runs.prune(seed=seed, base=f"b{seed}")
        for p50 in times:
            runs.benchmark(pruned, [latency(1, "dense", 1, p50)])
    (line,) = only_panel(figure(True)(runs.evidence(), False)).lines
    assert (list(line.y), list(line.n or ())) == ([4.0], [2])  # of 3 and 5


def on_two_machines() -> Frames:
    """Times of one run on a machine, and faster ones on another, which has one row less."""
    runs = Frames()
    pruned = runs.prune()
    slow = [latency(n, "dense", 1, 8.0, machine="slow", speedup=1.0) for n in (0, 1)]
    slow.append(latency(1, "masked", 1, 8.0, machine="slow", speedup=2.0))
    fast = [latency(n, "dense", 1, 2.0, machine="fast", speedup=8.0) for n in (0, 1)]
    runs.benchmark(pruned, slow)
    runs.benchmark(pruned, fast)
    return runs


@pytest.mark.parametrize(
    "figure", [study_figures.latency_by_batch_size, study_figures.latency_by_params_left]
)
def test_a_figure_of_times_is_of_one_machine_and_names_it(figure: Callable[[bool], Any]) -> None:
    chart = figure(True)(on_two_machines().evidence(), False)
    assert chart.title.endswith("cpu, 2 threads, slow")
    assert {y for panel in chart.panels for line in panel.lines for y in line.y} == {8.0}


def test_the_front_of_times_is_of_one_machine() -> None:
    chart = study_figures.pareto(on_two_machines().evidence(), False)
    assert chart is not None
    (of_time,) = [panel for panel in chart.panels if panel.title.startswith("time")]
    assert isinstance(of_time, Panel)
    assert min(x for line in of_time.lines for x in line.x) == 0.5


def test_a_front_has_no_point_that_another_beats() -> None:
    runs = Frames()
    whole = level(0, 1.0, 0.9)
    runs.prune([whole, level(1, 0.5, 0.8), level(2, 0.25, 0.8), level(3, 0.125, 0.3)])
    runs.prune([whole, level(1, 0.125, 0.5)], stage="prune_direct", iterations=3)
    chart = study_figures.pareto(runs.evidence(), False)
    assert chart is not None
    panel = chart.panels[0]
    assert isinstance(panel, Panel)
    points, front = panel.lines
    assert len(points.x) == 6
    assert list(zip(front.x, front.y, strict=True)) == [(1.0, 0.9), (0.25, 0.8), (0.125, 0.5)]
