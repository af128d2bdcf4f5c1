"""Figures of latency, of a report and of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from pandas import DataFrame

from pruneflow.report.charts import FORMS, Axis, Chart, Line, Overlay, Panel
from pruneflow.report.evidence import SETTING, Evidence, where
from pruneflow.report.lines import Panels, curve, frame_of, panel_each, remaining
from pruneflow.tracking.latencies import Latency


def on_one_machine(rows: DataFrame) -> DataFrame:
    """Times in eager PyTorch of one machine, device and number of threads: those with most rows."""
    rows = rows[(rows["engine"] == "eager") & rows["p50_ms"].notna()]
    groups = rows.groupby(SETTING, dropna=False, sort=False)
    return max((part for _, part in groups), key=len, default=rows)


def ran_on(rows: DataFrame) -> str:
    """What times were taken on, as the end of a title."""
    if rows.empty:
        return ""
    machine, device, threads = rows.iloc[0][SETTING]
    of_cpu = f", {threads} thread{'s' * bool(threads > 1)}" if device == "cpu" else ""
    return f"; {device}{of_cpu}, {machine}"


def _times(rows: DataFrame, x: str, by: str) -> list[Line]:
    """Median time of a batch, a line a form; of one run no interval but up to the 95th percentile.

    Every level's dense time is of the same rounds as its other forms' times, so its line shows how
    far the machine drifted.
    """
    lines = []
    for form in [form for form in FORMS if form in set(rows["form"])]:
        here = where(rows, form=form)
        line = curve(here, "p50_ms", form, x, by, style=FORMS[form])
        if "p95_ms" in here:
            line = replace(line, low=line.y, high=curve(here, "p95_ms", form, x, by).y, n=None)
        lines.append(line)
    return lines


def by_batch_size(label: str, rows: DataFrame, overlay: Overlay) -> list[Panel]:
    """At the last level. On log axes: time that grows with the batch is a straight line."""
    last = rows[rows["level"] == rows["level"].max()]
    lines = _times(last, "batch_size", "batch_size")
    if len(last):
        share = f"{100 * last['params_left'].mean():.3g} % of the parameters left"
        label = ", ".join(filter(None, (label, f"level {int(last['level'].iloc[0])}", share)))
        lines += overlay.times(last, "batch_size")
    x, y = Axis("batch size (log scale)", "log2"), Axis("milliseconds a batch (log scale)", "log")
    return [Panel(label, x, y, lines)]


def by_params_left(label: str, rows: DataFrame, overlay: Overlay, most: int = 99) -> list[Panel]:
    """A panel a batch size, or of so many, the largest among them."""
    y = Axis("milliseconds a batch", limits=(0.0, None))
    sizes = sorted(rows["batch_size"].unique())
    panels = []
    for size in [*sizes[: most - 1], *sizes[most - 1 :][-1:]]:
        here = where(rows, batch_size=size)
        x, axis = remaining(here)
        lines = _times(here, x, "level") + overlay.times(here, "params_left")
        panels.append(Panel(", ".join(filter(None, (label, f"batch size {size}"))), axis, y, lines))
    return panels or [Panel(label, remaining(rows)[1], y, [])]


def latency(title: str, evidence: Evidence, overlay: Overlay, panels: Panels) -> Chart:
    """Of a seed and base that was timed more than once the median: it is one sample."""
    keys = ["configuration", "model", "seed", "base_run", *SETTING, "level", "form", "batch_size"]
    rows = on_one_machine(evidence.latencies.dropna(subset=["configuration"]))
    columns = ["p50_ms", "params_left", "channels_left"]
    rows = rows.groupby(keys, dropna=False)[columns].median().reset_index()
    return panel_each(title + ran_on(rows), evidence, rows, partial(panels, overlay=overlay))


def _of_benchmark(panels: Panels, latencies: Sequence[Latency], title: str) -> Chart:
    rows = on_one_machine(frame_of(latencies, Latency))
    return Chart(title + ran_on(rows), panels("", rows, Overlay()))


LATENCY_FIGURES: dict[str, Callable[[Sequence[Latency], str], Chart]] = {
    "latency_by_batch_size": partial(_of_benchmark, by_batch_size),
    "latency_by_params_left": partial(_of_benchmark, by_params_left),
}
