"""Figures of latency: medians of a batch, a line a form."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pandas as pd

from pruneflow.report.charts import (
    BATCH_LOG_MS,
    BATCH_MS,
    BATCH_SIZE,
    FORMS,
    PARAMS_LEFT,
    Chart,
    Line,
    Panel,
)
from pruneflow.report.curves import MOST_PANELS, Overlay, by_configuration, curve, left
from pruneflow.report.evidence import Evidence, where

SETTING = ["machine", "device", "threads"]  # times of two are never put together


def on_one_machine(rows: pd.DataFrame) -> pd.DataFrame:
    """Times in eager PyTorch of one machine, device and number of threads: those with most rows."""
    rows = rows[(rows["engine"] == "eager") & rows["p50_ms"].notna()]
    groups = rows.groupby(SETTING, dropna=False, sort=False)
    return max((part for _, part in groups), key=len, default=rows)


def _timed(evidence: Evidence) -> pd.DataFrame:
    """A row a seed and base, level, form and batch size.

    Of several benchmarks of it the median, since a run that is timed twice is one sample.
    """
    rows = on_one_machine(evidence.latencies[evidence.latencies["configuration"].notna()])
    keys = ["configuration", "model", "seed", "base_run", *SETTING, "level", "form", "batch_size"]
    columns = ["p50_ms", "params_left", "channels_left"]
    return rows.groupby(keys, dropna=False)[columns].median().reset_index()


def ran_on(rows: pd.DataFrame) -> str:
    """What times were taken on, as the end of a title."""
    if rows.empty:
        return ""
    machine, device, threads = (rows[name].iloc[0] for name in SETTING)
    of_cpu = f", {threads} thread{'s' * bool(threads > 1)}" if device == "cpu" else ""
    return f"; {device}{of_cpu}, {machine}"


def _form_lines(rows: pd.DataFrame, x: str, *, of_one_run: bool) -> list[Line]:
    by = "batch_size" if x == "batch_size" else "level"
    lines = []
    for form in [form for form in FORMS if form in set(rows["form"])]:
        here = where(rows, form=form)
        line = curve(here, "p50_ms", form, x=x, by=by, style=FORMS[form])
        if of_one_run:  # no interval over seeds: from the median to the 95th percentile
            high = curve(here, "p95_ms", form, x=x, by=by).y
            line = replace(line, low=line.y, high=high, n=None)
        lines.append(line)
    return lines


def batch_size_panel(
    rows: pd.DataFrame, label: str, overlay: Overlay, *, of_one_run: bool = False
) -> Panel:
    """Median time of a batch against batch size, a line a form, of the last level.

    On log axes: time that grows with the batch is a straight line.
    """
    last = rows[rows["level"] == rows["level"].max()]
    lines = _form_lines(last, "batch_size", of_one_run=of_one_run)
    if len(last):
        share = f"{100 * last['params_left'].mean():.3g} % of the parameters left"
        label = ", ".join(filter(None, (label, f"level {int(last['level'].iloc[0])}", share)))
        lines += overlay.times(last, "batch_size")
    return Panel(label, BATCH_SIZE, BATCH_LOG_MS, lines)


def params_left_panels(
    rows: pd.DataFrame,
    label: str,
    overlay: Overlay,
    batch_sizes: Iterable[int],
    *,
    of_one_run: bool = False,
) -> list[Panel]:
    """Median time of a batch against what is left, a line a form, a panel a batch size.

    Every level's dense time is of the same rounds as its other forms' times, so its line shows how
    far the machine drifted.
    """
    panels = []
    for size in batch_sizes:
        here = where(rows, batch_size=size)
        x, axis = left(here) if "channels_left" in here else ("params_left", PARAMS_LEFT)
        lines = _form_lines(here, x, of_one_run=of_one_run) + overlay.times(here, "params_left")
        title = ", ".join(filter(None, (label, f"batch size {size}")))
        panels.append(Panel(title, axis, BATCH_MS, lines))
    # a figure of nothing still says what it would be of
    return panels or [Panel(label, PARAMS_LEFT, BATCH_MS, [])]


def latency_by_batch_size(evidence: Evidence, overlay: Overlay) -> Chart | None:
    """Of every configuration, at its last level."""
    rows = _timed(evidence)
    own = by_configuration(evidence, rows)
    panels = [batch_size_panel(part, label, overlay) for label, part in own]
    return Chart(f"Latency against batch size{ran_on(rows)}", panels) if panels else None


def latency_by_params_left(evidence: Evidence, overlay: Overlay) -> Chart | None:
    """Of every configuration, at its smallest and largest batch."""
    rows = _timed(evidence)
    panels: list[Panel] = []
    for label, part in by_configuration(evidence, rows):
        sizes = sorted({int(part["batch_size"].min()), int(part["batch_size"].max())})
        panels += params_left_panels(part, label, overlay, sizes)
    title = f"Latency against parameters left{ran_on(rows)}"
    return Chart(title, panels[:MOST_PANELS]) if panels else None
