"""The study's own curves, of the same comparison as the runs that they are laid beneath."""

from __future__ import annotations

from importlib import resources

import numpy as np
import pandas as pd

from pruneflow.config import reads_texts, short_model
from pruneflow.report.charts import Line
from pruneflow.report.curves import Overlay
from pruneflow.report.evidence import where

_GRANULARITY = {"weight": "unstructured", "channel": "structured"}


def reference(name: str) -> pd.DataFrame:
    """The study's numbers: `accuracy`, `latency` or `alexnet_layer_sparsity`."""
    with (resources.files("pruneflow.paper") / f"{name}.csv").open("rb") as file:
        return pd.read_csv(file)


def _accuracy(levels: pd.DataFrame, label: str) -> list[Line]:
    """Its test accuracy after fine-tuning, of the configuration that these levels are of."""
    first = levels.iloc[0]
    model = str(first["model"])
    rows = where(
        reference("accuracy"),
        model="bert" if reads_texts(model) else short_model(model),
        granularity=_GRANULARITY[str(first["granularity"])],
        **{name: first[name] for name in ("criterion", "schedule", "dataset")},
    )
    if str(first["schedule"]) == "iterative":
        rows = rows[np.isclose(rows["prune_fraction"], float(first["fraction"]), atol=0.01)]
    x, y = rows["fraction_left"].tolist(), rows["test_accuracy_after"].tolist()
    return [Line(f"{label} (the paper's)", x, y, reference=True)] if len(rows) else []


def _times(times: pd.DataFrame, x: str) -> list[Line]:
    """Its times on its GPU, of the same model at the nearest fraction left, or the same batch."""
    rows = where(reference("latency"), model=str(times["model"].iloc[0]))
    if x == "batch_size" and len(rows):
        off = (rows["fraction_left"] - times["params_left"].mean()).abs()
        rows = where(rows, fraction_left=rows["fraction_left"].iloc[off.argmin()])
    elif x != "batch_size":
        x, rows = "fraction_left", where(rows, batch_size=int(times["batch_size"].iloc[0]))
    return [
        Line(f"{form} (the paper's, GPU)", rows[x].tolist(), rows[column].tolist(), reference=True)
        for form, column in (("dense", "original_ms"), ("compact", "compact_ms"))
        if len(rows)
    ]


OVERLAY = Overlay(_accuracy, _times)
