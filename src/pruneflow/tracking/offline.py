"""Offline: runs made without any MLflow server go to a store of this machine, and on from there.

With PRUNEFLOW_OFFLINE=1 the entry points use a SQLite store in the state folder in place of the
one that MLFLOW_TRACKING_URI names; `copy_runs`, as `pruneflow sync` calls it, puts its runs there.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pruneflow.tracking import reader
from pruneflow.tracking.journal import state_folder

_COPIED_AS = "pruneflow.copied_as"  # of a run here: its id there
_COPY_OF = "pruneflow.copy_of"  # of a run there: its id here
_OF_RUNS = ("pruneflow.base_run", "pruneflow.pruning_run")  # tags that name another run
_METRICS, _OTHERS = 1000, 100  # of one request


def wanted() -> bool:
    """Whether this process is to make its runs offline."""
    return os.environ.get("PRUNEFLOW_OFFLINE", "").lower() not in ("", "0", "false", "no")


def uri() -> str:
    """The tracking URI of the store for runs made offline."""
    return f"sqlite:///{state_folder() / 'offline' / 'mlflow.db'}"


def use() -> None:
    """Make this process, and those it starts, use that store."""
    folder = state_folder() / "offline"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["MLFLOW_TRACKING_URI"] = uri()
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)  # of another store
    mlflow.set_tracking_uri(uri())
    name = os.environ.setdefault("MLFLOW_EXPERIMENT_NAME", "offline")
    client = MlflowClient()
    if client.get_experiment_by_name(name) is None:
        client.create_experiment(name, artifact_location=(folder / "artifacts").as_uri())


def copy_runs() -> Iterator[tuple[str, str]]:
    """Copy what was run offline, and is not there yet, to the current store.

    Interrupted and begun again, everything is there once: runs are found by a tag, and metrics
    have the times they had.

    Yields:
        Name of each run, and the id it has there.
    """
    if not (state_folder() / "offline" / "mlflow.db").exists():
        return
    here, there = MlflowClient(tracking_uri=uri()), MlflowClient()
    runs = [
        run
        for run in reader.runs(None, client=here)
        if run.info.status != "RUNNING" and _COPIED_AS not in run.data.tags
    ]
    made = {run.info.run_id: _make(here, there, run) for run in runs}
    for run in runs:
        _copy(here, there, run, made)
        copy = made[run.info.run_id]
        here.set_tag(run.info.run_id, _COPIED_AS, copy)
        yield run.info.run_name, copy


def _make(here: MlflowClient, there: MlflowClient, run: MlflowRun) -> str:
    """An empty run there for one here; the one made before, if there is one."""
    name = here.get_experiment(run.info.experiment_id).name
    found = there.get_experiment_by_name(name)
    experiment = there.create_experiment(name) if found is None else found.experiment_id
    made = there.search_runs([experiment], f"tags.`{_COPY_OF}` = '{run.info.run_id}'")
    if made:
        return str(made[0].info.run_id)
    copy = there.create_run(
        experiment,
        start_time=run.info.start_time,
        tags={_COPY_OF: run.info.run_id},
        run_name=run.info.run_name,
    )
    return str(copy.info.run_id)


def _copy(here: MlflowClient, there: MlflowClient, run: MlflowRun, made: dict[str, str]) -> None:
    """Fill a run there with what the one here has."""
    copy = made[run.info.run_id]
    tags = dict(run.data.tags)
    for name in _OF_RUNS:
        if name in tags:
            tags[name] = made.get(tags[name]) or _copied_as(here, tags[name])
    params = [Param(k, v) for k, v in run.data.params.items()]
    marks = [RunTag(k, v) for k, v in tags.items()]
    for start in range(0, max(len(params), len(marks)), _OTHERS):
        part = slice(start, start + _OTHERS)
        there.log_batch(copy, params=params[part], tags=marks[part])
    points: list[Metric] = []
    for key in run.data.metrics:
        points += here.get_metric_history(run.info.run_id, key)
    for start in range(0, len(points), _METRICS):
        there.log_batch(copy, metrics=points[start : start + _METRICS])
    if run.inputs.dataset_inputs:
        there.log_inputs(copy, run.inputs.dataset_inputs)
    with tempfile.TemporaryDirectory(prefix="pruneflow-") as folder:
        local = here.download_artifacts(run.info.run_id, "", folder)
        if any(Path(local).iterdir()):
            there.log_artifacts(copy, local)
    there.set_terminated(copy, run.info.status, run.info.end_time)


def _copied_as(here: MlflowClient, run_id: str) -> str:
    """The id that a run, copied at another time, has there; its own, if it was never here."""
    try:
        return str(here.get_run(run_id).data.tags.get(_COPIED_AS, run_id))
    except MlflowException:
        return run_id
