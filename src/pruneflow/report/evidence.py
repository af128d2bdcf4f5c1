"""Evidence: what runs say, as the figures, tables and claims of a report read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from pandas import DataFrame, Series
from scipy import stats

from pruneflow import query
from pruneflow.config import PruneConfig, short_model

# What may differ between runs of one configuration: its repetitions, and where they were run.
_REPEATED = {
    *("seed", "data_dir", "base_run", "sensitivity_run", "preset", "device", "threads"),
    *("system_metrics", "energy"),
}
DECIDING = [name for name in PruneConfig.model_fields if name not in _REPEATED]
SETTING = ["machine", "device", "threads"]  # times of two are never put together
# What levels, layers and times have besides the query's columns.
_ADDED = ["configuration", "procedure", "schedule", "finetune_epochs"]
CONFIDENCE = 0.95
_NEAR = 0.02  # of a share: a level that costs so nearly that much costs it
NEARLY_SAME = 0.0005  # sparsities closer than this are compared as the same
_READ_LAYERS, _READ_ENVIRONMENTS = 24, 200  # artifacts of so many configurations, and runs


@dataclass(frozen=True)
class Evidence:
    """Records of runs, tidy, with the columns of `pruneflow.query`.

    Runs that differ in seed alone share a number, their `configuration`. Their `procedure` is
    `iterative`, `direct` or `gradual`, or `dense` of a control that is not pruned.
    """

    title: str  # experiment or study
    runs: DataFrame  # all, of any status
    pruning: DataFrame  # finished pruning runs whose levels could be read
    # Levels of these, the newest of those that repeat a seed on one base. Besides the query's
    # columns `gap` (train - test accuracy), `achieved` (share removed, of weights, channels or a
    # budget's cost) and `masks_left`, `removed_left`: parameters of convolutions by masks, and in
    # the compact form.
    levels: DataFrame
    layers: DataFrame
    latencies: DataFrame  # of finished benchmarks
    environments: dict[str, Any]  # environment.json of some of the runs, by run id

    @cached_property
    def configurations(self) -> DataFrame:
        """A row a configuration: its parameters, `procedure`, `stage`, `n` (seeds) and `label`."""
        runs = self.pruning.groupby("configuration", sort=True)
        last = self.levels.groupby("configuration")["level"].max().astype(float)
        table = runs.first().assign(n=runs["seed"].nunique(), last_level=last)
        return table.assign(label=labels(table))

    def of(self, **values: object) -> DataFrame:
        """Levels of the runs that have these values; a list or tuple means any of its own."""
        return where(self.levels, **values)

    @property
    def pruned(self) -> DataFrame:
        """Levels of the runs that are no dense controls."""
        return self.levels[self.levels["procedure"] != "dense"]

    def iterative_like(self, levels: DataFrame) -> DataFrame:
        """Geometric iterative levels of the same model, data, criterion and units as these."""
        names = ["model", "dataset", "criterion", "granularity", "scope", "coupling"]
        # a coupling is of channels alone
        same: Any = levels.iloc[0][names].dropna().to_dict()
        return self.of(procedure="iterative", schedule="geometric", **same)

    def control_of(self, levels: DataFrame) -> DataFrame:
        """Levels of the dense controls that were trained as long as these, from their bases."""
        keys = ["base_run", "finetune_epochs", "level"]
        return self.of(procedure="dense").merge(levels[keys].drop_duplicates(), on=keys)


def read(title: str, *, experiment: str | None = None, study: str | None = None) -> Evidence:
    """Read the runs of an experiment or study, curves first.

    Raises:
        InputError: an experiment that is not there.
    """
    runs, levels = query.runs_and_levels(experiment, study=study)
    latencies = query.latencies(experiment, study=study)
    chosen = with_configuration(runs)
    few = chosen["configuration"].unique()[:_READ_LAYERS]
    ids = chosen.loc[chosen["configuration"].isin(few), "run_id"].tolist()
    environments = query.environments(ids[:_READ_ENVIRONMENTS])
    return gather(title, runs, levels, query.layers(run_ids=ids), latencies, environments)


def gather(
    title: str,
    runs: DataFrame,
    levels: DataFrame,
    layers: DataFrame,
    latencies: DataFrame,
    environments: dict[str, Any],
) -> Evidence:
    """Put the query's frames together; what is not of a finished run is left out but in `runs`."""
    pruning = with_configuration(runs[runs["run_id"].isin(levels["run_id"])])
    added = pruning.set_index("run_id")[_ADDED]
    counted = newest_of_each(pruning)["run_id"]
    kept = levels.set_index(["run_id", "level"])["channels_left"]
    timed = latencies[latencies["run_status"] == "FINISHED"] if len(latencies) else latencies
    timed = timed.join(added, on="pruning_run").join(kept, on=["pruning_run", "level"])
    layers = layers[layers["run_id"].isin(counted)].join(added, on="run_id")
    levels = levels[levels["run_id"].isin(counted)].join(added, on="run_id")
    unpruned = levels[levels["level"] == 0].set_index("run_id")["conv_params_masked"]
    before = levels["run_id"].map(unpruned).astype(float)
    kept, cost = levels["channels_left"], levels["budget_achieved"]
    levels = levels.assign(
        gap=levels["train_after"] - levels["test_after"],
        achieved=levels["sparsity"].where(kept.isna(), 1 - kept).where(cost.isna(), 1 - cost),
        masks_left=levels["conv_params_masked"].astype(float) / before,
        removed_left=levels["conv_params_compact"].astype(float) / before,
    )
    return Evidence(title, runs, pruning, levels, layers, timed, environments)


def with_configuration(runs: DataFrame) -> DataFrame:
    """The finished pruning runs of a frame of runs, with their `configuration` and `procedure`.

    A parameter that there was not yet when a run was made counts as its default.
    """
    of_pruning = runs["stage"].str.startswith("prune_").fillna(False).astype(bool)
    pruning = runs[of_pruning & (runs["status"] == "FINISHED")]
    columns = ["stage", *(name for name in DECIDING if name in pruning)]
    fields = {name: PruneConfig.model_fields[name] for name in columns[1:]}
    pruning = pruning.fillna({n: f.default for n, f in fields.items() if _is_known(f.default)})
    procedure = pruning["stage"].str.removeprefix("prune_")
    return pruning.assign(
        configuration=pruning.groupby(columns, dropna=False, sort=False).ngroup(),
        procedure=procedure.where(pruning["fraction"] != 0, "dense"),
    )


def newest_of_each(pruning: DataFrame) -> DataFrame:
    """The runs without those that repeat a seed on one base: the same result is no new sample."""
    return pruning[~pruning.duplicated(["configuration", "seed", "base_run"], keep="last")]


def _is_known(default: object) -> bool:
    """Whether a parameter's default is a value, and not left to the preset or a list."""
    return isinstance(default, str | int | float)


def where(frame: DataFrame, **values: object) -> DataFrame:
    """The rows that have these values; a list or tuple means any of its own."""
    for name, value in values.items():
        wanted = list(value) if isinstance(value, list | tuple) else [value]
        frame = frame[frame[name].isin(wanted).fillna(False).astype(bool)]
    return frame


def labels(table: DataFrame) -> Series[str]:
    """A name for each configuration: its model, and whatever is not the same for all."""
    bare = ["dataset", "procedure", "criterion", "granularity", "coupling", "form", "scope"]
    others = [name for name in DECIDING if name in table and name not in ("model", *bare)]
    # what every configuration of a model has follows from the model, which is named
    of_model = table.groupby(["model", "dataset"], dropna=False)
    shown = ["dataset"] if table["dataset"].nunique() > 1 else []
    shown += [n for n in (*bare[1:], *others) if (of_model[n].nunique(dropna=False) > 1).any()]

    def label(row: Series) -> str:
        values = {name: row[name] for name in shown if not pd.isna(row[name])}
        texts = {k: f"{v:g}" if isinstance(v, float) else str(v) for k, v in values.items()}
        parts = [text if k in bare else f"{k} {text}" for k, text in texts.items() if text]
        return ", ".join([short_model(row["model"]), *parts])

    names = Series([label(row) for _, row in table.iterrows()], table.index, dtype=object)
    for column in ("model", "stage"):  # models of one short name; a control of either stage
        alike = names.duplicated(keep=False)
        names[alike] += ", " + table.loc[alike, column].astype(str)
    return names


def summary(frame: DataFrame, by: Sequence[str], column: str) -> DataFrame:
    """Mean, sample sd and Student's 95 % interval of a column over the runs of each group.

    Returns `by`, then `mean`, `sd`, `low`, `high`, `n`. Rows where the column is missing count
    nothing; the sd and the interval of one run are NaN.
    """
    known = frame[frame[column].notna()]
    means = known.groupby(list(by), dropna=False, sort=True)[column].agg(["mean", "std", "count"])
    means = means.rename(columns={"std": "sd", "count": "n"}).reset_index()
    n = means["n"].to_numpy(dtype=float)
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) * means["sd"].astype(float) / np.sqrt(n)
    means = means.assign(low=means["mean"] - half, high=means["mean"] + half)
    return means[[*by, "mean", "sd", "low", "high", "n"]]


def differences(first: DataFrame, second: DataFrame, on: str, column: str) -> DataFrame:
    """Differences first - second of levels that share a base run and their value of `on`.

    Returns a row a base run and value: `base_run`, `seed`, `on`, `first`, `second` (means, where
    a base has several runs) and `difference`.
    """
    keys = ["base_run", "seed", on]
    sides = {"first": first, "second": second}
    rows = pd.concat([part[[*keys, column]].assign(side=side) for side, part in sides.items()])
    rows = rows.assign(**{on: nearly_same(rows[on]), column: rows[column].astype(float)})
    means = rows.groupby([*keys, "side"])[column].mean().unstack("side")
    means = means.reindex(columns=["first", "second"]).dropna().rename_axis(columns=None)
    return means.assign(difference=means["first"] - means["second"]).reset_index()


def paired(first: DataFrame, second: DataFrame, on: str, column: str) -> DataFrame:
    """The `differences` summarised over the bases, and the means `first` and `second` of them."""
    both = differences(first, second, on, column)
    means = both.groupby(on)[["first", "second"]].mean()
    return summary(both, [on], "difference").merge(means, on=on)


def nearly_same(values: Series[float]) -> Series[float]:
    """Values, to six digits as curves are kept, where those that are nearly the same are the least.

    Rounding to fewer digits would part values that differ in their last: 0.9375 lies on an edge.
    """
    rounded = values.astype(float).round(6)
    ordered = np.unique(rounded.dropna())
    starts = np.diff(ordered, prepend=-np.inf) > NEARLY_SAME
    least = ordered[starts][np.cumsum(starts) - 1]
    return rounded.map(dict(zip(ordered, least, strict=True)))


def at_cost(levels: DataFrame, cost: str, share: float) -> DataFrame:
    """Test accuracy after fine-tuning of each run where it costs a share of the unpruned model.

    Between two pruned levels it is that of the line between them over the logarithm of the cost;
    beyond a run's levels it is not known. Returns `configuration`, `base_run`, `seed`, `share` and
    `test_after`, a row a run.
    """
    rows = []
    for keys, run in levels[levels["level"] > 0].groupby(["configuration", "base_run", "seed"]):
        known = run[run[cost] > 0].sort_values(cost)
        costs, accuracies = known[cost].astype(float), known["test_after"].astype(float)
        if len(known) and costs.min() * (1 - _NEAR) <= share <= costs.max() * (1 + _NEAR):
            accuracy = np.interp(np.log(share), np.log(costs), accuracies)
            rows.append([*keys, share, accuracy])
    return DataFrame(rows, columns=["configuration", "base_run", "seed", "share", "test_after"])
