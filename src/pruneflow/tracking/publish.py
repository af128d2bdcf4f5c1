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
from dataclasses import replace
from pathlib import Path

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from pruneflow.errors import ExperimentError, first_line
from pruneflow.tracking import levels, tables, writers
from pruneflow.tracking.journal import Entry, Journal, is_offline
from pruneflow.tracking.refusals import TakenOverError, in_short, is_refusal

LEVELS = "levels.csv"
RUN_TAGS = ("pruneflow.base_run", "pruneflow.pruning_run")  # tags that name another run
_PATIENCE_SECONDS = {
    "FINISHED": 30.0,
    "FAILED": 10.0,
    "KILLED": 4.0,
}  # at a run's end, in an outage
_PAUSE_SECONDS = 5.0  # after an outage, at the least
_BEAT_SECONDS = 20.0  # between two notes of when a run was published
_SHARE = 0.05  # of a run's time that tries in an outage may take
_MOST_METRICS, _MOST_OTHERS = 1000, 100  # of one request


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
    """Send what MLflow does not have yet.

    Args:
        client: of the store.
        journal: what was recorded.
        run_id: of the run there, if it has another id than where it was made.
        renamed: id that another run has there, by the one it was made with.

    Raises:
        TakenOverError: another process has taken the run over; nothing is sent.
        Exception: what a store, a driver or a network has to say.
    """
    run_id = run_id or journal.owner.run_id
    writers.check_writer(client, run_id, journal)
    while pending := journal.pending():
        ends = [i for i, entry in enumerate(pending, 1) if entry.artifact or entry.status]
        count = ends[0] if ends else len(pending)
        again = {entry.artifact for entry in pending[count:]}
        entries = [_with_ids(entry, renamed) for entry in pending[:count]]
        _send(client, run_id, journal, entries, again)
        journal.acknowledge(count)


def _with_ids(entry: Entry, renamed: Callable[[str], str]) -> Entry:
    """An entry whose tags name other runs by the ids they have in the store."""
    named = {k: renamed(v) for k, v in entry.tags.items() if k in RUN_TAGS and v is not None}
    return replace(entry, tags={**entry.tags, **named})


def _send(
    client: MlflowClient,
    run_id: str,
    journal: Journal,
    entries: Sequence[Entry],
    again: Collection[str | None],
) -> None:
    """Send entries, of which the last may have an artifact or status; not one that comes again."""
    metrics = [Metric(*metric) for entry in entries for metric in entry.metrics]
    params = [Param(k, v) for entry in entries for k, v in entry.params.items()]
    tags = {k: v for entry in entries for k, v in entry.tags.items()}
    last = entries[-1]
    artifact = None if last.artifact in again else last.artifact
    if artifact == LEVELS:
        rows = tables.from_csv(journal.artifact(LEVELS).read_text("utf-8"), levels.Level)
        tags |= {"pruneflow.curves": levels.curves(rows)} if rows else {}
    marks = [RunTag(k, v) for k, v in tags.items() if v is not None]
    for start in range(0, len(metrics), _MOST_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + _MOST_METRICS])
    for start in range(0, max(len(params), len(marks)), _MOST_OTHERS):
        part = slice(start, start + _MOST_OTHERS)
        client.log_batch(run_id, params=params[part], tags=marks[part])
    if gone := [name for name, value in tags.items() if value is None]:
        there = client.get_run(run_id).data.tags
        for name in gone:
            if name in there:
                client.delete_tag(run_id, name)
    for entry in entries:
        if entry.inputs is not None:
            context = InputTag("mlflow.data.context", "training")
            client.log_inputs(run_id, [DatasetInput(Dataset(**entry.inputs), [context])])
    if artifact is not None:
        _send_artifact(client, run_id, journal.artifact(artifact), artifact)
    if last.status is not None and last.time is not None:
        client.set_terminated(run_id, last.status, last.time)
    elif last.status is not None:
        client.update_run(run_id, last.status)


def _send_artifact(client: MlflowClient, run_id: str, place: Path, path: str) -> None:
    if place.is_dir():
        client.log_artifacts(run_id, str(place), path)
    elif place.exists():
        client.log_artifact(run_id, str(place), path.rpartition("/")[0] or None)


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
            client.set_tag(run_id, "pruneflow.failure", "its process ended without a word")
            client.set_terminated(run_id, "KILLED")
        return count
    finally:
        journal.close(remove=journal.status == "FINISHED" and not journal.pending())


class Publisher:
    """Publishes a run that is going on. An outage neither ends it nor holds it up.

    Attributes:
        outage: why nothing can be sent at the moment, if so.
        refusal: why nothing is sent any more, if so.
    """

    def __init__(self, client: MlflowClient, journal: Journal) -> None:
        self.outage: str | None = None
        self.refusal: BaseException | None = None
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
                now = time.monotonic()
                self._is_out(error, now - begun)
                start = now if self._journal.sent > sent else start
                if now - start >= patience:
                    return False
                time.sleep(min(_PAUSE_SECONDS, 1.0, patience))
            else:
                if self.outage is not None:
                    print("pruneflow: MLflow answers again", file=sys.stderr)
                self.outage, self._last = None, time.monotonic()
                return True

    def end(self, status: str, reason: str | None = None) -> None:
        """End the run with a status and what was the reason, publish it, and close its folder."""
        run_id, journal = self._journal.owner.run_id, self._journal
        if isinstance(self.refusal, TakenOverError):  # it is another's to end
            journal.close(remove=False)
            return
        tags = {} if reason is None else {writers.FAILURE: reason[: levels.TAG_LIMIT]}
        try:
            journal.append(Entry(tags=tags, status=status, time=int(time.time() * 1000)))
        except OSError:  # a full disk: the reason at least may find room with MLflow
            writers.end(self._client, run_id, status, reason or "")
        sent = False
        with suppress(ExperimentError):  # of what is refused, see below
            sent = self.publish(patience=_PATIENCE_SECONDS[status])
        taken_over = isinstance(self.refusal, TakenOverError)
        if self.refusal is not None and not taken_over:
            writers.end(self._client, run_id, "FAILED", reason or first_line(self.refusal))
        if not sent and not taken_over:
            why, then = self.outage, "send it later with"
            if self.refusal is not None:
                why, then = first_line(self.refusal), "once that is mended, send it with"
            print(
                f"pruneflow: MLflow has not all of run {run_id} ({why}): {then}: "
                f"pruneflow sync {journal.folder}",
                file=sys.stderr,
            )
        # what was made offline is copied from there, what did not finish can go on
        journal.close(remove=sent and status == "FINISHED" and not is_offline(journal.folder))

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

    def _beat(self) -> None:
        """Say of a run that is going on when it was last published."""
        now = time.monotonic()
        if self._journal.status == "RUNNING" and now - self._beaten >= _BEAT_SECONDS:
            run_id = self._journal.owner.run_id
            self._client.set_tag(run_id, writers.HEARTBEAT, writers.heartbeat())
            self._beaten = now

    def _is_out(self, error: Exception, seconds: float) -> None:
        """Remember an outage, which a try of so many seconds has found; tell of a new one."""
        if self.outage is None:
            print(
                f"pruneflow: MLflow does not answer ({in_short(error)}): the run goes on and "
                f"keeps its records in {self._journal.folder}",
                file=sys.stderr,
            )
        self.outage = in_short(error)
        self._not_before = time.monotonic() + max(_PAUSE_SECONDS, seconds / _SHARE)
