"""Offline: runs made without any MLflow server go to a store of this machine, and on from there.

With PRUNEFLOW_OFFLINE=1 the entry points use a SQLite store in the state folder in place of the
one that MLFLOW_TRACKING_URI names, and runs keep their folders. `copy_runs`, as `pruneflow sync`
calls it, publishes those as new runs there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import mlflow
from mlflow.tracking import MlflowClient

from pruneflow.tracking import journal
from pruneflow.tracking.publish import RUN_TAGS, publish_folder

_COPY_OF = "pruneflow.copy_of"  # of a run there: its id here


def wanted() -> bool:
    """Whether this process is to make its runs offline."""
    return os.environ.get("PRUNEFLOW_OFFLINE", "").lower() not in ("", "0", "false", "no")


def use() -> None:
    """Make this process, and those it starts, use that store."""
    folder = journal.state_folder() / "offline"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["MLFLOW_TRACKING_URI"] = journal.offline_uri()
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)  # of another store
    mlflow.set_tracking_uri(journal.offline_uri())
    name = os.environ.setdefault("MLFLOW_EXPERIMENT_NAME", "offline")
    client = MlflowClient()
    if client.get_experiment_by_name(name) is None:
        client.create_experiment(name, artifact_location=(folder / "artifacts").as_uri())


def copy_runs() -> Iterator[tuple[str, str]]:
    """Publish what was run offline, and is not there yet, to the current store.

    Interrupted and begun again, everything is there once: runs are found by a tag, and records
    have the times they had.

    Yields:
        Name of each run, and the id it has there.
    """
    folders = {journal.owner_of(folder).run_id: folder for folder in journal.folders()}
    folders = {k: v for k, v in folders.items() if journal.is_offline(v) and not journal.is_held(v)}
    if not folders:
        return
    here, there = MlflowClient(tracking_uri=journal.offline_uri()), MlflowClient()
    copies = {run_id: _copy(there, run_id) or _make(here, there, run_id) for run_id in folders}

    def renamed(run_id: str) -> str:
        return copies.get(run_id) or _copy(there, run_id) or run_id

    for run_id, folder in folders.items():
        name = journal.owner_of(folder).name
        if publish_folder(folder, copy=copies[run_id], renamed=renamed):
            yield name, copies[run_id]


def _copy(there: MlflowClient, run_id: str) -> str | None:
    """The id that a run, published there before, has there."""
    everywhere = [experiment.experiment_id for experiment in there.search_experiments()]
    found = there.search_runs(everywhere, f"tags.`{_COPY_OF}` = '{run_id}'", max_results=1)
    return str(found[0].info.run_id) if found else None


def _make(here: MlflowClient, there: MlflowClient, run_id: str) -> str:
    """An empty run there for one here, with what is in no folder: times, names and study."""
    run = here.get_run(run_id)
    name = here.get_experiment(run.info.experiment_id).name
    found = there.get_experiment_by_name(name)
    experiment = there.create_experiment(name) if found is None else found.experiment_id
    tags = {k: v for k, v in run.data.tags.items() if k not in RUN_TAGS} | {_COPY_OF: run_id}
    made = there.create_run(experiment, run.info.start_time, tags, run.info.run_name)
    return str(made.info.run_id)
