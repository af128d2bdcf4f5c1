"""Figures: one function each, all in one style, drawn from the records of runs.

To add a figure of a pruning run, write the function and its row in RUN_FIGURES; of a benchmark, in
LATENCY_FIGURES.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from pruneflow.tracking.latencies import Latency
from pruneflow.tracking.levels import Layer, Level

# Okabe & Ito's palette: told apart with any colour vision, and by line and marker in print.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
_FORMS = {
    "dense": ("black", "o"),
    "masked": (BLUE, "s"),
    "compact": (ORANGE, "^"),
    "sparse": (GREEN, "D"),
}
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
        width = 1.9 + 0.09 * max(map(len, names), default=0) + 0.62 * len(numbers)
        figure = Figure(figsize=(max(5.0, width), height), layout="constrained")
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


def latency_by_batch_size(latencies: Sequence[Latency], title: str) -> Figure:
    """Median time of a batch against batch size, a line a form, of the last level.

    The study's Figures 6 and 7, on log axes: time that grows with the batch is a straight line.
    Bars reach from the median to the 95th percentile.
    """
    rows = _comparable(latencies)
    last = max((row.level for row in rows), default=0)
    rows = [row for row in rows if row.level == last]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for form in dict.fromkeys(row.form for row in rows):
            own = sorted((r for r in rows if r.form == form), key=lambda r: r.batch_size)
            _line(axes, [r.batch_size for r in own], own, form)
        sizes = sorted({row.batch_size for row in rows})
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("batch size (log scale)")
        axes.set_ylabel("milliseconds a batch (log scale)")
        left = f", {100 * rows[0].params_left:.3g} % of the parameters left" if rows else ""
        axes.set_title(f"{title}\nlevel {last}{left}{_where(rows)}")
        if rows:
            axes.legend()
    return figure


def latency_by_params_left(latencies: Sequence[Latency], title: str) -> Figure:
    """Median time of a batch against parameters left, a line a form, a panel a batch size.

    The study's Figures 10 and 11. Every level's dense time is of the same rounds as its other
    forms' times, so its line shows how far the machine drifted. Bars reach from the median to the
    95th percentile.
    """
    rows = _comparable(latencies)
    sizes = sorted({row.batch_size for row in rows})
    with matplotlib.rc_context(_STYLE):
        panels = max(1, len(sizes))
        figure = Figure(figsize=(max(7.0, 3.2 * panels), 4.5), layout="constrained")
        all_axes = figure.subplots(1, panels, squeeze=False)[0]
        for axes, size in zip(all_axes, sizes, strict=False):
            here = [row for row in rows if row.batch_size == size]
            for form in dict.fromkeys(row.form for row in here):
                own = sorted((r for r in here if r.form == form), key=lambda r: -r.params_left)
                _line(axes, [r.params_left for r in own], own, form)
            _params_left_axis(axes, sorted({row.params_left for row in here}))
            axes.tick_params(axis="x", labelrotation=90)
            axes.set_ylim(bottom=0)
            axes.set_title(f"batch size {size}")
        all_axes[0].set_ylabel("milliseconds a batch")
        if rows:
            all_axes[0].legend()
        figure.suptitle(f"{title}{_where(rows)}")
    return figure


def _comparable(latencies: Sequence[Latency]) -> list[Latency]:
    """Rows of one device and number of threads, the first, in eager PyTorch."""
    rows = [row for row in latencies if row.engine == "eager" and row.p50_ms is not None]
    return [r for r in rows if (r.device, r.threads) == (rows[0].device, rows[0].threads)]


def _where(rows: Sequence[Latency]) -> str:
    if not rows:
        return ""
    threads, device = rows[0].threads, rows[0].device
    return (
        f"; {device}, {threads} thread{'s' * (threads > 1)}" if device == "cpu" else f"; {device}"
    )


def _line(axes: Axes, x: Sequence[float], rows: Sequence[Latency], form: str) -> None:
    colour, marker = _FORMS[form]
    p50 = np.array([row.p50_ms for row in rows], dtype=float)
    p95 = np.array([row.p95_ms for row in rows], dtype=float)
    bars = np.stack([np.zeros_like(p50), p95 - p50])
    axes.errorbar(
        x, p50, yerr=bars, color=colour, marker=marker, label=form, capsize=2, elinewidth=0.8
    )


LATENCY_FIGURES: dict[str, Callable[[Sequence[Latency], str], Figure]] = {
    "latency_by_batch_size": latency_by_batch_size,
    "latency_by_params_left": latency_by_params_left,
}
