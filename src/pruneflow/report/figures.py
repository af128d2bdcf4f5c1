"""The figures of a report, of a run and of a benchmark: a function and a row of a registry each.

Points are means over seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from pandas import DataFrame

from pruneflow.config import short_model
from pruneflow.report.charts import Axis, Chart, HeatMap, Line, Overlay, Panel
from pruneflow.report.evidence import DECIDING, Evidence, differences, where
from pruneflow.report.lines import (
    MOST_PANELS,
    configurations_of,
    curve,
    frame_of,
    panel_each,
    remaining,
    shrinking,
)
from pruneflow.report.timings import by_batch_size, by_params_left, latency, on_one_machine
from pruneflow.tracking.levels import Layer, Level

_WHEN = {"after": "solid", "before": "dotted"}
_FOLLOWS = {  # parameter -> what differs with it
    "fraction": ["iterations", "target_sparsity"],
    "rewind": ["rewind_epoch", "finetune_epochs", "learning_rate", "lr_schedule", "warmup_epochs"],
    "distill": ["temperature"],
    "scope": ["sensitivity_run"],
}
_ACCURACY = Axis("accuracy", percent=True, limits=(0.0, 1.02))
_SPARSITY = Axis("sparsity", percent=True, limits=(0.0, 1.0))


def _accuracies(rows: DataFrame, label: str, x: str, style: int, split: str = "test") -> list[Line]:
    """Accuracy after and before each level's fine-tuning."""
    return [
        curve(rows, f"{split}_{when}", f"{label}, {when} fine-tuning", x, style=style, dash=dash)
        for when, dash in _WHEN.items()
    ]


def _control(evidence: Evidence, rows: DataFrame, y: str, label: str, x: str) -> list[Line]:
    """The dense control of pruned levels, drawn against what those have left."""
    levels = evidence.control_of(rows)
    at = levels["level"].map(rows.groupby("level")[x].mean().to_dict())
    levels = levels.assign(at=at).dropna(subset=["at"])
    return [curve(levels, y, label, "at", style=2, dash="dashed")] if len(levels) else []


def _accuracy_panel(title: str, levels: DataFrame, more: Sequence[Line] = ()) -> Panel:
    x, axis = remaining(levels)
    test, train = (_accuracies(levels, s, x, i, s) for i, s in enumerate(("test", "train")))
    return Panel(title, axis, _ACCURACY, [*test, *train, *more])


def accuracy(title: str, evidence: Evidence, overlay: Overlay, granularity: str) -> Chart:
    """The accuracy of iterative runs, a panel a configuration, beside its dense control."""

    def panels(label: str, rows: DataFrame) -> list[Panel]:
        dense = _control(evidence, rows, "test_after", "test, dense control", remaining(rows)[0])
        return [_accuracy_panel(label, rows, [*dense, *overlay.accuracy(rows, "test, after")])]

    levels = evidence.of(procedure="iterative", granularity=granularity)
    return panel_each(title, evidence, levels, panels)


def compared(title: str, evidence: Evidence, overlay: Overlay, by: str) -> Chart:
    """Configurations that differ in one parameter, and what follows from it: a line a value."""
    table = where(evidence.configurations, procedure="iterative")
    if by not in table:  # of runs made before there was that parameter
        return Chart(title, [])
    apart = [by, *_FOLLOWS.get(by, [])]
    same = [name for name in DECIDING if name in table and name not in apart]
    looks, panels = sorted(table[by].dropna().unique()), []
    for _, members in table.groupby(same, dropna=False, sort=False):
        x, axis = remaining(evidence.of(configuration=list(members.index)))
        lines: list[Line] = []
        for number, value in members[by].sort_values().items():
            rows = evidence.of(configuration=number)
            name = f"{value:g}" if isinstance(value, float) else str(value)
            lines += _accuracies(rows, name, x, looks.index(value))
            lines += overlay.accuracy(rows, f"{name}, after")
        model, data, granularity = members.iloc[0][["model", "dataset", "granularity"]]
        what = f"{short_model(model)}, {data}, {granularity}"
        panels += [Panel(what, axis, _ACCURACY, lines)] if members[by].nunique() > 1 else []
    return Chart(title, panels[:MOST_PANELS])


def models(title: str, evidence: Evidence, overlay: Overlay) -> Chart:
    """Of each model its configuration with most seeds."""
    table = evidence.configurations.sort_values(["n", "fraction"], ascending=False, kind="stable")
    table = table[(table["procedure"] == "iterative") & (table["criterion"] != "random")]
    table = table.assign(label=table["model"].map(short_model) + ", " + table["dataset"])
    looks, panels = list(table["label"].unique()), []
    for granularity, name in (("weight", "single weights"), ("channel", "channels")):
        chosen = where(table, granularity=granularity).drop_duplicates(["model", "dataset"])
        x, axis = remaining(evidence.of(configuration=list(chosen.index)))
        lines: list[Line] = []
        for number, label in chosen["label"].items():
            rows = evidence.of(configuration=number)
            lines.append(curve(rows, "test_after", label, x, style=looks.index(label)))
            lines += overlay.accuracy(rows, label)
        panels += [Panel(name, axis, _ACCURACY, lines)] if len(chosen) > 1 else []
    return Chart(title, panels)


def procedures(title: str, evidence: Evidence, overlay: Overlay) -> Chart:
    """Iterative - direct or gradual at the same sparsity, of runs that share a base."""
    lines, x = [], "target_sparsity"
    of_one_level = configurations_of(evidence, evidence.of(procedure=("direct", "gradual")))
    for style, (label, rows) in enumerate(of_one_level):
        iterative, other = evidence.iterative_like(rows), rows[rows["level"] > 0]
        for when, dash in _WHEN.items():
            pairs = differences(iterative, other, x, f"test_{when}")
            name = f"{label}, {when} fine-tuning"
            lines.append(curve(pairs, "difference", name, x, by=x, style=style, dash=dash))
    lines = [line for line in lines if line.x]
    panel = Panel("test accuracy", _SPARSITY, Axis("iterative - other", percent=True), lines)
    return Chart(title, [panel] if lines else [])


def pareto(title: str, evidence: Evidence, overlay: Overlay) -> Chart:
    """Accuracy against parameters, MACs and time: every level, and those that no other beats."""
    keys = ["model", "dataset", "configuration", "level"]
    times = on_one_machine(evidence.latencies).dropna(subset=["speedup", "configuration"])
    best = 1 / times.astype({"speedup": float}).groupby(keys[2:])["speedup"].max()
    means = evidence.pruned.groupby(keys)[["test_after", "params_left", "macs_left"]]
    points = means.mean().join(best.rename("time_left"), on=keys[2:]).reset_index()
    label = points["configuration"].map(evidence.configurations["label"]).astype(str)
    points["note"] = label + ", level " + points["level"].astype(str)
    costs = {"params_left": "parameters left", "macs_left": "MACs left"}
    panels = []
    for cost, name in (costs | {"time_left": "time of a batch / dense"}).items():
        lines = []
        for style, (kind, rows) in enumerate(points.groupby(["model", "dataset"])):
            rows = rows[rows[cost] > 0].sort_values([cost, "test_after"], ascending=[True, False])
            front = rows[rows["test_after"] > rows["test_after"].cummax().shift(fill_value=-np.inf)]
            model = f"{short_model(str(kind[0]))}, {kind[1]}"
            looks: Any = ((rows, model, "none"), (front, f"{model}, front", "steps"))
            for part, text, dash in looks:
                x, y, notes = part[::-1][[cost, "test_after", "note"]].to_numpy().T.tolist()
                lines.append(Line(text, x, y, style=style, dash=dash, notes=notes))
        lines = [line for line in lines if line.x]
        panels += [Panel(name, shrinking(name), _ACCURACY, lines)] if lines else []
    return Chart(title, panels)


def masks_and_removal(title: str, evidence: Evidence, overlay: Overlay) -> Chart:
    """Parameters of convolutions that masks keep against those that are left when removed."""
    x = Axis("channels left, as asked", "shrinking", percent=True)
    y = Axis("parameters of convolutions left", percent=True, limits=(0.0, 1.02))

    def panels(label: str, rows: DataFrame) -> list[Panel]:
        masks = curve(rows, "masks_left", "by masks", "asked")
        removed = curve(rows, "removed_left", "physically removed", "asked", style=1)
        return [Panel(label, x, y, [masks, removed])]

    levels = evidence.of(procedure="iterative", granularity="channel")
    levels = levels.assign(asked=1 - levels["target_sparsity"])
    return panel_each(title, evidence, levels, panels)


def gap(title: str, evidence: Evidence, overlay: Overlay) -> Chart:
    """How much better a model is on what it was trained on, against sparsity; and its control."""

    def panels(label: str, rows: DataFrame) -> list[Panel]:
        dense = _control(evidence, rows, "gap", "dense control", "sparsity")
        lines = [curve(rows, "gap", "pruned", "sparsity"), *dense]
        return [Panel(label, _SPARSITY, Axis("train - test accuracy", percent=True), lines)]

    return panel_each(title, evidence, evidence.pruned, panels)


def _heat_map(title: str, layers: DataFrame) -> list[HeatMap]:
    """A row a tensor, in model order, a column a level."""
    table = layers.pivot_table(index="layer", columns="level", values="sparsity", sort=False)
    return [HeatMap(title, table.sort_index(axis=1))]


def heat_maps(title: str, evidence: Evidence, overlay: Overlay) -> Chart:
    """Sparsity of every tensor that was pruned."""
    layers = evidence.layers[evidence.layers["procedure"] != "dense"]
    layers = layers[layers.groupby(["configuration", "layer"])["zeros"].transform("max") > 0]
    return panel_each(title, evidence, layers, _heat_map)


def requested(title: str, evidence: Evidence, overlay: Overlay) -> Chart:
    """What was removed against what was asked for: weights, or channels."""
    x, y = (Axis(label, percent=True, limits=(0.0, 1.0)) for label in ("asked for", "removed"))
    pruned = configurations_of(evidence, evidence.pruned)
    lines = [
        curve(rows, "achieved", label, "target_sparsity", dash="none", style=style)
        for style, (label, rows) in enumerate(pruned)
    ]
    asked = Line("as asked", [0.0, 1.0], [0.0, 1.0], reference=True)
    return Chart(title, [Panel("fraction removed", x, y, [asked, *lines])] if lines else [])


@dataclass(frozen=True)
class Figure:
    """A figure of the report."""

    title: str
    caption: str  # how it is read
    chart: Callable[[str, Evidence, Overlay], Chart]  # no panels where there are no runs for it
    command: str  # what would produce those runs

    def draw(self, evidence: Evidence, overlay: Overlay) -> Chart | None:
        """What it shows of these runs, with curves laid beneath; None without runs for it."""
        chart = self.chart(self.title, evidence, overlay)
        return chart if chart.panels else None


_ALEXNET = "pruneflow prune_iterative --model alexnet"
_BENCHMARK = "pruneflow benchmark_latency --model alexnet"
FIGURES: dict[str, Figure] = {
    "accuracy_weights": Figure(
        "Accuracy against parameters left, single weights",
        "Accuracy before and after each level's fine-tuning; the control is trained as long.",
        partial(accuracy, granularity="weight"), _ALEXNET,
    ),
    "accuracy_channels": Figure(
        "Accuracy against channels left", "As for single weights.",
        partial(accuracy, granularity="channel"), f"{_ALEXNET} --granularity channel",
    ),
    "criteria": Figure(
        "Criteria compared", "Configurations that differ in their criterion alone.",
        partial(compared, by="criterion"), f"{_ALEXNET} --criterion random",
    ),
    "fractions": Figure(
        "Prune fractions compared", "Configurations that differ in the fraction alone.",
        partial(compared, by="fraction"), f"{_ALEXNET} --fraction 0.2929",
    ),
    "densities": Figure(
        "Densities compared", "Configurations that differ in their scope alone.",
        partial(compared, by="scope"), f"{_ALEXNET} --scope layer",
    ),
    "level_schedules": Figure(
        "Schedules compared", "Configurations that differ in how levels get to the last sparsity.",
        partial(compared, by="schedule"), f"{_ALEXNET} --schedule cubic",
    ),
    "rewinding": Figure(
        "Rewinding compared", "Fine-tuning, and training again as the base was from an epoch on.",
        partial(compared, by="rewind"), f"{_ALEXNET} --rewind learning_rate",
    ),
    "distillation": Figure(
        "Distillation compared", "Configurations that differ in what they learn of the base alone.",
        partial(compared, by="distill"), f"{_ALEXNET} --distill 0.5",
    ),
    "models": Figure(
        "Models compared: test accuracy after fine-tuning",
        "Of each model the configuration with most seeds.",
        models, "pruneflow prune_iterative --model resnet18",
    ),
    "schedules": Figure(
        "Schedules compared", "Configurations that differ in their schedule alone.",
        partial(compared, by="schedule"), f"{_ALEXNET} --schedule cubic",
    ),
    "procedures": Figure(
        "Iterative minus direct or gradual", "Pairs of the same base and sparsity.",
        procedures, "pruneflow prune_direct --model alexnet",
    ),
    "pareto": Figure(
        "Pareto fronts: test accuracy after fine-tuning against cost",
        "A front has the levels that no other beats in cost and accuracy.", pareto, _ALEXNET,
    ),
    "latency_by_batch_size": Figure(
        "Latency against batch size", "Median of a batch, at the last level.",
        partial(latency, panels=by_batch_size), _BENCHMARK,
    ),
    "latency_by_params_left": Figure(
        "Latency against parameters left", "Median of a batch.",
        partial(latency, panels=partial(by_params_left, most=2)), _BENCHMARK,
    ),
    "masks_and_removal": Figure(
        "Parameters by masks against removed",
        "What masks keep of the convolutions, and what is left when their filters are removed.",
        masks_and_removal, f"{_ALEXNET} --granularity channel --coupling independent",
    ),
    "gap": Figure(
        "Gap between train and test accuracy after fine-tuning",
        "Beside a control that was trained as long and not pruned.", gap, _ALEXNET,
    ),
    "heat_maps": Figure(
        "Sparsity of each tensor", "Means over seeds, in percent.", heat_maps, _ALEXNET,
    ),
    "requested": Figure(
        "Requested against achieved", "Whole units, and groups that must not be emptied.",
        requested, _ALEXNET,
    ),
}  # fmt: skip


RUN_FIGURES: dict[str, Callable[[Sequence[Level], Sequence[Layer], str], Chart]] = {
    "accuracy_curves": lambda levels, layers, title: Chart(
        title, [_accuracy_panel("", frame_of(levels, Level))]
    ),
    "layer_sparsity": lambda levels, layers, title: Chart(
        title, _heat_map("", frame_of(layers, Layer))
    ),
}
