"""The figures of a report, of a run and of a benchmark: a function and a row of a registry each.

Points are means over seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from pandas import DataFrame

from pruneflow.config import short_model
from pruneflow.report.charts import FORMS, Axis, Chart, HeatMap, Line, Overlay, Panel
from pruneflow.report.evidence import DECIDING, SETTING, Evidence, differences, summary, where
from pruneflow.tracking.latencies import Latency
from pruneflow.tracking.levels import Layer, Level

MOST_PANELS = 12
_WHEN = {"after": "solid", "before": "dotted"}
_FOLLOWS = {"fraction": ["iterations", "target_sparsity"]}  # parameter -> what differs with it
_ACCURACY = Axis("accuracy", percent=True, limits=(0.0, 1.02))
_SPARSITY = Axis("sparsity", percent=True, limits=(0.0, 1.0))
Panels = Callable[..., Sequence[Panel | HeatMap]]  # of a label and rows


def _shrinking(name: str) -> Axis:
    return Axis(f"{name} (log scale)", "shrinking", percent=True)


def _curve(rows: DataFrame, y: str, label: str, x: str, by: str = "level", **style: Any) -> Line:
    """Means and intervals of a column at each level (or value of `by`), against the mean of x."""
    means = summary(rows, [by], y)
    at = means[by].map(rows.groupby(by)[x].mean().to_dict()).tolist()
    mean, low, high, n = (means[name].tolist() for name in ("mean", "low", "high", "n"))
    notes = [
        f"{by.replace('_', ' ')} {value:g}, {count} seed{'s' * (count > 1)}"
        for value, count in zip(means[by], n, strict=True)
    ]
    return Line(label, at, mean, low, high, n, notes=notes, **style)


def _accuracies(rows: DataFrame, label: str, x: str, style: int, split: str = "test") -> list[Line]:
    """Accuracy after and before each level's fine-tuning."""
    return [
        _curve(rows, f"{split}_{when}", f"{label}, {when} fine-tuning", x, style=style, dash=dash)
        for when, dash in _WHEN.items()
    ]


def _control(evidence: Evidence, rows: DataFrame, y: str, label: str, x: str) -> list[Line]:
    """The dense control of pruned levels, drawn against what those have left."""
    levels = evidence.control_of(rows)
    at = levels["level"].map(rows.groupby("level")[x].mean().to_dict())
    levels = levels.assign(at=at).dropna(subset=["at"])
    return [_curve(levels, y, label, "at", style=2, dash="dashed")] if len(levels) else []


def _remaining(levels: DataFrame) -> tuple[str, Axis]:
    """What levels are drawn against: parameters left, or of channels the share of them left.

    Channels that masks prune leave most parameters of a model with large linear layers.
    """
    if "channels_left" in levels and len(levels) and levels["channels_left"].notna().all():
        return "channels_left", _shrinking("channels left")
    return "params_left", _shrinking("parameters left")


def _configurations(evidence: Evidence, rows: DataFrame) -> Iterator[tuple[str, DataFrame]]:
    """The label and rows of each configuration that is drawn, those with most seeds first."""
    chosen = evidence.configurations.loc[sorted(rows["configuration"].dropna().unique())]
    chosen = chosen.sort_values("n", ascending=False, kind="stable").head(MOST_PANELS)
    for number, label in chosen["label"].items():
        yield str(label), where(rows, configuration=number)


def _panel_each(title: str, evidence: Evidence, rows: DataFrame, panels: Panels) -> Chart:
    """Panels of each configuration; the title says how many of them are left out."""
    more = rows["configuration"].nunique() - MOST_PANELS
    title += f" ({more} more configurations: see the tables)" if more > 0 else ""
    drawn = [panel for each in _configurations(evidence, rows) for panel in panels(*each)]
    return Chart(title, drawn[:MOST_PANELS])


def _accuracy_panel(title: str, levels: DataFrame, more: Sequence[Line] = ()) -> Panel:
    x, axis = _remaining(levels)
    test, train = (_accuracies(levels, s, x, i, s) for i, s in enumerate(("test", "train")))
    return Panel(title, axis, _ACCURACY, [*test, *train, *more])


def accuracy(title: str, evidence: Evidence, overlay: Overlay, granularity: str) -> Chart:
    """The accuracy of iterative runs, a panel a configuration, beside its dense control."""

    def panels(label: str, rows: DataFrame) -> list[Panel]:
        dense = _control(evidence, rows, "test_after", "test, dense control", _remaining(rows)[0])
        return [_accuracy_panel(label, rows, [*dense, *overlay.accuracy(rows, "test, after")])]

    levels = evidence.of(procedure="iterative", granularity=granularity)
    return _panel_each(title, evidence, levels, panels)


def compared(title: str, evidence: Evidence, overlay: Overlay, by: str) -> Chart:
    """Configurations that differ in one parameter, and what follows from it: a line a value."""
    table = where(evidence.configurations, procedure="iterative")
    apart = [by, *_FOLLOWS.get(by, [])]
    same = [name for name in DECIDING if name in table and name not in apart]
    looks, panels = sorted(table[by].dropna().unique()), []
    for _, members in table.groupby(same, dropna=False, sort=False):
        x, axis = _remaining(evidence.of(configuration=list(members.index)))
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
        x, axis = _remaining(evidence.of(configuration=list(chosen.index)))
        lines: list[Line] = []
        for number, label in chosen["label"].items():
            rows = evidence.of(configuration=number)
            lines.append(_curve(rows, "test_after", label, x, style=looks.index(label)))
            lines += overlay.accuracy(rows, label)
        panels += [Panel(name, axis, _ACCURACY, lines)] if len(chosen) > 1 else []
    return Chart(title, panels)


def procedures(title: str, evidence: Evidence, overlay: Overlay) -> Chart:
    """Iterative - direct or gradual at the same sparsity, of runs that share a base."""
    lines, x = [], "target_sparsity"
    of_one_level = _configurations(evidence, evidence.of(procedure=("direct", "gradual")))
    for style, (label, rows) in enumerate(of_one_level):
        iterative, other = evidence.iterative_like(rows), rows[rows["level"] > 0]
        for when, dash in _WHEN.items():
            pairs = differences(iterative, other, x, f"test_{when}")
            name = f"{label}, {when} fine-tuning"
            lines.append(_curve(pairs, "difference", name, x, by=x, style=style, dash=dash))
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
        panels += [Panel(name, _shrinking(name), _ACCURACY, lines)] if lines else []
    return Chart(title, panels)


def on_one_machine(rows: DataFrame) -> DataFrame:
    """Times in eager PyTorch of one machine, device and number of threads: those with most rows."""
    rows = rows[(rows["engine"] == "eager") & rows["p50_ms"].notna()]
    groups = rows.groupby(SETTING, dropna=False, sort=False)
    return max((part for _, part in groups), key=len, default=rows)


def _ran_on(rows: DataFrame) -> str:
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
        line = _curve(here, "p50_ms", form, x, by, style=FORMS[form])
        if "p95_ms" in here:
            line = replace(line, low=line.y, high=_curve(here, "p95_ms", form, x, by).y, n=None)
        lines.append(line)
    return lines


def _by_batch_size(label: str, rows: DataFrame, overlay: Overlay) -> list[Panel]:
    """At the last level. On log axes: time that grows with the batch is a straight line."""
    last = rows[rows["level"] == rows["level"].max()]
    lines = _times(last, "batch_size", "batch_size")
    if len(last):
        share = f"{100 * last['params_left'].mean():.3g} % of the parameters left"
        label = ", ".join(filter(None, (label, f"level {int(last['level'].iloc[0])}", share)))
        lines += overlay.times(last, "batch_size")
    x, y = Axis("batch size (log scale)", "log2"), Axis("milliseconds a batch (log scale)", "log")
    return [Panel(label, x, y, lines)]


def _by_params_left(label: str, rows: DataFrame, overlay: Overlay, most: int = 99) -> list[Panel]:
    """A panel a batch size, or of so many, the largest among them."""
    y = Axis("milliseconds a batch", limits=(0.0, None))
    sizes = sorted(rows["batch_size"].unique())
    panels = []
    for size in [*sizes[: most - 1], *sizes[most - 1 :][-1:]]:
        here = where(rows, batch_size=size)
        x, axis = _remaining(here)
        lines = _times(here, x, "level") + overlay.times(here, "params_left")
        panels.append(Panel(", ".join(filter(None, (label, f"batch size {size}"))), axis, y, lines))
    return panels or [Panel(label, _remaining(rows)[1], y, [])]


def latency(title: str, evidence: Evidence, overlay: Overlay, panels: Panels) -> Chart:
    """Of a seed and base that was timed more than once the median: it is one sample."""
    keys = ["configuration", "model", "seed", "base_run", *SETTING, "level", "form", "batch_size"]
    rows = on_one_machine(evidence.latencies.dropna(subset=["configuration"]))
    columns = ["p50_ms", "params_left", "channels_left"]
    rows = rows.groupby(keys, dropna=False)[columns].median().reset_index()
    return _panel_each(title + _ran_on(rows), evidence, rows, partial(panels, overlay=overlay))


def masks_and_removal(title: str, evidence: Evidence, overlay: Overlay) -> Chart:
    """Parameters of convolutions that masks keep against those that are left when removed."""
    x = Axis("channels left, as asked", "shrinking", percent=True)
    y = Axis("parameters of convolutions left", percent=True, limits=(0.0, 1.02))

    def panels(label: str, rows: DataFrame) -> list[Panel]:
        masks = _curve(rows, "masks_left", "by masks", "asked")
        removed = _curve(rows, "removed_left", "physically removed", "asked", style=1)
        return [Panel(label, x, y, [masks, removed])]

    levels = evidence.of(procedure="iterative", granularity="channel")
    levels = levels.assign(asked=1 - levels["target_sparsity"])
    return _panel_each(title, evidence, levels, panels)


def gap(title: str, evidence: Evidence, overlay: Overlay) -> Chart:
    """How much better a model is on what it was trained on, against sparsity; and its control."""

    def panels(label: str, rows: DataFrame) -> list[Panel]:
        dense = _control(evidence, rows, "gap", "dense control", "sparsity")
        lines = [_curve(rows, "gap", "pruned", "sparsity"), *dense]
        return [Panel(label, _SPARSITY, Axis("train - test accuracy", percent=True), lines)]

    return _panel_each(title, evidence, evidence.pruned, panels)


def _heat_map(title: str, layers: DataFrame) -> list[HeatMap]:
    """A row a tensor, in model order, a column a level."""
    table = layers.pivot_table(index="layer", columns="level", values="sparsity", sort=False)
    return [HeatMap(title, table.sort_index(axis=1))]


def heat_maps(title: str, evidence: Evidence, overlay: Overlay) -> Chart:
    """Sparsity of every tensor that was pruned."""
    layers = evidence.layers[evidence.layers["procedure"] != "dense"]
    layers = layers[layers.groupby(["configuration", "layer"])["zeros"].transform("max") > 0]
    return _panel_each(title, evidence, layers, _heat_map)


def requested(title: str, evidence: Evidence, overlay: Overlay) -> Chart:
    """What was removed against what was asked for: weights, or channels."""
    x, y = (Axis(label, percent=True, limits=(0.0, 1.0)) for label in ("asked for", "removed"))
    pruned = _configurations(evidence, evidence.pruned)
    lines = [
        _curve(rows, "achieved", label, "target_sparsity", dash="none", style=style)
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
        partial(latency, panels=_by_batch_size), _BENCHMARK,
    ),
    "latency_by_params_left": Figure(
        "Latency against parameters left", "Median of a batch.",
        partial(latency, panels=partial(_by_params_left, most=2)), _BENCHMARK,
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


def _frame(records: Sequence[Any], kind: type[Any]) -> DataFrame:
    return DataFrame(map(vars, records), columns=[*kind.__dataclass_fields__])


def _of_benchmark(panels: Panels, latencies: Sequence[Latency], title: str) -> Chart:
    rows = on_one_machine(_frame(latencies, Latency))
    return Chart(title + _ran_on(rows), panels("", rows, Overlay()))


RUN_FIGURES: dict[str, Callable[[Sequence[Level], Sequence[Layer], str], Chart]] = {
    "accuracy_curves": lambda levels, layers, title: Chart(
        title, [_accuracy_panel("", _frame(levels, Level))]
    ),
    "layer_sparsity": lambda levels, layers, title: Chart(
        title, _heat_map("", _frame(layers, Layer))
    ),
}
LATENCY_FIGURES: dict[str, Callable[[Sequence[Latency], str], Chart]] = {
    "latency_by_batch_size": partial(_of_benchmark, _by_batch_size),
    "latency_by_params_left": partial(_of_benchmark, _by_params_left),
}
