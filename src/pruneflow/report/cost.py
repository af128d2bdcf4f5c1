"""Figures of what is removed, and what that saves."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pruneflow.config import short_model
from pruneflow.report.charts import ACCURACY, PARAMS_LEFT, Axis, Chart, HeatMap, Line, Panel
from pruneflow.report.curves import MOST_PANELS, Overlay, by_configuration, curve, titled
from pruneflow.report.evidence import Evidence, where
from pruneflow.report.latency import on_one_machine

_COSTS = {
    "params_left": PARAMS_LEFT,
    "macs_left": Axis("MACs left (log scale)", "shrinking", percent=True),
    "time_left": Axis("time of a batch / dense (log scale)", "shrinking", percent=True),
}


def masks_and_removal(evidence: Evidence, overlay: Overlay) -> Chart | None:
    """Parameters of convolutions that masks keep against those that are left when removed."""
    levels = evidence.of(schedule="iterative", granularity="channel")
    unpruned = levels[levels["level"] == 0].set_index("run_id")["conv_params_masked"]
    before = levels["run_id"].map(unpruned).astype(float)
    levels = levels.assign(
        by_masks=levels["conv_params_masked"].astype(float) / before,
        removed=levels["conv_params_compact"].astype(float) / before,
        asked=1 - levels["target_sparsity"],
    )
    axis = Axis("channels left, as asked", "shrinking", percent=True)
    y = Axis("parameters of convolutions left", percent=True, limits=(0.0, 1.02))
    panels = []
    for label, rows in by_configuration(evidence, levels):
        lines = [
            curve(rows, "by_masks", "by masks", x="asked"),
            curve(rows, "removed", "physically removed", x="asked", style=1),
        ]
        panels.append(Panel(label, axis, y, lines))
    return Chart(titled("Parameters by masks against removed", levels), panels) if panels else None


def pareto(evidence: Evidence, overlay: Overlay) -> Chart | None:
    """Test accuracy against parameters, MACs and measured time: every level, and the front."""
    levels = evidence.of(schedule=["iterative", "direct"])
    keys = ["model", "dataset", "configuration", "level"]
    columns = ["test_after", "params_left", "macs_left"]
    points = levels.groupby(keys, as_index=False)[columns].mean()
    points = points.merge(_best_times(evidence), on=["configuration", "level"], how="left")
    labels = evidence.configurations["label"]
    panels = []
    for column, axis in _COSTS.items():
        lines: list[Line] = []
        for style, ((model, dataset), rows) in enumerate(points.groupby(["model", "dataset"])):
            rows = rows[rows[column] > 0].sort_values(
                [column, "test_after"], ascending=[False, True], kind="stable"
            )
            if rows.empty:
                continue
            name = f"{short_model(str(model))}, {dataset}"
            for label, part, dash in (
                (name, rows, "none"), (f"{name}, front", _front(rows), "steps"),
            ):  # fmt: skip
                pairs = zip(part["configuration"], part["level"], strict=True)
                notes = [f"{labels[number]}, level {level}" for number, level in pairs]
                x, y = part[column].tolist(), part["test_after"].tolist()
                lines.append(Line(label, x, y, dash=dash, notes=notes, style=style))  # type: ignore[arg-type]
        if lines:
            panels.append(Panel(axis.label.partition(" (")[0], axis, ACCURACY, lines))
    title = "Pareto fronts: test accuracy after fine-tuning against cost"
    return Chart(title, panels) if panels else None


def _front(points: pd.DataFrame) -> pd.DataFrame:
    """Those of points, the costliest first, that no other equals or beats in both."""
    accuracy = points["test_after"].iloc[::-1]
    better = accuracy > accuracy.cummax().shift(fill_value=-np.inf)
    return points[better.iloc[::-1]]


def _best_times(evidence: Evidence) -> pd.DataFrame:
    """Of each configuration and level the shortest time of any form, relative to dense."""
    rows = on_one_machine(evidence.latencies)
    rows = rows[rows["speedup"].notna() & rows["configuration"].notna()]
    rows = rows.assign(time_left=1 / rows["speedup"].astype(float))
    best = rows.groupby(["configuration", "level"])["time_left"].min().reset_index()
    return best.astype({"configuration": "int64"})


def heat_map(layers: pd.DataFrame, title: str) -> HeatMap:
    """Sparsity, the mean over seeds: a row a tensor, in model order, a column a level."""
    table = layers.pivot_table(index="layer", columns="level", values="sparsity", sort=False)
    table = table.reindex(columns=sorted(table.columns))
    rows, columns = map(str, table.index), map(str, table.columns)
    return HeatMap(title, [*rows], [*columns], table.to_numpy().tolist(), "level", "sparsity")


def heat_maps(evidence: Evidence, overlay: Overlay) -> Chart | None:
    """Sparsity of every pruned tensor at every level."""
    layers = where(evidence.layers, schedule=["iterative", "direct"])
    layers = layers[layers.groupby(["configuration", "layer"])["zeros"].transform("max") > 0]
    numbers = layers["configuration"].unique()[:MOST_PANELS]
    maps = [heat_map(where(layers, configuration=i), evidence.label(i)) for i in numbers]
    return Chart("Sparsity of each tensor", maps) if maps else None


def requested(evidence: Evidence, overlay: Overlay) -> Chart | None:
    """What was removed against what was asked for: weights, or channels."""
    levels = evidence.of(schedule=["iterative", "direct"])
    achieved = levels["sparsity"].where(levels["channels_left"].isna(), 1 - levels["channels_left"])
    levels = levels.assign(achieved=achieved)
    axis, y = (Axis(label, percent=True, limits=(0.0, 1.0)) for label in ("asked for", "removed"))
    lines = [
        curve(rows, "achieved", label, x="target_sparsity", dash="none", style=style)
        for style, (label, rows) in enumerate(by_configuration(evidence, levels))
    ]
    lines.insert(0, Line("as asked", [0.0, 1.0], [0.0, 1.0], reference=True))
    panel = Panel("fraction removed", axis, y, lines)
    return Chart("Requested against achieved", [panel]) if len(levels) else None
