"""The study's own curves, of the same comparison as the runs that they are laid beneath."""

from __future__ import annotations

from importlib import resources
from typing import Any

import numpy as np
import pandas as pd

from pruneflow.config import reads_texts, short_model
from pruneflow.report.charts import Line, Overlay
from pruneflow.report.evidence import where

_GRANULARITY = {"weight": "unstructured", "channel": "structured"}


def reference(name: str) -> pd.DataFrame:
    """The study's numbers: `accuracy`, `latency` or `alexnet_layer_sparsity`."""
    with (resources.files("pruneflow.paper") / f"{name}.csv").open("rb") as file:
        return pd.read_csv(file)


def _accuracy(levels: pd.DataFrame, label: str) -> list[Line]:
    """Its test accuracy after fine-tuning, of the configuration that these levels are of."""
    first = levels.iloc[0]
    if first["schedule"] != "geometric":
        return []
    same: Any = first[["criterion", "dataset"]].to_dict() | {"schedule": first["procedure"]}
    model = "bert" if reads_texts(first["model"]) else short_model(first["model"])
    granularity = _GRANULARITY[first["granularity"]]
    rows = where(reference("accuracy"), model=model, granularity=granularity, **same)
    if first["procedure"] == "iterative":
        rows = rows[np.isclose(rows["prune_fraction"], first["fraction"], atol=0.01)]
    x, y = rows["fraction_left"].tolist(), rows["test_accuracy_after"].tolist()
    return [Line(f"{label} (the paper's)", x, y, reference=True)] if x else []


def _times(times: pd.DataFrame, x: str) -> list[Line]:
    """Its times on its GPU, of the same model at the nearest fraction left, or the same batch."""
    rows = where(reference("latency"), model=times["model"].iloc[0])
    if x == "batch_size":
        off = (rows["fraction_left"] - times["params_left"].mean()).abs()
        rows = rows[off == off.min()]
    else:
        x, rows = "fraction_left", where(rows, batch_size=int(times["batch_size"].iloc[0]))
    forms = {"dense": "original_ms", "compact": "compact_ms"} if len(rows) else {}
    return [
        Line(f"{form} (the paper's, GPU)", rows[x].tolist(), rows[column].tolist(), reference=True)
        for form, column in forms.items()
    ]


OVERLAY = Overlay(_accuracy, _times)
