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
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND, ErrorCode
from mlflow.tracking import MlflowClient

from pruneflow.errors import InputError
from pruneflow.tracking import reader
from pruneflow.tracking.reader import equal
from pruneflow.version import __version__

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
    """Log a level of a run as a model, and its metrics; done twice, all is there once.

    Servers before MLflow 3 have no logged models, and get the metrics alone.
    """
    run_id = run.info.run_id
    try:
        model = _find(client, run, level) or _make(client, run, level)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(ENDPOINT_NOT_FOUND):
            raise
        _say_once("this MLflow server is older than 3.0 and has no logged models: none are made")
        client.log_batch(run_id, metrics=metrics)
        return
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
        InputError: there is none, or none that is whole.
    """
    client = MlflowClient()
    with reader.reading(f"level {level} of run {run_id} has no logged model"):
        model = _find(client, client.get_run(run_id), level)
    if model is None or model.status != LoggedModelStatus.READY:
        raise InputError(
            f"run {run_id} has no logged model of level {level}: it was made by an older version, "
            "or with a server that has none; prune again to register it"
        )
    return model


def register(model: LoggedModel, name: str, alias: str | None) -> str:
    """Make a logged model a version of a registered one, all of it or nothing; its number.

    Raises:
        InputError: what the registry refuses.
    """
    client = MlflowClient()
    with reader.reading(f"register={name!r} was refused, and nothing is registered"):
        known = client.search_registered_models(equal("name", name))
        aliases = known[0].aliases if known else {}
        before = {v.version for v in client.search_model_versions(equal("name", name))}
        try:
            if not known:
                client.create_registered_model(name)
            source = f"models:/{model.model_id}"
            made = client.create_model_version(
                name, source, model.source_run_id, model_id=model.model_id
            )
            if alias is not None:
                client.set_registered_model_alias(name, alias, made.version)
        except BaseException:
            _unregister(client, model, name, before)
            if alias in aliases:  # it goes with the version that it was given to
                with suppress(MlflowException):
                    client.set_registered_model_alias(name, alias, aliases[alias])
            raise
    return str(made.version)


def _unregister(client: MlflowClient, model: LoggedModel, name: str, before: set[str]) -> None:
    """Delete what an interrupted `register` has made, whether or not its answer came."""
    with suppress(MlflowException):
        versions = client.search_model_versions(equal("name", name))
        for version in versions:
            if version.version not in before and version.run_id == model.source_run_id:
                client.delete_model_version(name, version.version)
    with suppress(MlflowException):
        if not client.search_model_versions(equal("name", name)):
            client.delete_registered_model(name)


def _find(client: MlflowClient, run: Run, level: int) -> LoggedModel | None:
    condition = f"source_run_id = '{run.info.run_id}' AND tags.`{LEVEL}` = '{level}'"
    found = client.search_logged_models([run.info.experiment_id], condition, max_results=1)
    return found[0] if found else None


def _make(client: MlflowClient, run: Run, level: int) -> LoggedModel:
    params = {k: v for k, v in run.data.params.items() if k.startswith("cfg/")}
    # the level first: the UI cuts names off
    name = _NOT_IN_NAMES.sub("-", f"level-{level}-{run.info.run_name}")
    return client.create_logged_model(
        run.info.experiment_id,
        name=name,
        source_run_id=run.info.run_id,
        tags={LEVEL: str(level)},
        params=params | {"level": str(level)},
    )


def _linked(model: LoggedModel, run: Run, metrics: Iterable[Metric]) -> Iterable[Metric]:
    """Metrics of a level, as the model's where they are, with the data that they were taken of."""
    data = {
        tag.value: logged.dataset
        for logged in run.inputs.dataset_inputs
        for tag in logged.tags
        if tag.key == "mlflow.data.context"
    }
    for metric in metrics:
        if metric.key.startswith(("time/", "by_sparsity/")):  # of the run, not of what it made
            yield metric
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
            pip_requirements=[f"pruneflow=={__version__}"],
        )


def _reads_texts(structure: Mapping[str, Any]) -> bool:
    return "sequence_length" in structure.get("input", {})


_SAID: set[str] = set()


def _say_once(text: str) -> None:
    if text not in _SAID:
        _SAID.add(text)
        print(f"pruneflow: {text}", file=sys.stderr)
