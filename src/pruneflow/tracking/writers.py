"""Writers: which process writes to a run, by its heartbeat and by the mark of its journal.

A run is written from one journal. Whoever takes a run over that seems dead marks it as written
from another journal; the first finds that before it writes again, and stops.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime

from mlflow.entities import Run as MlflowRun
from mlflow.tracking import MlflowClient

from pruneflow.errors import InputError
from pruneflow.tracking.journal import Journal, folder_of, is_held, this_host, writer_of
from pruneflow.tracking.refusals import TakenOverError

HEARTBEAT = "pruneflow.heartbeat"  # when a run that is going on was last published
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
    """Whether a process is at work on a run: it holds its journal here, or its heart beats."""
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
    """How long ago a run's heart has beaten; None if it never has."""
    try:
        at = datetime.fromisoformat(run.data.tags[HEARTBEAT].split()[0])
        return (datetime.now(UTC) - at).total_seconds()
    except (LookupError, ValueError, TypeError):
        return None


def claim(client: MlflowClient, run: MlflowRun, journal: Journal) -> None:
    """Mark a run as written from this journal: from others it is not written any more."""
    client.set_tag(run.info.run_id, WRITER, journal.owner.writer)
    client.set_tag(run.info.run_id, HEARTBEAT, heartbeat())
    if run.info.status != "RUNNING":
        client.update_run(run.info.run_id, "RUNNING")


def check_writer(client: MlflowClient, run_id: str, journal: Journal) -> None:
    """See that no other journal's process has taken the run over.

    Raises:
        TakenOverError: one has.
    """
    writer = client.get_run(run_id).data.tags.get(WRITER, "")
    if writer not in ("", journal.owner.writer):
        raise TakenOverError(f"it was taken over by a process on {writer.partition(' ')[0]}")


def heartbeat() -> str:
    """That this process has its run, as a tag says it: when, where, which process."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return f"{now} {this_host()} {os.getpid()}"
