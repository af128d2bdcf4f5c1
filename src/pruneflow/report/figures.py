"""Figures: one function each, all in one style, drawn from the records of runs.

To add a figure of a pruning run, write the function and its row in RUN_FIGURES.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from pruneflow.tracking.levels import Layer, Level

# Okabe & Ito's palette: told apart with any colour vision, and by line and marker in print.
BLUE, ORANGE = "#0072B2", "#D55E00"
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def accuracy_curves(levels: Sequence[Level], title: str) -> Figure:
    """Accuracy on test and train, before and after fine-tuning, against params left.

    The study's Figure 3: a log axis that runs from the whole model to the smallest.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        left = [level.params_left for level in levels]
        curves = [
            ("test, after fine-tuning", "test_after", BLUE, "-", "o"),
            ("test, before fine-tuning", "test_before", BLUE, ":", "o"),
            ("train, after fine-tuning", "train_after", ORANGE, "-", "s"),
            ("train, before fine-tuning", "train_before", ORANGE, ":", "s"),
        ]
        for label, field, colour, line, marker in curves:
            values = [getattr(level, field) for level in levels]
            fill = colour if line == "-" else "white"
            axes.plot(
                left, values, line, color=colour, marker=marker, label=label, markerfacecolor=fill
            )
        _params_left_axis(axes, left)
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_ylabel("accuracy")
        axes.set_title(title)
        axes.legend()
    return figure


def _params_left_axis(axes: Axes, left: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_xticks(left)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    axes.tick_params(axis="x", labelrotation=45 if len(left) > 8 else 0)
    axes.set_xlabel("parameters left (log scale)")


def layer_sparsity(layers: Sequence[Layer], title: str) -> Figure:
    """Heat map of sparsity: a row per prunable tensor, in model order, a column per level."""
    names = list(dict.fromkeys(row.layer for row in layers))
    numbers = sorted({row.level for row in layers})
    table = np.full((len(names), len(numbers)), np.nan)
    for row in layers:
        table[names.index(row.layer), numbers.index(row.level)] = row.sparsity
    shown = len(names) * len(numbers) <= 400
    with matplotlib.rc_context(_STYLE | {"axes.grid": False}):
        height = min(24.0, 1.6 + 0.26 * len(names))
        figure = Figure(figsize=(3.4 + 0.62 * len(numbers), height), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(table, aspect="auto", cmap="viridis", vmin=0, vmax=1)
        axes.set_xticks(range(len(numbers)), [str(n) for n in numbers])
        size = 9 if len(names) <= 60 else 5
        axes.set_yticks(range(len(names)), names, fontsize=size)
        axes.set_xlabel("level")
        axes.set_title(title)
        if shown:
            for (y, x), value in np.ndenumerate(table):
                colour = "black" if value > 0.6 else "white"
                axes.text(
                    x, y, f"{100 * value:.1f}", ha="center", va="center", color=colour, fontsize=7
                )
        bar = figure.colorbar(image, ax=axes, format=PercentFormatter(1))
        bar.set_label("sparsity (numbers: percent)" if shown else "sparsity")
    return figure


RUN_FIGURES: dict[str, Callable[[Sequence[Level], Sequence[Layer], str], Figure]] = {
    "accuracy_curves": lambda levels, layers, title: accuracy_curves(levels, title),
    "layer_sparsity": lambda levels, layers, title: layer_sparsity(layers, title),
}
