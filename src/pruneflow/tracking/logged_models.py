"""Logged models: every level as a model of MLflow, which its tools rank, register, load and serve.

The weights are stored once: a logged model names the run and the level, and what loads it fetches
that level's checkpoint from the run, see `predictor`.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pruneflow.tracking import refusals

LEVEL = "pruneflow.level"
OUTPUTS = ("logits", "labels")
_LOADER = "pruneflow.tracking.predictor"
_FILE = "level.json"
_TEXTS = ["a pleasure from beginning to end", "not worth the time"]  # of the input example
_NOT_IN_NAMES = re.compile(r"[/:.%\"']")
_DATA_OF = {"test": "testing", "val": "validation", "train": "training"}  # as MLflow names contexts


def log(
    client: MlflowClient, run: Run, level: int, structure: Mapping[str, Any], metrics: list[Metric]
) -> None:
    """Log a level of a run as a model with its metrics; done twice, it is there once.

    Servers before MLflow 3 have no logged models, and get none.
    """
    run_id, experiment_id = run.info.run_id, run.info.experiment_id
    name = _NOT_IN_NAMES.sub("-", f"{run.info.run_name}-level-{level}")
    try:
        known = client.search_logged_models(
            [experiment_id], f"source_run_id = '{run_id}' AND name = '{name}'", max_results=1
        )
    except MlflowException as error:
        if refusals.status(error) != 404:
            raise
        _say_once("this MLflow server is older than 3.0 and has no logged models: none are made")
        return
    model = known[0] if known else _make(client, run, name, level)
    if model.status != LoggedModelStatus.READY:
        with tempfile.TemporaryDirectory(prefix="pruneflow-") as folder:
            _write(Path(folder) / "model", model, level, structure)
            client.log_model_artifacts(model.model_id, str(Path(folder) / "model"))
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    if model.model_id not in {output.model_id for output in run.outputs.model_outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, level)])
    client.log_batch(run_id, metrics=list(_linked(model, run, metrics)))


def _make(client: MlflowClient, run: Run, name: str, level: int) -> LoggedModel:
    params = {k: v for k, v in run.data.params.items() if k.startswith("cfg/")}
    tags = {LEVEL: str(level)}
    return client.create_logged_model(
        run.info.experiment_id,
        name=name,
        source_run_id=run.info.run_id,
        tags=tags,
        params=params | {"level": str(level)},
    )


def _linked(model: LoggedModel, run: Run, metrics: Iterable[Metric]) -> Iterable[Metric]:
    """Metrics of a level as the model's, with the data that they were taken of."""
    data = {
        tag.value: logged.dataset
        for logged in run.inputs.dataset_inputs
        for tag in logged.tags
        if tag.key == "mlflow.data.context"
    }
    for metric in metrics:
        if metric.key.startswith(("time/", "by_sparsity/")):
            continue
        part = re.match(r"accuracy/(test|val|train)", metric.key)
        of = data.get(_DATA_OF[part[1]]) if part else None
        yield Metric(
            metric.key,
            metric.value,
            metric.timestamp,
            metric.step,
            model_id=model.model_id,
            dataset_name=of and of.name,
            dataset_digest=of and of.digest,
            run_id=run.info.run_id,
        )


def _write(folder: Path, model: LoggedModel, level: int, structure: Mapping[str, Any]) -> None:
    """The files of a logged model: MLflow's description of it, and which level it is."""
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    example: Any
    if _reads_texts(structure):
        takes, example = Schema([ColSpec("string")]), _TEXTS
    else:
        takes = Schema([TensorSpec(np.dtype("uint8"), (-1, -1, -1, 3))])
        example = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    gives = Schema([TensorSpec(np.dtype("float32"), (-1, structure.get("classes", -1)))])
    output = ParamSchema([ParamSpec("output", "string", OUTPUTS[0])])
    with tempfile.TemporaryDirectory(prefix="pruneflow-") as place:
        data = Path(place) / _FILE
        data.write_text(json.dumps({"run": model.source_run_id, "level": level}), "utf-8")
        mlflow.pyfunc.save_model(
            str(folder),
            loader_module=_LOADER,
            data_path=str(data),
            mlflow_model=Model(run_id=model.source_run_id, model_id=model.model_id),
            signature=ModelSignature(takes, gives, output),
            input_example=example,
            pip_requirements=["pruneflow"],
        )


def _reads_texts(structure: Mapping[str, Any]) -> bool:
    return "sequence_length" in structure.get("input", {})


_SAID: set[str] = set()


def _say_once(text: str) -> None:
    if text not in _SAID:
        _SAID.add(text)
        print(f"pruneflow: {text}", file=sys.stderr)
