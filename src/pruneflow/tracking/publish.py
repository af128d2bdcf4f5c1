"""Publish: what a run's folder holds and MLflow does not have yet is sent to it.

Sent twice, it is there once, since every record has its time. The run itself publishes at the ends
of epochs and levels, `pruneflow sync` and a sweep do it for a run whose process has ended.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from pruneflow.errors import ExperimentError, first_line
from pruneflow.tracking import levels, tables, writers
from pruneflow.tracking.journal import Entry, Journal
from pruneflow.tracking.refusals import TakenOverError, in_short, is_refusal

LEVELS = "levels.csv"
RUN_TAGS = ("pruneflow.base_run", "pruneflow.pruning_run")  # tags that name another run
# At a run's end, how long it is tried in an outage.
_PATIENCE_SECONDS = {"FINISHED": 30.0, "FAILED": 10.0, "KILLED": 4.0}
_PAUSE_SECONDS = 5.0  # after an outage, at the least
_BEAT_SECONDS = 20.0  # between two notes of when a run was published
_SHARE = 0.05  # of a run's time that tries in an outage may take


def fail_soon() -> None:
    """Have MLflow's requests give up after seconds, since what is not sent is sent later.

    Nor does it print where each run is. What the user has set stays.
    """
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")


def publish(
    client: MlflowClient,
    journal: Journal,
    run_id: str | None = None,
    renamed: Callable[[str], str] = str,
) -> None:
    """Send what MLflow does not have yet, to the journal's run or to a copy with another id.

    `renamed` gives the id that another run has in the store, by the one that it was made with.

    Raises:
        TakenOverError: another process has taken the run over; nothing is sent.
        Exception: what a store, a driver or a network has to say.
    """
    run_id = run_id or journal.owner.run_id
    writer = client.get_run(run_id).data.tags.get(writers.WRITER, "")
    if writer not in ("", journal.owner.writer):
        raise TakenOverError(f"it was taken over by a process on {writer.partition(' ')[0]}")
    while pending := journal.pending():
        ends = [i for i, entry in enumerate(pending, 1) if entry.artifact or entry.status]
        count = ends[0] if ends else len(pending)
        again = {entry.artifact for entry in pending[count:]}
        _send(client, run_id, journal, pending[:count], again, renamed)
        journal.acknowledge(count)


def _send(
    client: MlflowClient,
    run_id: str,
    journal: Journal,
    entries: Sequence[Entry],
    again: Collection[str | None],
    renamed: Callable[[str], str],
) -> None:
    """Send entries, of which the last may have an artifact or status; not one that comes again."""
    tags = {k: v for entry in entries for k, v in entry.tags.items()}
    tags |= {k: renamed(v) for k, v in tags.items() if k in RUN_TAGS and v is not None}
    last = entries[-1]
    artifact = None if last.artifact in again else last.artifact
    if artifact == LEVELS:
        rows = tables.from_csv(journal.artifact(LEVELS).read_text("utf-8"), levels.Level)
        tags |= {"pruneflow.curves": levels.curves(rows)} if rows else {}
    client.log_batch(
        run_id,
        metrics=[Metric(*metric) for entry in entries for metric in entry.metrics],
        params=[Param(k, v) for entry in entries for k, v in entry.params.items()],
        tags=[RunTag(k, v) for k, v in tags.items() if v is not None],
    )
    if gone := {name for name, value in tags.items() if value is None}:
        for name in gone & client.get_run(run_id).data.tags.keys():
            client.delete_tag(run_id, name)
    context = [InputTag("mlflow.data.context", "training")]
    data = [Dataset(**entry.inputs) for entry in entries if entry.inputs is not None]
    if data:
        client.log_inputs(run_id, [DatasetInput(one, context) for one in data])
    place = None if artifact is None else journal.artifact(artifact)
    if artifact is not None and place is not None and place.exists():
        if place.is_dir():
            client.log_artifacts(run_id, str(place), artifact)
        else:
            client.log_artifact(run_id, str(place), artifact.rpartition("/")[0] or None)
    if last.status is not None and last.time is not None:
        client.set_terminated(run_id, last.status, last.time)
    elif last.status is not None:
        client.update_run(run_id, last.status)


def publish_folder(
    folder: Path, *, copy: str | None = None, renamed: Callable[[str], str] = str
) -> int:
    """Publish the folder of a run whose process has ended, and end the run if that was killed.

    A folder whose run has finished is removed; others stay, since their runs can go on.

    Args:
        folder: of the run.
        copy: id of the run that is to stand for it in a store other than its own.
        renamed: as in `publish`.

    Returns:
        How many records were sent.

    Raises:
        InputError: it is open in another process, or no run's.
        TakenOverError, Exception: as `publish`.
    """
    journal = Journal(folder, sent="sent" if copy is None else "copied")
    try:
        client, count, run_id = MlflowClient(), len(journal.pending()), copy or journal.owner.run_id
        publish(client, journal, run_id, renamed)
        if journal.status == "RUNNING":
            client.set_tag(run_id, writers.FAILURE, "its process ended without a word")
            client.set_terminated(run_id, "KILLED")
        return count
    finally:
        journal.close(remove=journal.status == "FINISHED" and not journal.pending())


class Publisher:
    """Publishes a run that is going on. An outage neither ends it nor holds it up."""

    def __init__(self, client: MlflowClient, journal: Journal) -> None:
        self.outage = ""  # why nothing can be sent at the moment, if so
        self.refusal: BaseException | None = None  # why nothing is sent any more, if so
        self._client = client
        self._journal = journal
        self._last = self._beaten = self._not_before = -float("inf")

    def publish(self, *, patience: float = 0.0, every: float = 0.0) -> bool:
        """Send what MLflow does not have yet; whether it has all of it.

        Args:
            patience: seconds, since anything was sent, for which it is tried again and again in an
                outage; 0 for one try, if the last that failed is long enough ago.
            every: seconds that have to be between two times.

        Raises:
            ExperimentError: MLflow has refused something, or the run was taken over.
        """
        self.check()
        start = time.monotonic()
        if not patience and start < max(self._not_before, self._last + every):
            return False
        while True:
            begun, sent = time.monotonic(), self._journal.sent
            try:
                publish(self._client, self._journal)
                self._beat()
            except Exception as error:  # whatever a store, a driver or a network has to say
                if is_refusal(error):
                    self.refusal = error
                    self.check()
                self._note_outage(in_short(error), time.monotonic() - begun)
                start = time.monotonic() if self._journal.sent > sent else start
                if time.monotonic() - start >= patience:
                    return False
                time.sleep(min(_PAUSE_SECONDS, 1.0, patience))
            else:
                if self.outage:
                    print("pruneflow: MLflow answers again", file=sys.stderr)
                self.outage, self._last = "", time.monotonic()
                return True

    def _beat(self) -> None:
        """Say of a run that is going on when it was last published."""
        now = time.monotonic()
        if self._journal.status == "RUNNING" and now - self._beaten >= _BEAT_SECONDS:
            run_id = self._journal.owner.run_id
            self._client.set_tag(run_id, writers.HEARTBEAT, writers.heartbeat())
            self._beaten = now

    def _note_outage(self, reason: str, seconds: float) -> None:
        """Remember an outage, which a try of so many seconds has found; tell of a new one."""
        if not self.outage:
            print(
                f"pruneflow: MLflow does not answer ({reason}): the run goes on and keeps its "
                f"records in {self._journal.folder}",
                file=sys.stderr,
            )
        self.outage = reason
        self._not_before = time.monotonic() + max(_PAUSE_SECONDS, seconds / _SHARE)

    def end(self, status: str, reason: str = "") -> None:
        """End the run with a status and what was the reason, publish it, and close its folder."""
        run_id, journal, sent = self._journal.owner.run_id, self._journal, False
        if not isinstance(self.refusal, TakenOverError):  # else it is another's to end
            tags = {writers.FAILURE: reason[: levels.TAG_LIMIT]} if reason else {}
            try:
                journal.append(Entry(tags=tags, status=status, time=int(time.time() * 1000)))
            except OSError:  # a full disk: the reason at least may find room with MLflow
                writers.end(run_id, status, reason)
            with suppress(ExperimentError):  # of what is refused, see below
                sent = self.publish(patience=_PATIENCE_SECONDS[status])
        if not sent and not isinstance(self.refusal, TakenOverError):
            why = self.outage
            if self.refusal is not None:
                why = first_line(self.refusal)
                writers.end(run_id, "FAILED", reason or why)
            print(
                f"pruneflow: MLflow has not all of run {run_id} ({why}): once that is mended, send "
                f"it with: pruneflow sync {journal.folder}",
                file=sys.stderr,
            )
        # what was made offline is copied from there, what did not finish can go on
        journal.close(remove=sent and status == "FINISHED" and not journal.owner.offline)

    def check(self) -> None:
        """See that the store takes what it is sent.

        Raises:
            ExperimentError: it has refused something (the run was deleted, the disk is full), or
                another process has taken the run over.
        """
        if isinstance(self.refusal, TakenOverError):
            raise ExperimentError(
                f"run {self._journal.owner.run_id} is not written to any more: {self.refusal}; "
                f"what this process recorded is in {self._journal.folder}"
            )
        if self.refusal is not None:
            raise ExperimentError(f"MLflow refused what was logged: {first_line(self.refusal)}")
