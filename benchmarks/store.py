"""Makes a store with many runs of the contract's size, to time queries and reports on.

    python benchmarks/store.py --runs 10000 --store sqlite:///big.db

The tables are MLflow's own, made by it; rows are then inserted in bulk, which is some hundred
times as fast as logging them. Artifacts are not made.
"""

from __future__ import annotations

import itertools
import json
import random
import uuid
from collections.abc import Iterator
from typing import Any

import click
import sqlalchemy
from mlflow.store.tracking.dbmodels import models as tables
from mlflow.tracking import MlflowClient

from pruneflow.config import PruneConfig
from pruneflow.resolution import resolve
from pruneflow.tracking.levels import METRICS, Level, curves
from pruneflow.tracking.store import shown

LEVELS = 7
METRIC_KEYS = 40
MODELS = ("alexnet", "vgg16", "resnet18", "resnet50", "mobilenet_v2", "densenet121")
SEEDS = (0, 1, 2)
_BATCH = 200  # runs that are inserted at a time
_START_MS = 1_700_000_000_000


def levels(seed: int, loss: float) -> list[Level]:
    """Seven levels of halves, the accuracies of which fall with some noise."""
    noise = random.Random(seed)
    found = []
    for number in range(LEVELS):
        left = 0.5**number
        after = max(0.1, 0.93 - loss * number**2 + noise.gauss(0, 0.004))
        found.append(
            Level(
                level=number, target_sparsity=1 - left, sparsity=1 - left, params=57_044_810,
                params_left=left, macs=710_000_000, macs_left=left**0.7,
                size_bytes=int(228e6 * left), test_before=after - 0.05, test_after=after,
                train_before=after, train_after=min(1.0, after + 0.05), val_after=after,
                score_seconds=1.234567, finetune_seconds=123.4567, evaluate_seconds=12.34567,
                channels_left=None, conv_params_masked=2_469_696, conv_params_compact=2_469_696,
                params_compact=57_044_810, macs_compact=710_000_000, test_compact=None,
            )
        )  # fmt: skip
    return found


def configurations() -> Iterator[dict[str, Any]]:
    """Parameters of runs, the seeds of a configuration after each other, without end."""
    for turn in itertools.count():
        for model, criterion, iterations in itertools.product(MODELS, ("l1", "random"), (4, 6)):
            for seed in SEEDS:
                yield {
                    "model": model,
                    "criterion": criterion,
                    "iterations": iterations,
                    "learning_rate": 1e-4 * (1 + turn),
                    "seed": seed,
                }


def rows_of(number: int, given: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The rows of one run, by table."""
    run_id = uuid.UUID(int=number, version=4).hex
    config = resolve(PruneConfig, {"device": "cpu", "precision": "fp32", "threads": 2} | given)
    own = levels(number, 0.004 if given["criterion"] == "l1" else 0.02)
    started = _START_MS + 60_000 * number
    tags = {
        "pruneflow.stage": "prune_iterative",
        "pruneflow.fingerprint": run_id[:16],
        "pruneflow.base_run": uuid.UUID(int=10**9 + MODELS.index(given["model"]) * 10
                                        + int(given["seed"]), version=4).hex,
        "pruneflow.study": f"study{number % 10}",
        "pruneflow.curves": curves(own),
        "mlflow.runName": config.run_name("prune_iterative"),
        "mlflow.note.content": "a note " * 100,
    }  # fmt: skip
    keys = [*METRICS.values()]
    keys += [f"extra/metric_{n:02d}" for n in range(METRIC_KEYS - len(keys))]
    history = [
        {"run_uuid": run_id, "key": key, "value": 0.5, "timestamp": started + n, "step": n,
         "is_nan": False}
        for key in keys
        for n in range(LEVELS)
    ]  # fmt: skip
    return {
        "runs": [
            {
                "run_uuid": run_id,
                "name": tags["mlflow.runName"],
                "source_type": "LOCAL",
                "user_id": "generator",
                "status": "FINISHED",
                "start_time": started,
                "end_time": started + 50_000,
                "lifecycle_stage": "active",
                "artifact_uri": f"./none/{run_id}",
                "experiment_id": 0,
            }
        ],
        "params": [
            {"run_uuid": run_id, "key": f"cfg/{key}", "value": shown(value)}
            for key, value in config.model_dump(mode="json").items()
        ],
        "tags": [{"run_uuid": run_id, "key": k, "value": v} for k, v in tags.items()],
        "metrics": history,
        "latest_metrics": [row for row in history if row["step"] == LEVELS - 1],
    }


_TABLES = {
    "runs": tables.SqlRun,
    "params": tables.SqlParam,
    "tags": tables.SqlTag,
    "metrics": tables.SqlMetric,
    "latest_metrics": tables.SqlLatestMetric,
}


@click.command()
@click.option("--runs", default=1_000, show_default=True, help="how many runs")
@click.option("--store", required=True, help="address of a store, sqlite:///big.db")
def main(runs: int, store: str) -> None:
    """Make a store with so many runs."""
    MlflowClient(tracking_uri=store).search_experiments()
    engine = sqlalchemy.create_engine(store)
    given = configurations()
    for first in range(0, runs, _BATCH):
        batch: dict[str, list[dict[str, Any]]] = {name: [] for name in _TABLES}
        for number in range(first, min(first + _BATCH, runs)):
            for name, rows in rows_of(number, next(given)).items():
                batch[name] += rows
        with engine.begin() as connection:
            for name, rows in batch.items():
                connection.execute(sqlalchemy.insert(_TABLES[name].__table__), rows)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("ANALYZE"))
    print(json.dumps({"store": store, "runs": runs}))


if __name__ == "__main__":
    main()
