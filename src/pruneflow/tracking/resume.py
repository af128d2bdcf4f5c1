"""Resume: which run a configuration that is started again goes on with."""

from __future__ import annotations

import os
from dataclasses import dataclass

from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pruneflow.errors import InputError, first_line
from pruneflow.tracking import reader, store
from pruneflow.tracking.journal import folder_of
from pruneflow.tracking.run import Ended
from pruneflow.tracking.writers import HEARTBEAT, check_handed_over, dismiss, is_alive

AUTO, NEVER = "auto", "never"


@dataclass(frozen=True)
class Earlier:
    """A run of the same configuration, data and base: finished, or interrupted."""

    id: str
    finished: bool


def earlier(wanted: str, fingerprint: str, experiment_id: str | None = None) -> Earlier | None:
    """The run that is to be reported or gone on with instead of a new one; None for a new one.

    Args:
        wanted: `auto`, `never` or a run id.
        fingerprint: of what is to be run.
        experiment_id: where to look; without it, where the run to be opened would be.

    Raises:
        InputError: a run id that cannot be gone on with, or a run handed over that is another's.
    """
    client = MlflowClient()
    handed_over = os.environ.get("MLFLOW_RUN_ID") if experiment_id is None else None
    if handed_over:
        run = client.get_run(handed_over)
        check_handed_over(run, fingerprint)
        experiment_id = run.info.experiment_id
    if wanted == NEVER:
        return None
    if wanted != AUTO:
        return _named(client, wanted, fingerprint)
    same = f"tags.`pruneflow.fingerprint` = '{fingerprint}'"
    experiments = [experiment_id or store.current_experiment()]
    found = list(reader.runs(experiments, same, newest_first=True))
    for run in found:
        if run.info.status == "FINISHED":
            return Earlier(run.info.run_id, finished=True)
    for run in sorted(found, key=lambda run: run.info.run_id != handed_over):
        if not is_alive(run) and _has_records(run.info.run_id):
            return Earlier(run.info.run_id, finished=False)
    return None


def _has_records(run_id: str) -> bool:
    return folder_of(run_id).exists() or bool(reader.read_levels(run_id)[0])


def _named(client: MlflowClient, wanted: str, fingerprint: str) -> Earlier:
    try:
        run: MlflowRun = client.get_run(wanted)
    except MlflowException as error:
        raise InputError(
            f"resume={wanted!r} is neither auto nor never nor the id of a run in "
            f"{store.without_credentials(store.uri())}: {first_line(error)}"
        ) from None
    theirs = run.data.tags.get("pruneflow.fingerprint")
    if theirs != fingerprint:
        raise InputError(
            f"resume={wanted!r} is a run of another configuration, data set, base run or version "
            f"(fingerprint {theirs}, this one has {fingerprint}): pass its parameters, or auto"
        )
    if run.info.status != "FINISHED" and is_alive(run):
        who = run.data.tags.get(HEARTBEAT, "another process")
        raise InputError(f"resume={wanted!r} is still running ({who}): wait for it, or end it")
    return Earlier(wanted, finished=run.info.status == "FINISHED")


def report(run: Earlier, experiment_id: str | None = None) -> Ended:
    """A finished run, instead of the one that would have been opened (`experiment_id`: where)."""
    if experiment_id is None:
        dismiss(os.environ.pop("MLFLOW_RUN_ID", None), run.id)
    found = MlflowClient().get_run(run.id)
    return Ended(run.id, str(found.info.experiment_id), reader.read_levels(run.id)[0])
