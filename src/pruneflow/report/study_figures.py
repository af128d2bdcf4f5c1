"""Figures of a report: one function each, from the evidence of many runs to a Chart.

Points are means over seeds, bars their 95 % interval. To add a figure, write the function and its
row in FIGURES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pruneflow.config import reads_texts, short_model
from pruneflow.report.charts import (
    ACCURACY,
    BATCH_LOG_MS,
    BATCH_MS,
    BATCH_SIZE,
    FORMS,
    PARAMS_LEFT,
    Axis,
    Chart,
    HeatMap,
    Line,
    Panel,
    ran_on,
)
from pruneflow.report.evidence import (
    DECIDING,
    Evidence,
    of_texts,
    paired,
    reference,
    summary,
    where,
)

MOST_PANELS = 12
_CURVES = (
    ("test, after fine-tuning", "test_after", 0, 0, "solid", False),
    ("test, before", "test_before", 0, 0, "dotted", True),
    ("train, after fine-tuning", "train_after", 1, 1, "solid", False),
    ("train, before", "train_before", 1, 1, "dotted", True),
)
_CHANNELS_LEFT = Axis("channels left (log scale)", "shrinking", percent=True)
_SPARSITY = Axis("sparsity", percent=True, limits=(0.0, 1.0))
_STUDY_GRANULARITY = {"weight": "unstructured", "channel": "structured"}


@dataclass(frozen=True)
class Figure:
    """A figure of the report.

    Attributes:
        number: of the study's figure that it rebuilds; empty for what goes beyond it.
        title: what it shows.
        caption: how it is read.
        draw: from the evidence, and whether the study's own curves are laid beneath; None where
            there are no runs for it.
        command: what would produce those runs.
    """

    number: str
    title: str
    caption: str
    draw: Callable[[Evidence, bool], Chart | None]
    command: str


# ------------------------------------------------------------------------ accuracy, params left


def _panels(evidence: Evidence, levels: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """A panel a configuration: its label and levels, those with most seeds first."""
    chosen = evidence.configurations.loc[sorted(levels["configuration"].unique())]
    chosen = chosen.sort_values("n", ascending=False, kind="stable").head(MOST_PANELS)
    return [(str(row["label"]), where(levels, configuration=i)) for i, row in chosen.iterrows()]


def _title(title: str, levels: pd.DataFrame) -> str:
    left_out = levels["configuration"].nunique() - MOST_PANELS
    return f"{title} ({left_out} more configurations: levels.csv)" if left_out > 0 else title


def _place(levels: pd.DataFrame) -> tuple[str, Axis]:
    """What levels are drawn against: parameters left, or of channels the share of them left.

    Channels that masks prune leave most parameters of a model with large linear layers.
    """
    if levels["channels_left"].notna().all():
        return "channels_left", _CHANNELS_LEFT
    return "params_left", PARAMS_LEFT


def _means(
    found: pd.DataFrame,
    x: str,
    label: str,
    *,
    colour: int = 0,
    marker: int = 0,
    dash: str = "solid",
    hollow: bool = False,
    notes: Sequence[str] | None = None,
) -> Line:
    """A line of what `summary` found, against one of its columns."""
    return Line(
        label,
        found[x].tolist(),
        found["mean"].tolist(),
        low=found["low"].tolist(),
        high=found["high"].tolist(),
        n=found["n"].tolist(),
        colour=colour,
        marker=marker,
        dash=dash,  # type: ignore[arg-type]
        hollow=hollow,
        notes=notes,
    )


def _line(
    levels: pd.DataFrame,
    column: str,
    label: str,
    *,
    x: str = "params_left",
    colour: int = 0,
    marker: int = 0,
    dash: str = "solid",
    hollow: bool = False,
) -> Line:
    """Means and intervals of a column, level by level, against the mean of another."""
    y, places = summary(levels, ["level"], column), summary(levels, ["level"], x)
    both = y.merge(places[["level", "mean"]], on="level", suffixes=("", "_x"))
    notes = [
        f"level {level}, {n} seed{'s' * (n > 1)}"
        for level, n in zip(both["level"], both["n"], strict=True)
    ]
    return _means(
        both, "mean_x", label,
        colour=colour, marker=marker, dash=dash, hollow=hollow, notes=notes,
    )  # fmt: skip


def _control(
    control: pd.DataFrame, levels: pd.DataFrame, column: str, label: str, x: str
) -> list[Line]:
    """The dense control of pruned levels, drawn where they are."""
    if control.empty:
        return []
    places = summary(levels, ["level"], x)[["level", "mean"]]
    placed = control.merge(places.rename(columns={"mean": "place"}), on="level")
    return [_line(placed, column, label, x="place", colour=2, marker=2, dash="dashed")]


def _of_study(evidence: Evidence, levels: pd.DataFrame, column: str, label: str) -> list[Line]:
    """The study's own curve of the same comparison, where it has one."""
    first = levels.iloc[0]
    model = "bert" if reads_texts(str(first["model"])) else short_model(str(first["model"]))
    told = reference("accuracy")
    own = told[
        (told["model"] == model)
        & (told["granularity"] == _STUDY_GRANULARITY[str(first["granularity"])])
        & (told["criterion"] == first["criterion"])
        & (told["schedule"] == first["schedule"])
        & (told["dataset"] == first["dataset"])
    ]
    if str(first["schedule"]) == "iterative":
        own = own[np.isclose(own["prune_fraction"], float(first["fraction"]), atol=0.01)]
    if own.empty:
        return []
    accuracy = own[f"test_accuracy_{column.rpartition('_')[2]}"]
    x, y = own["fraction_left"].tolist(), accuracy.tolist()
    return [Line(f"{label} (the paper's)", x, y, reference=True)]


def _accuracy(
    title: str, chosen: Callable[[Evidence], pd.DataFrame]
) -> Callable[[Evidence, bool], Chart | None]:
    """Accuracy on test and train before and after fine-tuning, a panel a configuration."""

    def draw(evidence: Evidence, overlay: bool) -> Chart | None:
        levels = chosen(evidence)
        if levels.empty:
            return None
        panels = []
        for label, own in _panels(evidence, levels):
            x, axis = _place(own)
            lines = [
                _line(
                    own, column, name, x=x, colour=colour, marker=marker, dash=dash, hollow=hollow
                )
                for name, column, colour, marker, dash, hollow in _CURVES
            ]
            control = evidence.control_of(own)
            lines += _control(control, own, "test_after", "test, dense control", x)
            if overlay:
                lines += _of_study(evidence, own, "test_after", "test, after")
            panels.append(Panel(label, axis, ACCURACY, lines))
        return Chart(_title(title, levels), panels)

    return draw


def _pruned(evidence: Evidence) -> pd.DataFrame:
    return evidence.of(schedule=["iterative", "direct"])


def _single_weights(evidence: Evidence) -> pd.DataFrame:
    levels = evidence.of(schedule="iterative", granularity="weight")
    return levels[~of_texts(levels["model"]) & (levels["criterion"] != "random")]


def _channels(evidence: Evidence) -> pd.DataFrame:
    return evidence.of(schedule="iterative", granularity="channel")


def _of_bert(evidence: Evidence) -> pd.DataFrame:
    levels = evidence.of(schedule="iterative")
    return levels[of_texts(levels["model"])]


# ------------------------------------------------------------------------ comparisons


def _compared(
    evidence: Evidence,
    levels: pd.DataFrame,
    by: str,
    *,
    title: str,
    overlay: bool,
    apart: Sequence[str] = (),
) -> Chart | None:
    """Configurations that differ in one parameter alone, a panel each such set, a line a value.

    Args:
        evidence: of the report.
        levels: to choose from.
        by: the parameter they differ in.
        title: of the chart.
        overlay: whether the study's own curves are drawn too.
        apart: parameters that follow from it and may differ as well.
    """
    table = evidence.configurations.loc[sorted(levels["configuration"].unique())]
    same = [name for name in table if name in {*DECIDING, "schedule"} - {by, *apart}]
    panels = []
    for _, members in table.groupby(same, dropna=False, sort=False):
        if members[by].nunique() < 2:
            continue
        first = members.iloc[0]
        x, axis = _place(where(levels, configuration=list(members.index)))
        lines = []
        for place, (number, member) in enumerate(members.sort_values(by).iterrows()):
            own = where(levels, configuration=number)
            value = member[by]
            name = f"{value:g}" if isinstance(value, float) else str(value)
            lines.append(
                _line(own, "test_after", f"{name}, after", x=x, colour=place, marker=place)
            )
            lines.append(
                _line(
                    own,
                    "test_before",
                    f"{name}, before",
                    x=x,
                    dash="dotted",
                    hollow=True,
                    colour=place,
                    marker=place,
                )
            )
            if overlay:
                lines += _of_study(evidence, own, "test_after", f"{name}, after")
        what = f"{short_model(str(first['model']))}, {first['dataset']}, {first['granularity']}"
        panels.append(Panel(what, axis, ACCURACY, lines))
    return Chart(title, panels[:MOST_PANELS]) if panels else None


def criteria(evidence: Evidence, overlay: bool) -> Chart | None:
    """Test accuracy by criterion, all else equal."""
    levels = evidence.of(schedule="iterative")
    return _compared(evidence, levels, "criterion", title="Criteria compared", overlay=overlay)


def fractions(evidence: Evidence, overlay: bool) -> Chart | None:
    """Test accuracy by the fraction that a level removes, all else equal."""
    levels = evidence.of(schedule="iterative")
    return _compared(
        evidence,
        levels,
        "fraction",
        title="Prune fractions compared",
        overlay=overlay,
        apart=["iterations", "target_sparsity"],
    )


def models(evidence: Evidence, overlay: bool) -> Chart | None:
    """Test accuracy after fine-tuning by model, of each model its configuration with most seeds."""
    panels = []
    for granularity, title in (("weight", "single weights"), ("channel", "channels")):
        levels = evidence.of(schedule="iterative", granularity=granularity)
        levels = levels[levels["criterion"] != "random"]
        table = evidence.configurations.loc[sorted(levels["configuration"].unique())]
        table = table.sort_values(["n", "fraction"], ascending=False, kind="stable")
        chosen = table.drop_duplicates(["model", "dataset"])
        x, axis = _place(levels) if len(levels) else ("params_left", PARAMS_LEFT)
        lines = []
        for place, (number, row) in enumerate(chosen.iterrows()):
            own = where(levels, configuration=number)
            name = f"{short_model(str(row['model']))}, {row['dataset']}"
            lines.append(_line(own, "test_after", name, x=x, colour=place, marker=place))
            if overlay:
                lines += _of_study(evidence, own, "test_after", name)
        if len(chosen) > 1:
            panels.append(Panel(title, axis, ACCURACY, lines))
    return Chart("Models compared: test accuracy after fine-tuning", panels) if panels else None


def masks_and_removal(evidence: Evidence, overlay: bool) -> Chart | None:
    """Parameters of convolutions that masks keep against those that are left when removed."""
    levels = evidence.of(schedule="iterative", granularity="channel")
    if levels.empty:
        return None
    whole = levels[levels["level"] == 0].set_index("run_id")["conv_params_masked"]
    before = levels["run_id"].map(whole).astype(float)
    levels = levels.assign(
        by_masks=levels["conv_params_masked"].astype(float) / before,
        removed=levels["conv_params_compact"].astype(float) / before,
        asked=1 - levels["target_sparsity"],
    )
    axis = Axis("channels left, as asked", "shrinking", percent=True)
    y = Axis("parameters of convolutions left", percent=True, limits=(0.0, 1.02))
    panels = []
    for label, own in _panels(evidence, levels):
        lines = [
            _line(own, "by_masks", "by masks", x="asked", colour=0, marker=0),
            _line(own, "removed", "physically removed", x="asked", colour=1, marker=1),
        ]
        panels.append(Panel(label, axis, y, lines))
    return Chart(_title("Parameters by masks against removed", levels), panels)


# ------------------------------------------------------------------------ latency


_SETTING = ("machine", "device", "threads")  # times of two are never put together


def _of_one(rows: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The rows that have the values of these columns which most rows have."""
    numbers = rows.groupby(list(columns), dropna=False).ngroup()
    return rows[numbers == numbers.mode().iloc[0]]


def _timed(evidence: Evidence, alexnet: bool) -> pd.DataFrame:
    """Times in eager PyTorch, of one machine, device and number of threads: those with most rows.

    A row a seed and base, level, form and batch size: of several benchmarks of it the median, since
    a run that is timed twice is one sample.
    """
    rows = evidence.latencies
    rows = rows[
        (rows["engine"] == "eager") & rows["p50_ms"].notna() & rows["configuration"].notna()
    ]
    rows = rows[(rows["model"] == "alexnet") == alexnet]
    if rows.empty:
        return rows
    rows = _of_one(rows, _SETTING)
    keys = ["configuration", "model", "seed", "base_run", *_SETTING]
    return (
        rows.groupby([*keys, "level", "form", "batch_size"], dropna=False)[
            ["p50_ms", "params_left", "channels_left"]
        ]
        .median()
        .reset_index()
    )


def _where(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    return ran_on(str(first["device"]), int(first["threads"]), str(first["machine"]))


def latency_by_batch_size(alexnet: bool) -> Callable[[Evidence, bool], Chart | None]:
    """Median time of a batch against batch size, a line a form, at the last level of each run."""

    def draw(evidence: Evidence, overlay: bool) -> Chart | None:
        rows = _timed(evidence, alexnet)
        if rows.empty:
            return None
        panels = []
        for number, own in list(rows.groupby("configuration"))[:MOST_PANELS]:
            last = own[own["level"] == own["level"].max()]
            lines = []
            for form in _in_order(last["form"]):
                here = summary(where(last, form=form), ["batch_size"], "p50_ms")
                look = FORMS[form]
                lines.append(_means(here, "batch_size", form, colour=look, marker=look))
            left = float(last["params_left"].mean())
            lines += _study_times(own, "batch_size", left) if overlay else []
            label = evidence.label(number)
            title = f"{label}, {100 * left:.3g} % left"
            panels.append(Panel(title, BATCH_SIZE, BATCH_LOG_MS, lines))
        return Chart(f"Latency against batch size; {_where(rows)}", panels)

    return draw


def latency_by_params_left(alexnet: bool) -> Callable[[Evidence, bool], Chart | None]:
    """Median time against parameters left, a line a form, at the smallest and largest batch."""

    def draw(evidence: Evidence, overlay: bool) -> Chart | None:
        rows = _timed(evidence, alexnet)
        if rows.empty:
            return None
        panels = []
        for number, own in rows.groupby("configuration"):
            for batch in sorted({int(own["batch_size"].min()), int(own["batch_size"].max())}):
                here = where(own, batch_size=batch)
                x, axis = _place(here)
                lines = [
                    _line(
                        where(here, form=form), "p50_ms", form, x=x,
                        colour=FORMS[form], marker=FORMS[form],
                    )
                    for form in _in_order(here["form"])
                ]  # fmt: skip
                lines += _study_times(own, "fraction_left", batch) if overlay else []
                label = evidence.label(number)
                panels.append(Panel(f"{label}, batch {batch}", axis, BATCH_MS, lines))
        return Chart(f"Latency against parameters left; {_where(rows)}", panels[:MOST_PANELS])

    return draw


def _in_order(forms: Iterable[str]) -> list[str]:
    there = set(forms)
    return [form for form in FORMS if form in there]


def _study_times(own: pd.DataFrame, x: str, at: float) -> list[Line]:
    """The study's own times on its GPU, of the same model."""
    told = reference("latency")
    told = told[told["model"] == own["model"].iloc[0]]
    if told.empty:
        return []
    if x == "batch_size":
        nearest = (told["fraction_left"] - at).abs().idxmin()
        told = told[told["fraction_left"] == told.loc[nearest, "fraction_left"]]
    else:
        told = told[told["batch_size"] == at]
    return [
        Line(f"{form} (the paper's, GPU)", told[x].tolist(), told[column].tolist(), reference=True)
        for form, column in (("dense", "original_ms"), ("compact", "compact_ms"))
        if len(told)
    ]


# ------------------------------------------------------------------------ beyond the study


def pareto(evidence: Evidence, overlay: bool) -> Chart | None:
    """Test accuracy against parameters, MACs and measured time: every level, and the front."""
    levels = _pruned(evidence)
    if levels.empty:
        return None
    points = levels.groupby(["model", "dataset", "configuration", "level"], as_index=False)[
        ["test_after", "params_left", "macs_left"]
    ].mean()
    times = _best_times(evidence)
    points = points.merge(times, on=["configuration", "level"], how="left")
    axes = {
        "params_left": PARAMS_LEFT,
        "macs_left": Axis("MACs left (log scale)", "shrinking", percent=True),
        "time_left": Axis("time of a batch / dense (log scale)", "shrinking", percent=True),
    }
    panels = []
    for column, axis in axes.items():
        lines: list[Line] = []
        for place, ((model, dataset), own) in enumerate(points.groupby(["model", "dataset"])):
            own = own[own[column] > 0].sort_values(
                [column, "test_after"], ascending=[False, True], kind="stable"
            )
            if own.empty:
                continue
            name = f"{short_model(str(model))}, {dataset}"
            labels = evidence.configurations["label"]
            notes = [
                f"{labels[c]}, level {level}"
                for c, level in zip(own["configuration"], own["level"], strict=True)
            ]
            x, y = own[column].tolist(), own["test_after"].tolist()
            lines.append(
                Line(name, x, y, dash="none", hollow=True, notes=notes, colour=place, marker=place)
            )
            front = _front(own)
            lines.append(
                Line(
                    f"{name}, front",
                    front[column].tolist(),
                    front["test_after"].tolist(),
                    dash="steps",
                    colour=place,
                    marker=place,
                )
            )
        if lines:
            panels.append(Panel(axis.label.partition(" (")[0], axis, ACCURACY, lines))
    return Chart("Pareto fronts: test accuracy after fine-tuning against cost", panels)


def _front(points: pd.DataFrame) -> pd.DataFrame:
    """Those of points, the costliest first, that no other equals or beats in both."""
    accuracy = points["test_after"].iloc[::-1]
    better = accuracy > accuracy.cummax().shift(fill_value=-np.inf)
    return points[better.iloc[::-1]]


def _best_times(evidence: Evidence) -> pd.DataFrame:
    """Of each configuration and level the shortest time of any form, relative to dense.

    Of one machine, the one with most rows.
    """
    rows = evidence.latencies
    rows = rows[rows["speedup"].notna() & rows["configuration"].notna()]
    rows = _of_one(rows, ["machine"]) if len(rows) else rows
    rows = rows.assign(time_left=1 / rows["speedup"].astype(float))
    found = rows.groupby(["configuration", "level"])["time_left"].min().reset_index()
    return found.astype({"configuration": "int64"})


def gap(evidence: Evidence, overlay: bool) -> Chart | None:
    """How much better a model is on what it was trained on, against sparsity; and its control."""
    levels = _pruned(evidence)
    if levels.empty:
        return None
    levels = _with_gap(levels)
    axis, y = _SPARSITY, Axis("train - test accuracy", percent=True)
    panels = []
    for label, own in _panels(evidence, levels):
        lines = [_line(own, "gap", "pruned", x="sparsity")]
        control = _with_gap(evidence.control_of(own))
        lines += _control(control, own, "gap", "dense control", "sparsity")
        panels.append(Panel(label, axis, y, lines))
    return Chart(_title("Gap between train and test accuracy after fine-tuning", levels), panels)


def _with_gap(levels: pd.DataFrame) -> pd.DataFrame:
    return levels.assign(gap=levels["train_after"] - levels["test_after"])


def heat_maps(evidence: Evidence, overlay: bool) -> Chart | None:
    """Sparsity of every pruned tensor at every level, the mean over seeds."""
    layers = where(evidence.layers, schedule=["iterative", "direct"])
    layers = layers[layers.groupby(["configuration", "layer"])["zeros"].transform("max") > 0]
    panels = []
    for number in layers["configuration"].unique()[:MOST_PANELS]:
        own = where(layers, configuration=number)
        table = own.pivot_table(index="layer", columns="level", values="sparsity", sort=False)
        table = table.reindex(columns=sorted(table.columns))
        names = [str(name) for name in table.index]
        levels = [str(level) for level in table.columns]
        label = evidence.label(number)
        panels.append(HeatMap(label, names, levels, table.to_numpy().tolist(), "level", "sparsity"))
    return Chart("Sparsity of each tensor", panels) if panels else None


def requested(evidence: Evidence, overlay: bool) -> Chart | None:
    """What was removed against what was asked for: weights, or channels."""
    levels = _pruned(evidence)
    if levels.empty:
        return None
    achieved = levels["sparsity"].where(levels["channels_left"].isna(), 1 - levels["channels_left"])
    levels = levels.assign(achieved=achieved)
    axis = Axis("asked for", percent=True, limits=(0.0, 1.0))
    y = Axis("removed", percent=True, limits=(0.0, 1.0))
    lines = [Line("as asked", [0.0, 1.0], [0.0, 1.0], reference=True)]
    for place, (label, own) in enumerate(_panels(evidence, levels)):
        lines.append(
            _line(
                own, "achieved", label, x="target_sparsity", dash="none", colour=place, marker=place
            )
        )
    return Chart("Requested against achieved", [Panel("fraction removed", axis, y, lines)])


def schedules(evidence: Evidence, overlay: bool) -> Chart | None:
    """Iterative minus direct at the same sparsity, in accuracy, of runs that share a base."""
    direct = evidence.of(schedule="direct")
    lines = []
    for place, (label, own) in enumerate(_panels(evidence, direct) if len(direct) else []):
        other = evidence.iterative_like(own)
        own = own[own["level"] > 0]
        for column, dash in (("test_after", "solid"), ("test_before", "dotted")):
            found = paired(other, own, "target_sparsity", column)
            if found.empty:
                continue
            when = "after" if column == "test_after" else "before"
            lines.append(
                _means(
                    found, "target_sparsity", f"{label}, {when} fine-tuning",
                    colour=place, marker=place, dash=dash, hollow=column == "test_before",
                )
            )  # fmt: skip
    if not lines:
        return None
    axis, y = _SPARSITY, Axis("iterative - direct", percent=True)
    return Chart("Iterative minus direct, paired", [Panel("test accuracy", axis, y, lines)])


_ALEXNET = "pruneflow prune_iterative --model alexnet"
_PAPER = "pruneflow sweep --study paper_small"
FIGURES: dict[str, Figure] = {
    "masks_and_removal": Figure(
        "2", "Parameters by masks against removed",
        "What masks keep of the convolutions, and what is left when their filters are removed.",
        masks_and_removal, f"{_ALEXNET} --granularity channel --coupling independent",
    ),
    "accuracy_weights": Figure(
        "3", "Accuracy, single weights",
        "Accuracy before and after each level's fine-tuning; the control is trained as long.",
        _accuracy("Accuracy against parameters left, single weights", _single_weights), _ALEXNET,
    ),
    "criteria": Figure(
        "4", "Criteria compared", "Configurations that differ in their criterion alone.",
        criteria, f"{_ALEXNET} --criterion random",
    ),
    "accuracy_channels": Figure(
        "5", "Accuracy, channels", "As for single weights, against the share of channels left.",
        _accuracy("Accuracy against channels left", _channels),
        f"{_ALEXNET} --granularity channel",
    ),
    "latency_by_batch_size_alexnet": Figure(
        "6", "Latency against batch size, AlexNet", "Median of a batch, at the last level.",
        latency_by_batch_size(True), "pruneflow benchmark_latency --model alexnet",
    ),
    "latency_by_params_left_alexnet": Figure(
        "7", "Latency against parameters left, AlexNet", "Median of a batch.",
        latency_by_params_left(True), "pruneflow benchmark_latency --model alexnet",
    ),
    "accuracy_bert": Figure(
        "8", "Accuracy, BERT", "As for single weights; encoders of texts.",
        _accuracy("Accuracy against parameters left, BERT", _of_bert),
        "pruneflow prune_iterative --model bert",
    ),
    "fractions": Figure(
        "9", "Prune fractions compared", "Configurations that differ in the fraction alone.",
        fractions, "pruneflow prune_iterative --model bert --fraction 0.2929",
    ),
    "latency_by_batch_size": Figure(
        "10", "Latency against batch size, other models", "Median of a batch, at the last level.",
        latency_by_batch_size(False), "pruneflow benchmark_latency --model resnet18",
    ),
    "latency_by_params_left": Figure(
        "11", "Latency against parameters left, other models", "Median of a batch.",
        latency_by_params_left(False), "pruneflow benchmark_latency --model resnet18",
    ),
    "models": Figure(
        "12", "Models compared", "Of each model the configuration with most seeds.", models, _PAPER,
    ),
    "pareto": Figure(
        "", "Pareto fronts", "A front has the levels that no other beats in cost and accuracy.",
        pareto, _ALEXNET,
    ),
    "schedules": Figure(
        "", "Iterative against direct", "Runs of the same base, at the same sparsity.",
        schedules, "pruneflow prune_direct --model alexnet",
    ),
    "gap": Figure(
        "", "Train-test gap", "Beside a control that was trained as long and not pruned.",
        gap, _ALEXNET,
    ),
    "heat_maps": Figure(
        "", "Sparsity of each tensor", "Means over seeds, in percent.", heat_maps, _ALEXNET,
    ),
    "requested": Figure(
        "", "Requested against achieved", "Whole units, and groups that must not be emptied.",
        requested, _ALEXNET,
    ),
}  # fmt: skip
