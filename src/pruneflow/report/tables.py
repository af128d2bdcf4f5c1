"""Tables of a report: one function each, and one registry."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from pruneflow.config import short_model
from pruneflow.report.evidence import Evidence, paired, summary, where

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
_SPREAD = ["mean", "sd", "low", "high", "n"]


def configurations(evidence: Evidence) -> pd.DataFrame:
    """A row a configuration: where it ends, with the spread over seeds."""
    rows = []
    for number, row in evidence.configurations.iterrows():
        levels = evidence.of(configuration=number)
        last = where(levels, level=int(levels["level"].max()))
        tested = summary(last, ["level"], "test_after").iloc[0]
        start = float(where(levels, level=0)["test_after"].mean())
        params, macs = (float(last[name].mean()) for name in ("params_left", "macs_left"))
        rows.append({
            "configuration": row["label"],
            "seeds": int(row["n"]),
            "levels": int(levels["level"].max()),
            "test_unpruned": start,
            "test_last": tested["mean"],
            **tested[["sd", "low", "high"]],
            "change": tested["mean"] - start,
            "params_left": params,
            "compression": 1 / params if params else None,
            "macs_left": macs,
            "theoretical_speedup": 1 / macs if macs else None,
        })  # fmt: skip
    return pd.DataFrame(rows)


def levels(evidence: Evidence) -> pd.DataFrame:
    """Mean, sd and 95 % interval over seeds of every measure of every configuration's levels."""
    keys = ["configuration", "level"]
    parts = [summary(evidence.levels, keys, name).assign(measure=name) for name in _MEASURES]
    table = pd.concat(parts, ignore_index=True)
    table["configuration"] = table["configuration"].map(evidence.configurations["label"])
    return table[[*keys, "measure", *_SPREAD]]


def layer_sparsity(evidence: Evidence) -> pd.DataFrame:
    """Sparsity of each tensor, a column a level, the mean over seeds."""
    keys = ["configuration", "layer", "params"]
    layers = where(evidence.layers, schedule=["iterative", "direct"])
    if layers.empty:
        return pd.DataFrame(columns=keys)
    table = layers.pivot_table(index=keys, columns="level", values="sparsity", sort=False)
    table = table.add_prefix("level_").rename_axis(columns=None).reset_index()
    return table.assign(configuration=table["configuration"].map(evidence.configurations["label"]))


def iterative_against_direct(evidence: Evidence) -> pd.DataFrame:
    """Iterative and direct, from the same base at the same sparsity.

    `iterative` and `direct` are means over the pairs, of which `difference` is the difference.
    """
    parts = []
    direct = evidence.of(schedule="direct")
    for _, rows in direct[direct["level"] > 0].groupby("configuration", sort=False):
        first, like = rows.iloc[0], evidence.iterative_like(rows)
        for column in ("test_before", "test_after", "train_before", "train_after"):
            part = paired(like, rows, "target_sparsity", column)
            part["model"] = short_model(str(first["model"]))
            parts.append(part.assign(granularity=first["granularity"], measure=column))
    names = {"target_sparsity": "sparsity", "one": "iterative", "other": "direct"}
    names |= {"mean": "difference", "n": "pairs"}
    order = ["model", "granularity", "sparsity", "measure", "iterative", "direct", "difference"]
    order += ["sd", "low", "high", "pairs"]
    known = [part.rename(columns=names)[order] for part in parts if len(part)]
    return pd.concat(known, ignore_index=True) if known else pd.DataFrame(columns=order)


def paired_differences(evidence: Evidence) -> pd.DataFrame:
    """Each configuration minus the dense control of the same bases, trained as long, by level."""
    parts = []
    for number, row in evidence.configurations.iterrows():
        rows = evidence.of(configuration=number)
        part = paired(rows, evidence.control_of(rows), "level", "test_after")
        if row["schedule"] != "dense" and len(part):
            parts.append(part.assign(configuration=row["label"], against="dense control"))
    columns = ["configuration", "against", "level", *_SPREAD]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def runs(evidence: Evidence) -> pd.DataFrame:
    """Every run, of any status."""
    return evidence.runs[_OF_RUN].copy()


def latencies(evidence: Evidence) -> pd.DataFrame:
    """Every measured time."""
    labels = evidence.configurations["label"]
    table = evidence.latencies.assign(configuration=evidence.latencies["configuration"].map(labels))
    return table[_OF_LATENCY]


# name -> title, and what makes it; a page shows as many rows as are readable, the CSV has all
TABLES: dict[str, tuple[str, Callable[[Evidence], pd.DataFrame]]] = {
    "configurations": ("Configurations", configurations),
    "iterative_against_direct": ("Iterative against direct", iterative_against_direct),
    "paired_differences": ("Differences from the dense control, paired", paired_differences),
    "layer_sparsity": ("Sparsity of each layer", layer_sparsity),
    "levels": ("Levels, over seeds", levels),
    "latencies": ("Latency", latencies),
    "runs": ("All runs", runs),
}
