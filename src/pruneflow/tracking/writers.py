"""Writers: which process writes to a run, by when it published and by the mark of its folder.

A run is written from one journal. Whoever takes a run over that seems dead marks it as written
from another journal; the first finds that before it writes again, and stops.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime

from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.tracking.context.registry import resolve_tags

from pruneflow.errors import InputError, first_line
from pruneflow.tracking import journal, store
from pruneflow.tracking.journal import Journal, Owner, folder_of, is_held, this_host, writer_of
from pruneflow.tracking.levels import TAG_LIMIT
from pruneflow.tracking.refusals import TakenOverError

HEARTBEAT = "pruneflow.heartbeat"  # when a run that is going on was last published
CONTINUED_IN = "pruneflow.continued_in"  # of a run that was handed over and not needed
FAILURE = "pruneflow.failure"
WRITER = "pruneflow.writer"  # the mark of the journal that the run is written from
_SILENCE_SECONDS = 900.0  # after which a run on another machine counts as dead


def check_handed_over(
    run: MlflowRun, fingerprint: str | None = None, stage: str | None = None
) -> None:
    """See that the run that MLFLOW_RUN_ID names is this process's to fill.

    Args:
        run: it.
        fingerprint, stage: of what is to be run, as far as they are known.

    Raises:
        InputError: it is deleted, finished, or another's.
    """
    reason = _why_not_free(run, fingerprint, stage)
    if reason is not None:
        raise InputError(
            f"MLFLOW_RUN_ID={run.info.run_id} {reason}: unset it, or hand over a new run"
        )


def _why_not_free(run: MlflowRun, fingerprint: str | None, stage: str | None) -> str | None:
    tags, status = run.data.tags, run.info.status
    theirs = tags.get("pruneflow.fingerprint")
    measured = [name for name in run.data.metrics if not name.startswith("system/")]
    if run.info.lifecycle_stage != "active":
        return "is deleted"
    if status == "FINISHED":
        return "is finished"
    if is_alive(run):
        return f"is written to by another process ({tags.get(HEARTBEAT, 'on this machine')})"
    if theirs is not None and fingerprint in (None, theirs):
        return None  # interrupted: it goes on
    if theirs is not None or WRITER in tags or measured:
        return "holds the records of another experiment"
    if stage is not None and tags.get("pruneflow.stage", stage) != stage:
        return f"was made for {tags['pruneflow.stage']}"
    return f"has ended as {status}" if status in ("FAILED", "KILLED") else None


def is_alive(run: MlflowRun) -> bool:
    """Whether a process is at work on a run: it holds its folder here, or published lately."""
    folder = folder_of(run.info.run_id)
    if folder.exists():
        if is_held(folder):
            return True
        if run.data.tags.get(WRITER, "") in ("", writer_of(folder)):
            return False
    if run.info.status != "RUNNING":
        return False
    silent = seconds_silent(run)
    return silent is not None and silent < _SILENCE_SECONDS


def seconds_silent(run: MlflowRun) -> float | None:
    """How long ago a run that is going on was published; None if it never was."""
    try:
        at = datetime.fromisoformat(run.data.tags[HEARTBEAT].split()[0])
        return (datetime.now(UTC) - at).total_seconds()
    except (LookupError, ValueError, TypeError):
        return None


def check_writer(client: MlflowClient, run_id: str, records: Journal) -> None:
    """See that no other journal's process has taken the run over.

    Raises:
        TakenOverError: one has.
    """
    writer = client.get_run(run_id).data.tags.get(WRITER, "")
    if writer not in ("", records.owner.writer):
        raise TakenOverError(f"it was taken over by a process on {writer.partition(' ')[0]}")


def heartbeat() -> str:
    """That this process has its run, as a tag says it: when, where, which process."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return f"{now} {this_host()} {os.getpid()}"


def take(client: MlflowClient, run_id: str, experiment_id: str, name: str, stage: str) -> Journal:
    """The journal of a run, which is written from it alone from now on.

    One left here by a process whose run was taken over elsewhere is set aside.
    """
    folder = folder_of(run_id)
    run = client.get_run(run_id)
    writer = run.data.tags.get(WRITER, "")
    if folder.exists() and writer not in ("", writer_of(folder)):
        aside = journal.set_aside(folder)
        print(f"pruneflow: run {run_id} was written to elsewhere since: {aside}", file=sys.stderr)
    host = this_host()
    address = store.without_credentials(store.uri())
    records = Journal.make(Owner(run_id, experiment_id, address, name, stage, host))
    try:
        _claim(client, run, records)
    except BaseException:
        records.close(remove=False)
        raise
    return records


def _claim(client: MlflowClient, run: MlflowRun, records: Journal) -> None:
    """Mark a run as written from this journal: from others it is not written any more."""
    client.set_tag(run.info.run_id, WRITER, records.owner.writer)
    client.set_tag(run.info.run_id, HEARTBEAT, heartbeat())
    if run.info.status != "RUNNING":
        client.update_run(run.info.run_id, "RUNNING")


def identify(
    client: MlflowClient,
    handed_over: str | None,
    interrupted: str | None,
    name: str,
    experiment_id: str | None,
) -> tuple[str, str]:
    """Id of the run to open, and of its experiment: an interrupted one, handed over, or new."""
    if interrupted is not None:
        if handed_over not in (None, interrupted):
            dismiss(handed_over, interrupted)
        return interrupted, str(client.get_run(interrupted).info.experiment_id)
    if handed_over is not None:
        client.update_run(handed_over, name=name)
        return handed_over, str(client.get_run(handed_over).info.experiment_id)
    experiment_id = experiment_id or store.current_experiment()
    made = client.create_run(experiment_id, tags=resolve_tags(), run_name=name)
    return str(made.info.run_id), experiment_id


def dismiss(handed_over: str | None, instead: str) -> None:
    """Say of a run that was handed over, and stays empty, which one stands for it; delete it.

    One that `mlflow run` made stays, or that would fail at its end.
    """
    if handed_over is None:
        return
    client = MlflowClient()
    with suppress(MlflowException):  # at worst an empty run is seen in the UI
        client.set_tag(handed_over, CONTINUED_IN, instead)
        client.set_tag(handed_over, "mlflow.note.content", f"Nothing was run here: see {instead}.")
        client.update_run(handed_over, "FINISHED", f"see-{instead[:8]}")
        if "mlflow.project.entryPoint" not in client.get_run(handed_over).data.tags:
            client.delete_run(handed_over)


def hand_over(name: str, tags: Mapping[str, str]) -> str:
    """Create a run for another process, which takes it over by MLFLOW_RUN_ID; its id."""
    client = MlflowClient()
    run = client.create_run(
        store.current_experiment(), tags={**resolve_tags(), **tags}, run_name=name
    )
    return str(run.info.run_id)


def end_deserted(run_id: str, reason: str) -> None:
    """End a run as FAILED if the process that had it left it running."""
    client = MlflowClient()
    if client.get_run(run_id).info.status == "RUNNING":
        end(client, run_id, "FAILED", reason)


def refuse_handed_over(reason: str) -> None:
    """End a run that `mlflow run` handed over, and that was not taken over, as FAILED."""
    run_id = os.environ.pop("MLFLOW_RUN_ID", None)
    if run_id is None:
        return
    try:
        store.check()
        check_handed_over(MlflowClient().get_run(run_id), "")
    except (InputError, MlflowException):
        return  # the reason has been told, and there is nowhere else to write it
    end(MlflowClient(), run_id, "FAILED", reason)


def end(client: MlflowClient, run_id: str, status: str, reason: str) -> None:
    """End a run for a reason; a store that has gone must not hide what went wrong."""
    try:
        client.set_tag(run_id, FAILURE, reason[:TAG_LIMIT])
        client.set_terminated(run_id, status)
    except Exception as error:  # whatever a store, a driver or a network has to say
        print(f"pruneflow: run {run_id} could not be ended: {first_line(error)}", file=sys.stderr)
