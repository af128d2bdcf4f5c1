"""Figures of single runs: one function each, from the records of a run to a Chart.

To add a figure of a pruning run, write the function and its row in RUN_FIGURES; of a benchmark, in
LATENCY_FIGURES.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from pruneflow.report.charts import (
    ACCURACY,
    BATCH_LOG_MS,
    BATCH_MS,
    BATCH_SIZE,
    FORMS,
    PARAMS_LEFT,
    Chart,
    HeatMap,
    Line,
    Panel,
    ran_on,
)
from pruneflow.tracking.latencies import Latency
from pruneflow.tracking.levels import Layer, Level


def accuracy_curves(levels: Sequence[Level], title: str) -> Chart:
    """Accuracy on test and train, before and after fine-tuning, against params left.

    The study's Figure 3: a log axis that runs from the whole model to the smallest.
    """
    left = [level.params_left for level in levels]
    notes = [f"level {level.level}" for level in levels]
    test_after = [level.test_after for level in levels]
    test_before = [level.test_before for level in levels]
    train_after = [level.train_after for level in levels]
    train_before = [level.train_before for level in levels]
    lines = [
        Line("test, after fine-tuning", left, test_after, notes=notes),
        Line(
            "test, before fine-tuning", left, test_before, dash="dotted", hollow=True, notes=notes,
        ),
        Line("train, after fine-tuning", left, train_after, colour=1, marker=1, notes=notes),
        Line(
            "train, before fine-tuning", left, train_before,
            colour=1, marker=1, dash="dotted", hollow=True, notes=notes,
        ),
    ]  # fmt: skip
    return Chart(title, [Panel("", PARAMS_LEFT, ACCURACY, lines)])


def layer_sparsity(layers: Sequence[Layer], title: str) -> Chart:
    """Heat map of sparsity: a row per prunable tensor, in model order, a column per level."""
    names = list(dict.fromkeys(row.layer for row in layers))
    numbers = sorted({row.level for row in layers})
    table = np.full((len(names), len(numbers)), np.nan)
    for row in layers:
        table[names.index(row.layer), numbers.index(row.level)] = row.sparsity
    columns = [str(number) for number in numbers]
    return Chart(title, [HeatMap("", names, columns, table.tolist(), "level", "sparsity")])


RUN_FIGURES: dict[str, Callable[[Sequence[Level], Sequence[Layer], str], Chart]] = {
    "accuracy_curves": lambda levels, layers, title: accuracy_curves(levels, title),
    "layer_sparsity": lambda levels, layers, title: layer_sparsity(layers, title),
}


def latency_by_batch_size(latencies: Sequence[Latency], title: str) -> Chart:
    """Median time of a batch against batch size, a line a form, of the last level.

    The study's Figures 6 and 7, on log axes: time that grows with the batch is a straight line.
    Bars reach from the median to the 95th percentile.
    """
    rows = _comparable(latencies)
    last = max((row.level for row in rows), default=0)
    rows = [row for row in rows if row.level == last]
    lines = []
    for form in _forms(rows):
        own = sorted((r for r in rows if r.form == form), key=lambda r: r.batch_size)
        lines.append(_line([r.batch_size for r in own], own, form))
    left = f", {100 * rows[0].params_left:.3g} % of the parameters left" if rows else ""
    panel = Panel("", BATCH_SIZE, BATCH_LOG_MS, lines)
    return Chart(f"{title}\nlevel {last}{left}{_where(rows)}", [panel])


def latency_by_params_left(latencies: Sequence[Latency], title: str) -> Chart:
    """Median time of a batch against parameters left, a line a form, a panel a batch size.

    The study's Figures 10 and 11. Every level's dense time is of the same rounds as its other
    forms' times, so its line shows how far the machine drifted. Bars reach from the median to the
    95th percentile.
    """
    rows = _comparable(latencies)
    panels = []
    for size in sorted({row.batch_size for row in rows}):
        here = [row for row in rows if row.batch_size == size]
        lines = []
        for form in _forms(here):
            own = sorted((r for r in here if r.form == form), key=lambda r: -r.params_left)
            lines.append(_line([r.params_left for r in own], own, form))
        panels.append(Panel(f"batch size {size}", PARAMS_LEFT, BATCH_MS, lines))
    # a figure of nothing still says what it would be of
    return Chart(f"{title}{_where(rows)}", panels or [Panel("", PARAMS_LEFT, BATCH_MS, [])])


def _forms(rows: Sequence[Latency]) -> list[str]:
    return list(dict.fromkeys(row.form for row in rows))


def _comparable(latencies: Sequence[Latency]) -> list[Latency]:
    """Rows of one machine, device and number of threads, the first, in eager PyTorch."""
    rows = [row for row in latencies if row.engine == "eager" and row.p50_ms is not None]
    settings = [(row.machine, row.device, row.threads) for row in rows]
    return [row for row, setting in zip(rows, settings, strict=True) if setting == settings[0]]


def _where(rows: Sequence[Latency]) -> str:
    if not rows:
        return ""
    return f"; {ran_on(rows[0].device, rows[0].threads, rows[0].machine)}"


def _line(x: Sequence[float], rows: Sequence[Latency], form: str) -> Line:
    p50 = [math.nan if row.p50_ms is None else row.p50_ms for row in rows]
    p95 = [math.nan if row.p95_ms is None else row.p95_ms for row in rows]
    notes = [f"level {row.level}, batch size {row.batch_size}, {row.n} rounds" for row in rows]
    number = FORMS[form]
    return Line(form, x, p50, low=p50, high=p95, colour=number, marker=number, notes=notes)


LATENCY_FIGURES: dict[str, Callable[[Sequence[Latency], str], Chart]] = {
    "latency_by_batch_size": latency_by_batch_size,
    "latency_by_params_left": latency_by_params_left,
}
