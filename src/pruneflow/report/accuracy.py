"""Figures of accuracy: against what is left, and compared between configurations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from pruneflow.config import short_model
from pruneflow.report.charts import ACCURACY, SPARSITY, Axis, Chart, Line, Panel
from pruneflow.report.curves import (
    MOST_PANELS,
    Overlay,
    by_configuration,
    control_curve,
    curve,
    left,
    line_of,
    titled,
)
from pruneflow.report.evidence import DECIDING, Evidence, paired, where


def accuracy_panel(levels: pd.DataFrame, title: str, more: Sequence[Line] = ()) -> Panel:
    """Accuracy on test and train, before and after fine-tuning, against what is left."""
    x, axis = left(levels)
    lines = [
        curve(
            levels, f"{split}_{when}", f"{split}, {when} fine-tuning", x=x, style=style, dash=dash
        )
        for style, split in enumerate(("test", "train"))
        for when, dash in (("after", "solid"), ("before", "dotted"))
    ]  # fmt: skip
    return Panel(title, axis, ACCURACY, [*lines, *more])


def accuracy(title: str, granularity: str) -> Callable[[Evidence, Overlay], Chart | None]:
    """The accuracy of iterative runs, a panel a configuration, beside its dense control."""

    def draw(evidence: Evidence, overlay: Overlay) -> Chart | None:
        levels = evidence.of(schedule="iterative", granularity=granularity)
        panels = []
        for label, rows in by_configuration(evidence, levels):
            control = evidence.control_of(rows)
            more = control_curve(control, rows, "test_after", "test, dense control", left(rows)[0])
            panels.append(accuracy_panel(rows, label, more + overlay.accuracy(rows, "test, after")))
        return Chart(titled(title, levels), panels) if panels else None

    return draw


def compared(
    by: str, title: str, *, apart: Sequence[str] = ()
) -> Callable[[Evidence, Overlay], Chart | None]:
    """Configurations that differ in one parameter alone, a panel each such set, a line a value.

    Args:
        by: the parameter they differ in.
        title: of the chart.
        apart: parameters that follow from it and may differ as well.
    """

    def draw(evidence: Evidence, overlay: Overlay) -> Chart | None:
        table = evidence.configurations
        table = table[table["schedule"] == "iterative"]
        same = [name for name in table if name in {*DECIDING} - {by, *apart}]
        panels = []
        for _, members in table.groupby(same, dropna=False, sort=False):
            if members[by].nunique() < 2:
                continue
            first = members.iloc[0]
            model = short_model(str(first["model"]))
            what = f"{model}, {first['dataset']}, {first['granularity']}"
            levels = evidence.of(configuration=list(members.index))
            x, axis = left(levels)
            lines: list[Line] = []
            for style, (number, member) in enumerate(members.sort_values(by).iterrows()):
                rows = where(levels, configuration=number)
                name = f"{member[by]:g}" if isinstance(member[by], float) else str(member[by])
                for when, dash in (("after", "solid"), ("before", "dotted")):
                    label = f"{name}, {when}"
                    lines.append(curve(rows, f"test_{when}", label, x=x, style=style, dash=dash))
                lines += overlay.accuracy(rows, f"{name}, after")
            panels.append(Panel(what, axis, ACCURACY, lines))
        return Chart(title, panels[:MOST_PANELS]) if panels else None

    return draw


def models(evidence: Evidence, overlay: Overlay) -> Chart | None:
    """Test accuracy after fine-tuning by model, of each model its configuration with most seeds."""
    panels = []
    table = evidence.configurations.sort_values(["n", "fraction"], ascending=False, kind="stable")
    table = table[(table["schedule"] == "iterative") & (table["criterion"] != "random")]
    for granularity, title in (("weight", "single weights"), ("channel", "channels")):
        chosen = where(table, granularity=granularity).drop_duplicates(["model", "dataset"])
        x, axis = left(evidence.of(configuration=list(chosen.index)))
        lines: list[Line] = []
        for style, (number, row) in enumerate(chosen.iterrows()):
            rows = evidence.of(configuration=number)
            name = f"{short_model(str(row['model']))}, {row['dataset']}"
            lines.append(curve(rows, "test_after", name, x=x, style=style))
            lines += overlay.accuracy(rows, name)
        if len(chosen) > 1:
            panels.append(Panel(title, axis, ACCURACY, lines))
    return Chart("Models compared: test accuracy after fine-tuning", panels) if panels else None


def schedules(evidence: Evidence, overlay: Overlay) -> Chart | None:
    """Iterative minus direct at the same sparsity, in accuracy, of runs that share a base."""
    lines = []
    chosen = by_configuration(evidence, evidence.of(schedule="direct"))
    for style, (label, rows) in enumerate(chosen):
        iterative, direct = evidence.iterative_like(rows), rows[rows["level"] > 0]
        for when, dash in (("after", "solid"), ("before", "dotted")):
            means = paired(iterative, direct, "target_sparsity", f"test_{when}")
            if len(means):
                name = f"{label}, {when} fine-tuning"
                lines.append(line_of(means, "target_sparsity", name, style=style, dash=dash))
    y = Axis("iterative - direct", percent=True)
    panel = Panel("test accuracy", SPARSITY, y, lines)
    return Chart("Iterative minus direct, paired", [panel]) if lines else None


def gap(evidence: Evidence, overlay: Overlay) -> Chart | None:
    """How much better a model is on what it was trained on, against sparsity; and its control."""
    levels = _with_gap(evidence.of(schedule=["iterative", "direct"]))
    y = Axis("train - test accuracy", percent=True)
    panels = []
    for label, rows in by_configuration(evidence, levels):
        control = _with_gap(evidence.control_of(rows))
        lines = [curve(rows, "gap", "pruned", x="sparsity")]
        lines += control_curve(control, rows, "gap", "dense control", "sparsity")
        panels.append(Panel(label, SPARSITY, y, lines))
    title = titled("Gap between train and test accuracy after fine-tuning", levels)
    return Chart(title, panels) if panels else None


def _with_gap(levels: pd.DataFrame) -> pd.DataFrame:
    return levels.assign(gap=levels["train_after"] - levels["test_after"])
