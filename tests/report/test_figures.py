"""Figures show the records they are drawn from."""

from __future__ import annotations

import pytest
from records import latency, level

from pruneflow.report import figures
from pruneflow.tracking.levels import Layer

LEVELS = [level(0, 1.0, 0.9), level(1, 0.5, 0.85), level(2, 0.25, 0.7)]


def test_accuracy_curves_are_the_four_of_the_levels() -> None:
    axes = figures.accuracy_curves(LEVELS, "title").axes[0]
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
    assert drawn["test, after fine-tuning"] == [0.9, 0.85, 0.7]
    assert drawn["test, before fine-tuning"] == pytest.approx([0.8, 0.75, 0.6])
    assert drawn["train, after fine-tuning"] == pytest.approx([0.95, 0.9, 0.75])
    assert len(drawn) == 4
    assert all(list(line.get_xdata()) == [1.0, 0.5, 0.25] for line in axes.get_lines())


def test_params_left_runs_from_whole_to_small_on_a_log_axis() -> None:
    axes = figures.accuracy_curves(LEVELS, "title").axes[0]
    assert axes.get_xscale() == "log"
    left, right = axes.get_xlim()
    assert left > 1.0 > 0.25 > right


def test_heat_map_has_a_row_per_tensor_in_model_order_and_a_column_per_level() -> None:
    rows = [
        Layer(number, name, "Linear", "2x2", 4, zeros, zeros / 4)
        for number, (first, second) in enumerate([(0, 0), (1, 3)])
        for name, zeros in (("b.weight", first), ("a.weight", second))
    ]
    axes = figures.layer_sparsity(rows, "title").axes[0]
    assert axes.images[0].get_array().tolist() == [[0.0, 0.25], [0.0, 0.75]]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["b.weight", "a.weight"]
    assert [text.get_text() for text in axes.texts] == ["0.0", "25.0", "0.0", "75.0"]


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
]


def drawn(axes: object) -> dict[str, tuple[list[float], list[float]]]:
    found = {}
    for bars in axes.containers:  # type: ignore[attr-defined]
        line = bars.lines[0]
        found[bars.get_label()] = (list(line.get_xdata()), list(line.get_ydata()))
    return found


def test_latency_by_batch_size_has_a_line_a_form_of_the_last_level() -> None:
    figure = figures.latency_by_batch_size(TIMES, "title")
    axes = figure.axes[0]
    assert drawn(axes) == {"dense": ([1, 4], [10.0, 40.0]), "sparse": ([1, 4], [2.5, 10.0])}
    assert "level 2, 25 % of the parameters left; cpu, 2 threads" in axes.get_title()


def test_latency_by_params_left_has_a_panel_a_batch_size() -> None:
    figure = figures.latency_by_params_left(TIMES, "title")
    assert [axes.get_title() for axes in figure.axes] == ["batch size 1", "batch size 4"]
    assert drawn(figure.axes[1]) == {
        "dense": ([1.0, 0.5, 0.25], [40.0, 40.0, 40.0]),
        "sparse": ([0.5, 0.25], [20.0, 10.0]),
    }


def test_latency_figures_of_nothing_that_could_be_run_are_empty() -> None:
    for figure in figures.LATENCY_FIGURES.values():
        assert figure([latency(1, "dense", 8, None)], "title").axes
