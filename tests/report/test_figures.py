"""Figures show the records they are drawn from."""

from __future__ import annotations

import pytest

from pruneflow.report import figures
from pruneflow.tracking.levels import Layer, Level


def level(number: int, left: float, after: float) -> Level:
    return Level(
        level=number,
        target_sparsity=1 - left,
        sparsity=1 - left,
        params=1000,
        params_left=left,
        macs=5000,
        macs_left=left,
        size_bytes=10,
        test_before=after - 0.1,
        test_after=after,
        train_before=after - 0.05,
        train_after=after + 0.05,
        val_after=after,
        score_seconds=0.1,
        finetune_seconds=1.0,
        evaluate_seconds=0.5,
        channels_left=None,
        conv_params_masked=300,
        conv_params_compact=300,
        params_compact=1000,
        macs_compact=5000,
        test_compact=None,
    )


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
