"""What a sensitivity run shows: its figures, a function and a row of a registry each, its page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from pruneflow.report.charts import Axis, Chart, HeatMap, Line, Panel
from pruneflow.tracking.sensitivities import Sensitivity

_MOST_LINES = 12  # what a legend and the eye can still tell apart
_LISTED = 5  # layers that the page names as the most and the least sensitive


def mean_drops(rows: Sequence[Sensitivity]) -> list[tuple[str, float]]:
    """Layer and its mean drop over the fractions, the most sensitive first."""
    drops: dict[str, list[float]] = {}
    for row in rows:
        drops.setdefault(row.layer, []).append(row.drop)
    means = {layer: sum(values) / len(values) for layer, values in drops.items()}
    return sorted(means.items(), key=lambda item: -item[1])


def _curves(rows: Sequence[Sensitivity], title: str) -> Chart:
    """Accuracy against the fraction pruned, of the layers that are most sensitive."""
    ranked = [layer for layer, _ in mean_drops(rows)]
    shown, lines = ranked[:_MOST_LINES], []
    for style, layer in enumerate(shown):
        of_layer = sorted((r for r in rows if r.layer == layer), key=lambda row: row.fraction)
        x = [0.0, *(row.fraction for row in of_layer)]
        y = [of_layer[0].accuracy + of_layer[0].drop, *(row.accuracy for row in of_layer)]
        lines.append(Line(layer, x, y, style=style))
    if len(shown) < len(ranked):
        title += f"\nthe {len(shown)} most sensitive of {len(ranked)} layers"
    x_axis = Axis("pruned of the layer", percent=True, limits=(0.0, 1.0))
    y_axis = Axis("validation accuracy", percent=True, limits=(0.0, 1.02))
    return Chart(title, [Panel("", x_axis, y_axis, lines)])


def _heat_map(rows: Sequence[Sensitivity], title: str) -> Chart:
    """Drop of the accuracy, a row a layer in model order, a column a fraction."""
    table = pd.DataFrame(map(vars, rows)).pivot_table(
        index="layer", columns="fraction", values="drop", sort=False
    )
    table = table.sort_index(axis=1).rename(columns=lambda fraction: f"{100 * fraction:g} %")
    looks = {"columns": "pruned of the layer", "values": "drop of validation accuracy"}
    return Chart(title, [HeatMap("", table, **looks)])


SENSITIVITY_FIGURES: dict[str, Callable[[Sequence[Sensitivity], str], Chart]] = {
    "sensitivity": _curves,
    "sensitivity_heat_map": _heat_map,
}


def summary(rows: Sequence[Sensitivity], about: str, base_accuracy: float) -> str:
    """The text on a sensitivity run's page, in Markdown; `about` says of what it is."""
    ranked = mean_drops(rows)
    parts = [about, f"Validation accuracy of the unpruned model: {base_accuracy:.4f}."]
    fractions = ", ".join(f"{fraction:g}" for fraction in sorted({row.fraction for row in rows}))
    for kind, layers in (("most", ranked[:_LISTED]), ("least", ranked[::-1][:_LISTED])):
        lines = [f"| {layer} | {drop:.4f} |" for layer, drop in layers]
        head = f"| {kind} sensitive | mean drop |\n|---|---:|"
        parts.append("\n".join([head, *lines]))
    parts.append(
        f"Each layer alone was pruned by {fractions} of it and the accuracy measured without "
        "training; the mean is over these. `sensitivity.csv` has every row."
    )
    return "\n\n".join(parts)
