"""Lines and panels: what figures of runs are put together from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pandas import DataFrame

from pruneflow.report.charts import Axis, Chart, HeatMap, Line, Panel
from pruneflow.report.evidence import Evidence, summary, where

MOST_PANELS = 12
Panels = Callable[..., Sequence[Panel | HeatMap]]  # of a label and rows


def shrinking(name: str) -> Axis:
    return Axis(f"{name} (log scale)", "shrinking", percent=True)


def curve(rows: DataFrame, y: str, label: str, x: str, by: str = "level", **style: Any) -> Line:
    """Means and intervals of a column at each level (or value of `by`), against the mean of x."""
    means = summary(rows, [by], y)
    at = means[by].map(rows.groupby(by)[x].mean().to_dict()).tolist()
    mean, low, high, n = (means[name].tolist() for name in ("mean", "low", "high", "n"))
    notes = [
        f"{by.replace('_', ' ')} {value:g}, {count} seed{'s' * (count > 1)}"
        for value, count in zip(means[by], n, strict=True)
    ]
    return Line(label, at, mean, low, high, n, notes=notes, **style)


def remaining(levels: DataFrame) -> tuple[str, Axis]:
    """What levels are drawn against: parameters left, or of channels the share of them left.

    Channels that masks prune leave most parameters of a model with large linear layers.
    """
    if "channels_left" in levels and len(levels) and levels["channels_left"].notna().all():
        return "channels_left", shrinking("channels left")
    return "params_left", shrinking("parameters left")


def configurations_of(evidence: Evidence, rows: DataFrame) -> Iterator[tuple[str, DataFrame]]:
    """The label and rows of each configuration that is drawn, those with most seeds first."""
    chosen = evidence.configurations.loc[sorted(rows["configuration"].dropna().unique())]
    chosen = chosen.sort_values("n", ascending=False, kind="stable").head(MOST_PANELS)
    for number, label in chosen["label"].items():
        yield str(label), where(rows, configuration=number)


def panel_each(title: str, evidence: Evidence, rows: DataFrame, panels: Panels) -> Chart:
    """Panels of each configuration; the title says how many of them are left out."""
    more = rows["configuration"].nunique() - MOST_PANELS
    title += f" ({more} more configurations: see the tables)" if more > 0 else ""
    drawn = [panel for each in configurations_of(evidence, rows) for panel in panels(*each)]
    return Chart(title, drawn[:MOST_PANELS])


def frame_of(records: Sequence[Any], kind: type[Any]) -> DataFrame:
    return DataFrame(map(vars, records), columns=[*kind.__dataclass_fields__])
