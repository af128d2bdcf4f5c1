"""Curves: from rows of runs to the lines of a figure. Points are means over seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pruneflow.report.charts import CHANNELS_LEFT, PARAMS_LEFT, Axis, Line
from pruneflow.report.evidence import Evidence, summary, where

MOST_PANELS = 12


@dataclass(frozen=True)
class Overlay:
    """Curves measured by others, laid beneath those of runs.

    Attributes:
        accuracy: of the levels of a configuration and the label of their line: test accuracy after
            fine-tuning against the fraction left.
        times: of the times of a configuration, against `batch_size` (rows of one level) or
            `params_left` (rows of one batch size).
    """

    accuracy: Callable[[pd.DataFrame, str], list[Line]] = lambda levels, label: []
    times: Callable[[pd.DataFrame, str], list[Line]] = lambda rows, x: []


def line_of(means: pd.DataFrame, x: str, label: str, **style: Any) -> Line:
    """A line of what `summary` computed, against one of its columns."""
    at, y, low, high, n = (means[name].tolist() for name in (x, "mean", "low", "high", "n"))
    return Line(label, at, y, low, high, n, **style)


def curve(
    rows: pd.DataFrame,
    column: str,
    label: str,
    *,
    x: str = "params_left",
    by: str = "level",
    **style: Any,
) -> Line:
    """Means and intervals of a column at each level, or whatever `by` names.

    Args:
        rows: a row a run and level.
        column: what is drawn.
        label: of the line.
        x: column whose mean it is drawn against.
        by: column of what a point is made of.
        style: further attributes of the line.
    """
    means = summary(rows, [by], column)
    at = means[by].map(rows.groupby(by)[x].mean().to_dict())
    notes = [
        f"{by.replace('_', ' ')} {int(point)}, {n} seed{'s' * (n > 1)}"
        for point, n in zip(means[by], means["n"], strict=True)
    ]
    return line_of(means.assign(x=at), "x", label, notes=notes, **style)


def control_curve(
    control: pd.DataFrame, levels: pd.DataFrame, column: str, label: str, x: str
) -> list[Line]:
    """The dense control of pruned levels, drawn against what those have left."""
    if control.empty:
        return []
    at = control["level"].map(levels.groupby("level")[x].mean().to_dict())
    placed = control.assign(at=at).dropna(subset=["at"])
    return [curve(placed, column, label, x="at", style=2, dash="dashed")]


def left(levels: pd.DataFrame) -> tuple[str, Axis]:
    """What levels are drawn against: parameters left, or of channels the share of them left.

    Channels that masks prune leave most parameters of a model with large linear layers.
    """
    if len(levels) and levels["channels_left"].notna().all():
        return "channels_left", CHANNELS_LEFT
    return "params_left", PARAMS_LEFT


def by_configuration(evidence: Evidence, rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The label and rows of each configuration that is drawn, those with most seeds first."""
    chosen = evidence.configurations.loc[sorted(rows["configuration"].dropna().unique())]
    chosen = chosen.sort_values("n", ascending=False, kind="stable").head(MOST_PANELS)
    return [(str(row["label"]), where(rows, configuration=i)) for i, row in chosen.iterrows()]


def titled(title: str, rows: pd.DataFrame) -> str:
    """A title that says how many configurations `by_configuration` leaves out."""
    left_out = rows["configuration"].nunique() - MOST_PANELS
    return f"{title} ({left_out} more configurations: levels.csv)" if left_out > 0 else title
