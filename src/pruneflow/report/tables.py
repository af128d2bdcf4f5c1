"""Tables of a report: one function each, and one registry."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from pruneflow.config import short_model
from pruneflow.report.evidence import Evidence, paired, summary, where

_MEASURES = (
    "test_before",
    "test_after",
    "train_after",
    "val_after",
    "sparsity",
    "params_left",
    "macs_left",
    "channels_left",
    "size_bytes",
)
_OF_RUN = (
    "run_id",
    "name",
    "status",
    "stage",
    "model",
    "dataset",
    "criterion",
    "granularity",
    "scope",
    "coupling",
    "form",
    "fraction",
    "iterations",
    "finetune_epochs",
    "seed",
    "study",
    "base_run",
    "resumed_from",
    "seconds",
    "failure",
)


def configurations(evidence: Evidence) -> pd.DataFrame:
    """A row a configuration: where it ends, with the spread over seeds."""
    rows = []
    for number, row in evidence.configurations.iterrows():
        own = where(evidence.levels, configuration=number)
        last = where(own, level=int(own["level"].max()))
        tested = summary(last, ["level"], "test_after").iloc[0]
        start = float(where(own, level=0)["test_after"].mean())
        params, macs = (float(last[name].mean()) for name in ("params_left", "macs_left"))
        rows.append(
            {
                "configuration": row["label"],
                "seeds": int(row["n"]),
                "levels": int(own["level"].max()),
                "test_unpruned": start,
                "test_last": tested["mean"],
                "sd": tested["sd"],
                "low": tested["low"],
                "high": tested["high"],
                "change": tested["mean"] - start,
                "params_left": params,
                "compression": 1 / params if params else None,
                "macs_left": macs,
                "theoretical_speedup": 1 / macs if macs else None,
            }
        )
    return pd.DataFrame(rows)


def levels(evidence: Evidence) -> pd.DataFrame:
    """Mean, sd and 95 % interval over seeds of every measure of every configuration's levels."""
    found = []
    labels = evidence.configurations["label"]
    for column in _MEASURES:
        part = summary(evidence.levels, ["configuration", "level"], column)
        found.append(part.assign(measure=column))
    table = pd.concat(found, ignore_index=True)
    table["configuration"] = table["configuration"].map(labels)
    return table[["configuration", "level", "measure", "mean", "sd", "low", "high", "n"]]


def layer_sparsity(evidence: Evidence) -> pd.DataFrame:
    """The study's Table I: sparsity of each tensor, a column a level, the mean over seeds."""
    layers = where(evidence.layers, schedule=["iterative", "direct"])
    if layers.empty:
        return pd.DataFrame(columns=["configuration", "layer", "params"])
    table = layers.pivot_table(
        index=["configuration", "layer", "params"], columns="level", values="sparsity", sort=False
    ).reset_index()
    table["configuration"] = table["configuration"].map(evidence.configurations["label"])
    named = ("configuration", "layer", "params")
    return table.rename(columns=lambda c: c if c in named else f"level_{c}")


def iterative_against_direct(evidence: Evidence) -> pd.DataFrame:
    """The study's Table II: iterative and direct, from the same base at the same sparsity.

    `iterative` and `direct` are means over the pairs, of which `difference` is the difference.
    """
    rows = []
    direct = evidence.of(schedule="direct")
    direct = direct[direct["level"] > 0]
    for number in direct["configuration"].unique():
        own = where(direct, configuration=number)
        first = own.iloc[0]
        other = evidence.iterative_like(own)
        for column in ("test_before", "test_after", "train_before", "train_after"):
            for _, difference in paired(other, own, "target_sparsity", column).iterrows():
                rows.append(
                    {
                        "model": short_model(str(first["model"])),
                        "granularity": first["granularity"],
                        "sparsity": difference["target_sparsity"],
                        "measure": column,
                        "iterative": difference["one"],
                        "direct": difference["other"],
                        "difference": difference["mean"],
                        "sd": difference["sd"],
                        "low": difference["low"],
                        "high": difference["high"],
                        "pairs": difference["n"],
                    }
                )
    return pd.DataFrame(rows)


def paired_differences(evidence: Evidence) -> pd.DataFrame:
    """Each configuration minus the dense control of the same bases, trained as long, by level."""
    rows = []
    for number, row in evidence.configurations.iterrows():
        if row["schedule"] == "dense":
            continue
        own = where(evidence.levels, configuration=number)
        found = paired(own, evidence.control_of(own), "level", "test_after")
        rows.append(found.assign(configuration=row["label"], against="dense control"))
    columns = ["configuration", "against", "level", "mean", "sd", "low", "high", "n"]
    known = [row for row in rows if len(row)]
    return pd.concat(known, ignore_index=True)[columns] if known else pd.DataFrame(columns=columns)


def runs(evidence: Evidence) -> pd.DataFrame:
    """Every run, of any status."""
    return evidence.runs[list(_OF_RUN)].copy()


def latencies(evidence: Evidence) -> pd.DataFrame:
    """Every measured time."""
    labels = evidence.configurations["label"]
    table = evidence.latencies.assign(configuration=evidence.latencies["configuration"].map(labels))
    columns = ["configuration", "machine", "level", "form", "engine", "device", "threads"]
    columns += [
        "batch_size",
        "n",
        "p50_ms",
        "p95_ms",
        "speedup",
        "speedup_low",
        "speedup_high",
        "params_left",
        "status",
    ]
    return table[columns]


# name -> title, and what makes it; a page shows as many rows as are readable, the CSV has all
TABLES: dict[str, tuple[str, Callable[[Evidence], pd.DataFrame]]] = {
    "configurations": ("Configurations", configurations),
    "iterative_against_direct": (
        "Iterative against direct (the study's Table II)",
        iterative_against_direct,
    ),
    "paired_differences": ("Differences from the dense control, paired", paired_differences),
    "layer_sparsity": ("Sparsity of each layer (the study's Table I)", layer_sparsity),
    "levels": ("Levels, over seeds", levels),
    "latencies": ("Latency", latencies),
    "runs": ("All runs", runs),
}
