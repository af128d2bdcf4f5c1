"""The figures of a report, of a run and of a benchmark: every figure is a row of a registry.

To add one, write its function in `accuracy`, `cost` or `latency`, and its row here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pruneflow.report import accuracy, cost, latency
from pruneflow.report.charts import Chart
from pruneflow.report.curves import Overlay
from pruneflow.report.evidence import Evidence
from pruneflow.tracking.latencies import Latency
from pruneflow.tracking.levels import Layer, Level


@dataclass(frozen=True)
class Figure:
    """A figure of the report.

    Attributes:
        title: what it shows.
        caption: how it is read.
        draw: from the evidence, and curves to lay beneath; None where there are no runs for it.
        command: what would produce those runs.
    """

    title: str
    caption: str
    draw: Callable[[Evidence, Overlay], Chart | None]
    command: str


_ALEXNET = "pruneflow prune_iterative --model alexnet"
_BENCHMARK = "pruneflow benchmark_latency --model alexnet"
FIGURES: dict[str, Figure] = {
    "accuracy_weights": Figure(
        "Accuracy, single weights",
        "Accuracy before and after each level's fine-tuning; the control is trained as long.",
        accuracy.accuracy("Accuracy against parameters left, single weights", "weight"), _ALEXNET,
    ),
    "accuracy_channels": Figure(
        "Accuracy, channels", "As for single weights, against the share of channels left.",
        accuracy.accuracy("Accuracy against channels left", "channel"),
        f"{_ALEXNET} --granularity channel",
    ),
    "criteria": Figure(
        "Criteria compared", "Configurations that differ in their criterion alone.",
        accuracy.compared("criterion", "Criteria compared"), f"{_ALEXNET} --criterion random",
    ),
    "fractions": Figure(
        "Prune fractions compared", "Configurations that differ in the fraction alone.",
        accuracy.compared(
            "fraction", "Prune fractions compared", apart=("iterations", "target_sparsity")
        ),
        f"{_ALEXNET} --fraction 0.2929",
    ),
    "models": Figure(
        "Models compared", "Of each model the configuration with most seeds.",
        accuracy.models, "pruneflow prune_iterative --model resnet18",
    ),
    "schedules": Figure(
        "Iterative against direct", "Runs of the same base, at the same sparsity.",
        accuracy.schedules, "pruneflow prune_direct --model alexnet",
    ),
    "pareto": Figure(
        "Pareto fronts", "A front has the levels that no other beats in cost and accuracy.",
        cost.pareto, _ALEXNET,
    ),
    "latency_by_batch_size": Figure(
        "Latency against batch size", "Median of a batch, at the last level.",
        latency.latency_by_batch_size, _BENCHMARK,
    ),
    "latency_by_params_left": Figure(
        "Latency against parameters left", "Median of a batch.",
        latency.latency_by_params_left, _BENCHMARK,
    ),
    "masks_and_removal": Figure(
        "Parameters by masks against removed",
        "What masks keep of the convolutions, and what is left when their filters are removed.",
        cost.masks_and_removal, f"{_ALEXNET} --granularity channel --coupling independent",
    ),
    "gap": Figure(
        "Train-test gap", "Beside a control that was trained as long and not pruned.",
        accuracy.gap, _ALEXNET,
    ),
    "heat_maps": Figure(
        "Sparsity of each tensor", "Means over seeds, in percent.", cost.heat_maps, _ALEXNET,
    ),
    "requested": Figure(
        "Requested against achieved", "Whole units, and groups that must not be emptied.",
        cost.requested, _ALEXNET,
    ),
}  # fmt: skip


def _frame(records: Sequence[Any], kind: type[Any]) -> pd.DataFrame:
    return pd.DataFrame(map(vars, records), columns=[*kind.__dataclass_fields__])


def _accuracy_curves(levels: Sequence[Level], layers: Sequence[Layer], title: str) -> Chart:
    return Chart(title, [accuracy.accuracy_panel(_frame(levels, Level), "")])


def _layer_sparsity(levels: Sequence[Level], layers: Sequence[Layer], title: str) -> Chart:
    return Chart(title, [cost.heat_map(_frame(layers, Layer), "")])


RUN_FIGURES: dict[str, Callable[[Sequence[Level], Sequence[Layer], str], Chart]] = {
    "accuracy_curves": _accuracy_curves,
    "layer_sparsity": _layer_sparsity,
}


def _by_batch_size(latencies: Sequence[Latency], title: str) -> Chart:
    rows = latency.on_one_machine(_frame(latencies, Latency))
    panel = latency.batch_size_panel(rows, "", Overlay(), of_one_run=True)
    return Chart(f"{title}{latency.ran_on(rows)}", [panel])


def _by_params_left(latencies: Sequence[Latency], title: str) -> Chart:
    rows = latency.on_one_machine(_frame(latencies, Latency))
    sizes = sorted(rows["batch_size"].unique())
    panels = latency.params_left_panels(rows, "", Overlay(), sizes, of_one_run=True)
    return Chart(f"{title}{latency.ran_on(rows)}", panels)


LATENCY_FIGURES: dict[str, Callable[[Sequence[Latency], str], Chart]] = {
    "latency_by_batch_size": _by_batch_size,
    "latency_by_params_left": _by_params_left,
}
