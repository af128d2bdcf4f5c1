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
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pruneflow.errors import InputError
from pruneflow.tracking import reader, refusals

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
    # the level first: the UI cuts names off
    name = _NOT_IN_NAMES.sub("-", f"level-{level}-{run.info.run_name}")
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


def of_level(run_id: str, level: int) -> LoggedModel:
    """The logged model of a level of a run.

    Raises:
        InputError: there is none: the run was made by a version that logged none.
    """
    client = MlflowClient()
    experiment_id = client.get_run(run_id).info.experiment_id
    for model in client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'"):
        if model.tags.get(LEVEL) == str(level):
            return model
    raise InputError(
        f"run {run_id} has no logged model of level {level}, since an older version made it: "
        "prune again to register it"
    )


def register(model: LoggedModel, name: str, alias: str | None) -> str:
    """Make a logged model a version of a registered one, all of it or nothing; its number.

    Raises:
        InputError: what the registry refuses.
    """
    client = MlflowClient()
    problem = f"register={name!r} was refused, and nothing is registered"
    made = version = None
    try:
        with reader.reading(problem):
            if not any(m.name == name for m in client.search_registered_models(f"name = '{name}'")):
                made = client.create_registered_model(name)
            source, run_id = f"models:/{model.model_id}", model.source_run_id
            version = client.create_model_version(name, source, run_id, model_id=model.model_id)
            if alias is not None:
                client.set_registered_model_alias(name, alias, version.version)
    except BaseException:
        with suppress(MlflowException):
            if version is not None:
                client.delete_model_version(name, version.version)
            if made is not None:
                client.delete_registered_model(name)
        raise
    return str(version.version)


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
