"""Resume: which run a configuration that is started again goes on with."""

from __future__ import annotations

import os
from dataclasses import dataclass

from mlflow.tracking import MlflowClient

from pruneflow.errors import InputError
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

    `wanted` is `auto`, `never` or a run id. It is looked for in `experiment_id`, else where the run
    to be opened would be.

    Raises:
        InputError: a run id that cannot be gone on with, or a run handed over that is another's.
    """
    handed_over = os.environ.get("MLFLOW_RUN_ID") if experiment_id is None else None
    if handed_over:
        experiment_id = check_handed_over(handed_over, fingerprint).info.experiment_id
    if wanted == NEVER:
        return None
    if wanted != AUTO:
        return _named(wanted, fingerprint)
    same = f"tags.`pruneflow.fingerprint` = '{fingerprint}'"
    experiments = [experiment_id or store.current_experiment()]
    runs = list(reader.runs(experiments, same, newest_first=True))
    for run in runs:
        if run.info.status == "FINISHED":
            return Earlier(run.info.run_id, finished=True)
    for run in sorted(runs, key=lambda run: run.info.run_id != handed_over):
        run_id = run.info.run_id
        if not is_alive(run) and (folder_of(run_id).exists() or reader.read_levels(run_id)[0]):
            return Earlier(run_id, finished=False)
    return None


def _named(wanted: str, fingerprint: str) -> Earlier:
    run = reader.run(wanted, "resume", "auto, never or the id of a run")
    theirs, finished = run.data.tags.get("pruneflow.fingerprint"), run.info.status == "FINISHED"
    if theirs != fingerprint:
        raise InputError(
            f"resume={wanted!r} is a run of another configuration, data set, base run or version "
            f"(fingerprint {theirs}, this one has {fingerprint}): pass its parameters, or auto"
        )
    if not finished and is_alive(run):
        who = run.data.tags.get(HEARTBEAT, "another process")
        raise InputError(f"resume={wanted!r} is still running ({who}): wait for it, or end it")
    return Earlier(wanted, finished)


def report(run: Earlier, experiment_id: str | None = None) -> Ended:
    """A finished run, instead of the one that would have been opened (`experiment_id`: where)."""
    if experiment_id is None and (handed_over := os.environ.pop("MLFLOW_RUN_ID", None)):
        dismiss(handed_over, run.id)
    experiment_id = str(MlflowClient().get_run(run.id).info.experiment_id)
    return Ended(run.id, experiment_id, reader.read_levels(run.id)[0])
