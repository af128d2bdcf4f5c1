"""Resume: which run a configuration that is started again goes on with."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime

from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pruneflow.errors import InputError, first_line
from pruneflow.tracking import journal, reader, store
from pruneflow.tracking.reader import read_levels
from pruneflow.tracking.run import Ended
from pruneflow.tracking.store import current_experiment
from pruneflow.tracking.writers import HEARTBEAT, check_handed_over, dismiss, is_alive

AUTO, NEVER = "auto", "never"


@dataclass(frozen=True)
class Earlier:
    """A run of the same configuration, data and base.

    Attributes:
        id: of the run.
        finished: whether there is nothing left to do; else it was interrupted.
    """

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
        check_handed_over(client.get_run(handed_over), fingerprint)
    if wanted == NEVER:
        return None
    if wanted != AUTO:
        return _named(client, wanted, fingerprint)
    if experiment_id is None:
        experiment_id = (
            client.get_run(handed_over).info.experiment_id if handed_over else current_experiment()
        )
    same = f"tags.`pruneflow.fingerprint` = '{fingerprint}'"
    found = list(reader.runs([experiment_id], same, newest_first=True))
    for run in found:
        if run.info.status == "FINISHED":
            return Earlier(run.info.run_id, finished=True)
    first = [run for run in found if run.info.run_id == handed_over]
    for run in [*first, *found]:
        if not is_alive(run) and _has_something(run):
            return Earlier(run.info.run_id, finished=False)
    return None


def report(run: Earlier, experiment_id: str | None = None) -> Ended:
    """A finished run, instead of the one that would have been opened (`experiment_id`: where)."""
    if experiment_id is None:
        dismiss(os.environ.pop("MLFLOW_RUN_ID", None), run.id)
    client = MlflowClient()
    levels, _ = read_levels(run.id)
    return Ended(run.id, str(client.get_run(run.id).info.experiment_id), levels)


def _named(client: MlflowClient, wanted: str, fingerprint: str) -> Earlier:
    try:
        run = client.get_run(wanted)
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


def seconds_since(milliseconds: int) -> float:
    """Seconds from a time of MLflow's, in ms since 1970, until now."""
    return datetime.now(UTC).timestamp() - milliseconds / 1000


def _has_something(run: MlflowRun) -> bool:
    """Whether there is anything to go on from, here or in MLflow."""
    if journal.folder_of(run.info.run_id).exists():
        return True
    found, _ = read_levels(run.info.run_id)
    return bool(found)
