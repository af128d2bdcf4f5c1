"""Tables of a report: one function each, and one registry."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pandas as pd
from pandas import DataFrame

from pruneflow.config import short_model
from pruneflow.report.evidence import Evidence, at_cost, paired, summary, where

_MEASURES = [
    "test_before", "test_after", "train_after", "val_after", "sparsity", "params_left",
    "macs_left", "channels_left", "size_bytes",
]  # fmt: skip
_OF_RUN = [
    "run_id", "name", "status", "stage", "model", "dataset", "criterion", "granularity", "scope",
    "coupling", "form", "fraction", "iterations", "finetune_epochs", "seed", "study", "base_run",
    "resumed_from", "seconds", "failure",
]  # fmt: skip
_OF_LATENCY = [
    "configuration", "machine", "level", "form", "engine", "device", "threads", "batch_size", "n",
    "p50_ms", "p95_ms", "speedup", "speedup_low", "speedup_high", "params_left", "status",
]  # fmt: skip
_COSTS = {"params_left": "parameters", "macs_left": "MACs"}
_SHARES = (0.5, 0.25, 0.125, 0.0625)  # of the unpruned model's cost
LEAST_SEEDS = 3
_SPREAD = ["mean", "sd", "low", "high", "n"]


def _joined(parts: list[DataFrame], columns: list[str]) -> DataFrame:
    known = [part[columns] for part in parts if len(part)]
    return pd.concat(known, ignore_index=True) if known else DataFrame(columns=columns)


def configurations(evidence: Evidence) -> DataFrame:
    """A row a configuration: where it ends, with the spread over seeds."""
    rows = []
    for number, row in evidence.configurations.iterrows():
        levels = evidence.of(configuration=number)
        last = where(levels, level=row["last_level"])
        tested = summary(last, ["level"], "test_after").iloc[0]
        start = where(levels, level=0)["test_after"].mean()
        params, macs = last[["params_left", "macs_left"]].mean()
        rows.append({
            "configuration": row["label"],
            "seeds": row["n"],
            "levels": int(row["last_level"]),
            "test_unpruned": start,
            "test_last": tested["mean"],
            **tested[["sd", "low", "high"]],
            "change": tested["mean"] - start,
            "params_left": params,
            "compression": 1 / params if params else None,
            "macs_left": macs,
            "theoretical_speedup": 1 / macs if macs else None,
        })  # fmt: skip
    return DataFrame(rows)


def levels(evidence: Evidence) -> DataFrame:
    """Mean, sd and 95 % interval over seeds of every measure of every configuration's levels."""
    keys = ["configuration", "level"]
    parts = [summary(evidence.levels, keys, name).assign(measure=name) for name in _MEASURES]
    table = pd.concat(parts, ignore_index=True)[[*keys, "measure", *_SPREAD]]
    return _labelled(table, evidence)


def _labelled(table: DataFrame, evidence: Evidence) -> DataFrame:
    labels = evidence.configurations["label"]
    return table.assign(configuration=table["configuration"].map(labels))


def layer_sparsity(evidence: Evidence) -> DataFrame:
    """Sparsity of each tensor, a column a level, the mean over seeds."""
    keys = ["configuration", "layer", "params"]
    layers = evidence.layers[evidence.layers["procedure"] != "dense"]
    if layers.empty:
        return DataFrame(columns=keys)
    table = layers.pivot_table(index=keys, columns="level", values="sparsity", sort=False)
    return _labelled(table.add_prefix("level_").rename_axis(columns=None).reset_index(), evidence)


def iterative_against_direct(evidence: Evidence) -> DataFrame:
    """Iterative and direct, from the same base at the same sparsity: means over the pairs."""
    names = {"target_sparsity": "sparsity", "first": "iterative", "second": "direct"}
    names |= {"mean": "difference", "n": "pairs"}
    parts = []
    direct = evidence.of(procedure="direct")
    for _, rows in direct[direct["level"] > 0].groupby("configuration", sort=False):
        model, granularity = rows.iloc[0][["model", "granularity"]]
        for column in ("test_before", "test_after", "train_before", "train_after"):
            part = paired(evidence.iterative_like(rows), rows, "target_sparsity", column)
            about = {"model": short_model(model), "granularity": granularity, "measure": column}
            parts.append(part.rename(columns=names).assign(**about))
    columns = ["model", "granularity", "sparsity", "measure", "iterative", "direct", "difference"]
    return _joined(parts, [*columns, "sd", "low", "high", "pairs"])


def paired_differences(evidence: Evidence) -> DataFrame:
    """Each configuration minus the dense control of the same bases, trained as long, by level."""
    parts = []
    for number, row in evidence.configurations.query("procedure != 'dense'").iterrows():
        rows = evidence.of(configuration=number)
        part = paired(rows, evidence.control_of(rows), "level", "test_after")
        parts.append(part.assign(configuration=row["label"], against="dense control"))
    return _joined(parts, ["configuration", "against", "level", *_SPREAD])


def best_at_cost(evidence: Evidence) -> DataFrame:
    """Which configuration keeps most accuracy at the same cost, and by how much the next is beaten.

    The difference is over the bases that both start from; it is decided by an interval of three
    seeds or more that leaves out 0.
    """
    labels, rows = evidence.configurations["label"], []
    kinds = evidence.pruned.groupby(["model", "dataset", "granularity"], sort=False)
    for (kind, levels), cost, share in itertools.product(kinds, _COSTS, _SHARES):
        known = at_cost(levels, cost, share)
        means = known.groupby("configuration")["test_after"].mean().sort_values(ascending=False)
        if len(means) < 2:
            continue
        best, other = (where(known, configuration=number) for number in means.index[:2])
        pairs = paired(best, other, "share", "test_after").to_dict("records")
        pair = pairs[0] if pairs else {"n": 0, "low": np.nan}
        decided = pair["n"] >= LEAST_SEEDS and pair["low"] > 0
        rows.append({
            **dict(zip(("model", "dataset", "granularity"), kind, strict=True)),
            "cost": _COSTS[cost],
            "share": share,
            "best": labels[means.index[0]],
            "accuracy": means.iloc[0],
            "next": labels[means.index[1]],
            "accuracy_of_next": means.iloc[1],
            **{name: pair.get(name) for name in _SPREAD},
            "decided": "yes" if decided else "no",
        })  # fmt: skip
    return DataFrame(rows)


# name -> title, and what makes it; a page shows as many rows as are readable, the CSV has all
TABLES: dict[str, tuple[str, Callable[[Evidence], DataFrame]]] = {
    "configurations": ("Configurations", configurations),
    "iterative_against_direct": ("Iterative against direct", iterative_against_direct),
    "best_at_cost": ("Best at the same cost", best_at_cost),
    "paired_differences": ("Differences from the dense control, paired", paired_differences),
    "layer_sparsity": ("Sparsity of each layer", layer_sparsity),
    "levels": ("Levels, over seeds", levels),
    "latencies": ("Latency", lambda evidence: _labelled(evidence.latencies, evidence)[_OF_LATENCY]),
    "runs": ("All runs", lambda evidence: evidence.runs[_OF_RUN]),
}
