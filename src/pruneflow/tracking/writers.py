"""Writers: which process writes to a run, by when it published and by the mark of its folder.

A run is written from one journal. Whoever takes a run over that seems dead marks it as written
from another journal; the first finds that before it writes again, and stops.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime

from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.tracking.context.registry import resolve_tags

from pruneflow.errors import ExperimentError, InputError, first_line
from pruneflow.tracking import reader, store
from pruneflow.tracking.journal import HOST, Journal, Owner, folder_of, is_held, writer_of
from pruneflow.tracking.levels import TAG_LIMIT

HEARTBEAT = "pruneflow.heartbeat"  # when a run that is going on was last published
CONTINUED_IN = "pruneflow.continued_in"  # of a run that was handed over and not needed
FAILURE = "pruneflow.failure"
WRITER = "pruneflow.writer"  # the mark of the journal that the run is written from
_KIND = "mlflow.experimentKind"
_SILENCE_SECONDS = 900.0  # after which a run on another machine counts as dead


def check_handed_over(
    run_id: str, fingerprint: str | None = None, stage: str | None = None
) -> MlflowRun:
    """The run that MLFLOW_RUN_ID names, if it is free for what is to be run, as far as known.

    Raises:
        InputError: it is not there, deleted, finished, or another's.
    """
    run = reader.run(run_id, "MLFLOW_RUN_ID", "the id of a new run, or unset it")
    tags, status, reason = run.data.tags, run.info.status, ""
    theirs = tags.get("pruneflow.fingerprint")
    measured = any(not name.startswith("system/") for name in run.data.metrics)
    if status == "FINISHED":
        reason = "is finished"
    elif is_alive(run):
        reason = f"is written to by another process ({tags.get(HEARTBEAT, 'on this machine')})"
    elif theirs is not None and fingerprint in (None, theirs):
        pass  # interrupted: it goes on
    elif theirs is not None or WRITER in tags or measured:
        reason = "holds the records of another experiment"
    elif stage is not None and tags.get("pruneflow.stage", stage) != stage:
        reason = f"was made for {tags['pruneflow.stage']}"
    elif status in ("FAILED", "KILLED"):
        reason = f"has ended as {status}"
    if reason:
        raise InputError(f"MLFLOW_RUN_ID={run_id!r} {reason}: unset it, or hand over a new run")
    return run


def is_alive(run: MlflowRun) -> bool:
    """Whether a process is at work on a run: it holds its folder here, or published lately."""
    folder = folder_of(run.info.run_id)
    if folder.exists():
        if is_held(folder):
            return True
        if run.data.tags.get(WRITER, "") in ("", writer_of(folder)):
            return False
    silent = seconds_silent(run)
    return run.info.status == "RUNNING" and silent is not None and silent < _SILENCE_SECONDS


def seconds_silent(run: MlflowRun) -> float | None:
    """How long ago a run that is going on was published; None if it never was."""
    try:
        published = datetime.fromisoformat(run.data.tags[HEARTBEAT].split()[0])
        return (datetime.now(UTC) - published).total_seconds()
    except (LookupError, ValueError, TypeError):
        return None


def heartbeat() -> str:
    """That this process has its run, as a tag says it: when, where, which process."""
    return f"{datetime.now(UTC).isoformat(timespec='seconds')} {HOST} {os.getpid()}"


def _mark_as_training(client: MlflowClient, experiment_id: str) -> None:
    """Have the UI open an experiment's pages for training, and not those for GenAI."""
    with suppress(MlflowException):  # who may not write to experiments still has runs
        if _KIND not in client.get_experiment(experiment_id).tags:
            client.set_experiment_tag(experiment_id, _KIND, "custom_model_development")


def take(
    stage: str, name: str, fingerprint: str, experiment_id: str | None, interrupted: str | None
) -> Journal:
    """The journal of the run to be filled, which is written from it alone from now on.

    The run is the interrupted one; one handed over by MLFLOW_RUN_ID, unless `experiment_id` says
    where it is to be; or a new one. A journal of it that was left here by a process whose run was
    taken over elsewhere is set aside.
    """
    client = MlflowClient()
    handed_over = os.environ.pop("MLFLOW_RUN_ID", None) if experiment_id is None else None
    if interrupted is not None:
        run = client.get_run(interrupted)
        if handed_over not in (None, interrupted):
            dismiss(str(handed_over), interrupted)
    elif handed_over is not None:
        run = check_handed_over(handed_over, fingerprint, stage)
        client.update_run(handed_over, name=name)
    else:
        experiment_id = experiment_id or store.current_experiment()
        run = client.create_run(experiment_id, tags=resolve_tags(), run_name=name)
    run_id, experiment_id = str(run.info.run_id), str(run.info.experiment_id)
    _mark_as_training(client, experiment_id)
    folder, writer = folder_of(run_id), run.data.tags.get(WRITER, "")
    if folder.exists() and writer not in ("", writer_of(folder)):
        aside = folder.rename(folder.with_name(f"{folder.name}-{uuid.uuid4().hex[:8]}"))
        print(f"pruneflow: run {run_id} was written to elsewhere since: {aside}", file=sys.stderr)
    writer = writer_of(folder) or f"{HOST} {uuid.uuid4().hex}"
    owner = Owner(run_id, experiment_id, store.shown_uri(), name, stage, HOST, writer)
    records = Journal.make(owner)
    try:
        client.set_tag(run_id, WRITER, writer)
        client.set_tag(run_id, HEARTBEAT, heartbeat())
        if run.info.status != "RUNNING":
            client.update_run(run_id, "RUNNING")
    except BaseException:
        records.close()
        raise
    return records


def dismiss(handed_over: str, instead: str) -> None:
    """Say of a run that was handed over, and stays empty, which one stands for it; delete it.

    One that `mlflow run` made stays, or that would fail at its end.
    """
    client = MlflowClient()
    with suppress(MlflowException):  # at worst an empty run is seen in the UI
        client.set_tag(handed_over, CONTINUED_IN, instead)
        client.set_tag(handed_over, "mlflow.note.content", f"Nothing was run here: see {instead}.")
        client.update_run(handed_over, "FINISHED", f"see-{instead[:8]}")
        if "mlflow.project.entryPoint" not in client.get_run(handed_over).data.tags:
            client.delete_run(handed_over)


def hand_over(name: str, tags: Mapping[str, str]) -> str:
    """Create a run for another process, which takes it over by MLFLOW_RUN_ID; its id."""
    tags = {**resolve_tags(), **tags}
    run = MlflowClient().create_run(store.current_experiment(), tags=tags, run_name=name)
    return str(run.info.run_id)


def refuse_handed_over(reason: str) -> None:
    """End a run that `mlflow run` handed over, and that was not taken over, as FAILED."""
    run_id = os.environ.get("MLFLOW_RUN_ID", "")
    with suppress(InputError, ExperimentError, MlflowException):  # the reason is printed anyway
        store.check()
        check_handed_over(run_id, "")
        end(run_id, "FAILED", reason)
    os.environ.pop("MLFLOW_RUN_ID", None)


def end_deserted(run_id: str, reason: str) -> None:
    """End a run as FAILED if the process that had it left it running."""
    if MlflowClient().get_run(run_id).info.status == "RUNNING":
        end(run_id, "FAILED", reason)


def end(run_id: str, status: str, reason: str) -> None:
    """End a run for a reason; a store that has gone must not hide what went wrong."""
    try:
        MlflowClient().set_tag(run_id, FAILURE, reason[:TAG_LIMIT])
        MlflowClient().set_terminated(run_id, status)
    except Exception as error:  # whatever a store, a driver or a network has to say
        print(f"pruneflow: run {run_id} could not be ended: {first_line(error)}", file=sys.stderr)
