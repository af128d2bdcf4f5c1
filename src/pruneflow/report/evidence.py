"""Evidence: what runs say, as the figures, tables and claims of a report read it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy import stats

from pruneflow import query
from pruneflow.config import PruneConfig, short_model

# What may differ between runs of one configuration: its repetitions, and where they were run.
_REPEATED = {"seed", "data_dir", "base_run", "preset", "device", "threads"}
DECIDING = [name for name in PruneConfig.model_fields if name not in _REPEATED]
CONFIDENCE = 0.95
SAME_PLACE = 0.0005  # sparsities closer than this are one place of a comparison


@dataclass(frozen=True)
class Evidence:
    """Records of runs, tidy, with the columns of `pruneflow.query`.

    Attributes:
        title: experiment or study.
        runs: every run, of any status.
        pruning: the finished pruning runs whose levels could be read, with `configuration` and
            `schedule` as below.
        levels: of finished pruning runs, the newest of those that repeat a seed on one base.
            Besides the query's columns `configuration`, a number that runs share which differ in
            seed alone, `schedule`: `iterative`, `direct`, or `dense` of a control that is not
            pruned, and `finetune_epochs` of each level.
        layers: of those whose layers were read, with `configuration`.
        latencies: of finished benchmarks, with the `configuration` of the pruning run.
        environments: `environment.json` of some finished runs, by run id.
    """

    title: str
    runs: pd.DataFrame
    pruning: pd.DataFrame
    levels: pd.DataFrame
    layers: pd.DataFrame
    latencies: pd.DataFrame
    environments: dict[str, dict[str, object]]

    @cached_property
    def configurations(self) -> pd.DataFrame:
        """A row a configuration of pruning runs, by its number.

        The columns are the parameters, `schedule`, `stage`, `n` (seeds) and `label`, a name that
        says all in which it differs from the others.
        """
        first = self.pruning.groupby("configuration", sort=True)
        table = first.first()
        table["n"] = first["seed"].nunique()
        table["label"] = _labels(table)
        return table

    def label(self, configuration: object) -> str:
        """The name of a configuration, by its number."""
        return str(dict(self.configurations["label"].items())[configuration])

    def of(self, **values: object) -> pd.DataFrame:
        """Levels of the runs that have these values; a list or tuple means any of its own."""
        return where(self.levels, **values)

    def iterative_like(self, levels: pd.DataFrame) -> pd.DataFrame:
        """Iterative levels of the model, data and way to choose that these levels have."""
        first = levels.iloc[0]
        names = ("model", "dataset", "criterion", "granularity", "scope", "coupling")
        # a coupling is of channels alone
        same = {name: first[name] for name in names if not pd.isna(first[name])}
        return self.of(schedule="iterative", **same)

    def control_of(self, levels: pd.DataFrame) -> pd.DataFrame:
        """Levels of the dense controls that were trained as long as these, from their bases."""
        keys = ["base_run", "finetune_epochs", "level"]
        return self.of(schedule="dense").merge(levels[keys].drop_duplicates(), on=keys)


def where(frame: pd.DataFrame, **values: object) -> pd.DataFrame:
    """The rows that have these values; a list or tuple means any of its own."""
    for name, value in values.items():
        wanted = list(value) if isinstance(value, list | tuple) else [value]
        frame = frame[frame[name].isin(wanted).fillna(False).astype(bool)]
    return frame


def gather(
    title: str,
    runs: pd.DataFrame,
    levels: pd.DataFrame,
    layers: pd.DataFrame,
    latencies: pd.DataFrame,
    environments: dict[str, dict[str, object]],
) -> Evidence:
    """Put the query's frames together; what is not of a finished run is left out but in `runs`."""
    pruning = with_configuration(runs[runs["run_id"].isin(levels["run_id"])])
    added = pruning.set_index("run_id")[["configuration", "schedule", "finetune_epochs"]]
    # the same seed again is the same result, and would count as a second sample
    again = pruning.duplicated(["configuration", "seed", "base_run"], keep="last")
    counted = pruning.loc[~again, "run_id"]
    known = levels[levels["run_id"].isin(counted)].join(added, on="run_id")
    known_layers = layers[layers["run_id"].isin(counted)].join(added, on="run_id")
    timed = latencies[latencies["run_status"] == "FINISHED"] if len(latencies) else latencies
    timed = timed.join(added, on="pruning_run")
    places = levels[["run_id", "level", "channels_left"]].rename(columns={"run_id": "pruning_run"})
    timed = timed.merge(places, on=["pruning_run", "level"], how="left")
    return Evidence(title, runs, pruning, known, known_layers, timed, environments)


def with_configuration(runs: pd.DataFrame) -> pd.DataFrame:
    """The finished pruning runs of a frame of runs, with their `configuration` and `schedule`."""
    of_pruning = runs["stage"].str.startswith("prune_").fillna(False).astype(bool)
    pruning = runs[of_pruning & (runs["status"] == "FINISHED")].copy()
    columns = ["stage", *(name for name in DECIDING if name in pruning)]
    pruning["configuration"] = pruning.groupby(columns, dropna=False, sort=False).ngroup()
    direct = pruning["stage"] == "prune_direct"
    pruning["schedule"] = np.where(direct, "direct", "iterative")
    pruning.loc[pruning["fraction"] == 0, "schedule"] = "dense"
    return pruning


def _labels(configurations: pd.DataFrame) -> pd.Series[str]:
    """A name for each configuration: its model, and whatever is not the same for all."""
    bare = ["schedule", "criterion", "granularity", "coupling", "form", "scope"]
    others = [name for name in DECIDING if name in configurations and name not in bare]
    # what every configuration of a model has follows from the model, which is named
    of_model = configurations.groupby(["model", "dataset"], dropna=False)
    columns = [*bare, *(name for name in others if name not in ("model", "dataset"))]
    varying = [n for n in columns if (of_model[n].nunique(dropna=False) > 1).any()]
    varying = ["dataset"] * (configurations["dataset"].nunique() > 1) + varying
    labels = []
    for _, row in configurations.iterrows():
        parts = [short_model(str(row["model"]))]
        for name in varying:
            value = f"{row[name]:g}" if isinstance(row[name], float) else str(row[name])
            if not pd.isna(row[name]) and value:
                parts.append(value if name in [*bare, "dataset"] else f"{name} {value}")
        labels.append(", ".join(parts))
    names = pd.Series(labels, index=configurations.index, dtype=object)
    # models of one short name, and a control made by either pruning stage
    for column in ("model", "stage"):
        alike = names.duplicated(keep=False)
        names[alike] += ", " + configurations.loc[alike, column].astype(str)
    return names


def summary(frame: pd.DataFrame, by: Sequence[str], column: str) -> pd.DataFrame:
    """Mean, sample sd and 95 % interval of a column over the runs of each group.

    Args:
        frame: a row a run and group.
        by: columns that make a group.
        column: what is summarised; rows where it is missing count nothing.

    Returns:
        `by`, then `mean`, `sd`, `low`, `high`, `n`. The interval is Student's t's, and with the sd
        NaN for one run.
    """
    known = frame[frame[column].notna()]
    means = known.groupby(list(by), dropna=False, sort=True)[column].agg(["mean", "std", "count"])
    means = means.rename(columns={"std": "sd", "count": "n"}).reset_index()
    n = means["n"].to_numpy(dtype=float)
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) * means["sd"].astype(float) / np.sqrt(n)
    means["low"], means["high"] = means["mean"] - half, means["mean"] + half
    return means[[*by, "mean", "sd", "low", "high", "n"]]


def differences(one: pd.DataFrame, other: pd.DataFrame, on: str, column: str) -> pd.DataFrame:
    """Differences one - other of runs that share a base run.

    Args:
        one, other: levels; of several runs of a base at one place their mean counts.
        on: column of the place where they are compared, `level` or `target_sparsity`.
        column: what is compared.

    Returns:
        A row a base run and place that both have: `base_run`, `seed`, `on`, `one`, `other` and
        `difference`.
    """

    def at_places(frame: pd.DataFrame) -> pd.DataFrame:
        placed = frame.assign(**{on: frame[on].astype(float).round(6).map(placed_at)})
        return placed.groupby(["base_run", "seed", on])[column].mean().reset_index()

    placed_at = places(pd.concat([one[on], other[on]]))
    keys = ["base_run", "seed", on]
    both = at_places(one).merge(at_places(other), on=keys, suffixes=("_one", "_other"))
    both = both.rename(columns={f"{column}_one": "one", f"{column}_other": "other"})
    both["difference"] = both["one"] - both["other"]
    return both[both["difference"].notna()]


def paired(one: pd.DataFrame, other: pd.DataFrame, on: str, column: str) -> pd.DataFrame:
    """The `differences` of two kinds of runs, summarised over the bases.

    Returns:
        `on`, `mean`, `sd`, `low`, `high`, `n` of the differences at the places that both have, and
        `one` and `other`, the means of which `mean` is the difference.
    """
    both = differences(one, other, on, column)
    means = both.groupby(on)[["one", "other"]].mean()
    return summary(both, [on], "difference").merge(means, on=on)


def places(values: pd.Series[float]) -> dict[float, float]:
    """Value -> the least of those that it is one place with; to six digits, as curves are kept.

    Rounding to fewer would part values that differ in their last digit: 0.9375 lies on an edge.
    """
    least: dict[float, float] = {}
    previous = place = -math.inf
    for value in np.unique(values.astype(float).dropna().round(6)):
        if value - previous > SAME_PLACE:
            place = float(value)
        least[float(value)] = place
        previous = float(value)
    return least


def read(
    title: str,
    *,
    experiment: str | None = None,
    study: str | None = None,
    layers_of: int = 24,
) -> Evidence:
    """Read the runs of an experiment or study, curves first.

    Args:
        title: of the report.
        experiment, study: as in `pruneflow.query`.
        layers_of: layers are read of so many configurations at most, one artifact a run.

    Raises:
        InputError: an experiment that is not there.
    """
    runs, levels = query.runs_and_levels(experiment, study=study)
    latencies = query.latencies(experiment, study=study)
    chosen = with_configuration(runs)
    chosen = chosen[chosen["configuration"].isin(chosen["configuration"].unique()[:layers_of])]
    ids = chosen["run_id"].tolist()
    layers = query.layers(run_ids=ids)
    environments = query.environments(ids[:200])
    return gather(title, runs, levels, layers, latencies, environments)
