"""Evidence made of frames, without a store: runs that were never run, in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pandas as pd
from records import LAYER, LEVELS

from pruneflow.config import PruneConfig
from pruneflow.report.evidence import Evidence, gather
from pruneflow.resolution import resolve
from pruneflow.tracking.latencies import Latency
from pruneflow.tracking.levels import Layer, Level

_IDENTITY = ("model", "dataset", "criterion", "granularity", "scope", "coupling", "fraction")
_MACHINE = {"device": "cpu", "precision": "fp32", "threads": 1}
ENVIRONMENT: dict[str, object] = {
    "cpu": "one",
    "threads": 2,
    "versions": {"torch": "2"},
    "git": {"commit": "c" * 40, "dirty": False},
}


class Frames:
    """Runs as the query's frames would tell them."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {
            name: [] for name in ("runs", "levels", "layers", "latencies")
        }
        self.environment: dict[str, object] | None = ENVIRONMENT

    def prune(
        self,
        levels: Sequence[Level] = LEVELS,
        layers: Sequence[Layer] = (LAYER,),
        *,
        stage: str = "prune_iterative",
        base: str = "b0",
        status: str = "FINISHED",
        **given: object,
    ) -> str:
        """Id of a pruning run with these levels, and these layers at each."""
        config = resolve(PruneConfig, _MACHINE | given).model_dump()
        run_id = f"run{len(self.rows['runs'])}"
        row = config | {"run_id": run_id, "stage": stage, "base_run": base, "status": status}
        row |= {name: ",".join(row[name]) for name in ("targets", "include", "exclude")}
        self.rows["runs"].append(row)
        about = {name: row[name] for name in (*_IDENTITY, "run_id", "stage", "base_run", "seed")}
        for one in levels:
            self.rows["levels"].append(about | asdict(one))
            own = (replace(layer, level=one.level) for layer in layers)
            self.rows["layers"].extend(about | asdict(layer) for layer in own)
        return run_id

    def benchmark(self, pruned: str, rows: Sequence[Latency], status: str = "FINISHED") -> None:
        """Add times of a pruning run."""
        run = next(row for row in self.rows["runs"] if row["run_id"] == pruned)
        about = {name: run[name] for name in (*_IDENTITY, "seed")}
        about |= {"run_id": f"of-{pruned}", "run_status": status, "pruning_run": pruned}
        self.rows["latencies"].extend(about | asdict(row) for row in rows)

    def evidence(self) -> Evidence:
        """What they say, put together as `read` does."""
        apart = {
            "levels": [*Level.__dataclass_fields__],
            "layers": [*Layer.__dataclass_fields__],
            "latencies": [*Latency.__dataclass_fields__, "run_status", "pruning_run"],
            "runs": [*PruneConfig.model_fields, "stage", "status"],
        }
        own = [*_IDENTITY, "run_id", "stage", "base_run", "seed"]
        frames = {
            name: pd.DataFrame(rows, columns=list(dict.fromkeys([*own, *apart[name]])))
            for name, rows in self.rows.items()
        }
        for name, frame in frames.items():
            texts = [*_IDENTITY[:-1], "run_id", "stage", "base_run"]
            frames[name] = frame.astype(dict.fromkeys(texts, "string"))
        frames["levels"]["channels_left"] = frames["levels"]["channels_left"].astype(float)
        known = {row["run_id"]: self.environment for row in self.rows["runs"]}
        environments = {run_id: one for run_id, one in known.items() if one is not None}
        return gather("x", **frames, environments=environments)
