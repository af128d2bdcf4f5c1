"""Publish: what a run's folder holds and MLflow does not have yet is sent to it.

Sent twice, it is there once, since every record has its time. The run itself publishes at the ends
of epochs and levels, `pruneflow sync` and a sweep do it for a run whose process has ended.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from pruneflow.errors import ExperimentError, first_line
from pruneflow.tracking import levels, logged_models, reader, tables, writers
from pruneflow.tracking.journal import Entry, Journal
from pruneflow.tracking.refusals import TakenOverError, in_short, is_refusal

LEVELS = "levels.csv"
# Tags that name another run.
RUN_TAGS = ("pruneflow.base_run", "pruneflow.pruning_run", "pruneflow.sensitivity_run")
# At a run's end, how long it is tried in an outage.
_PATIENCE_SECONDS = {"FINISHED": 30.0, "FAILED": 10.0, "KILLED": 4.0}
_PAUSE_SECONDS = 5.0  # after an outage, at the least
_BEAT_SECONDS = 20.0  # between two notes of when a run was published
_SHARE = 0.05  # of a run's time that tries in an outage may take


def publish(client: MlflowClient, journal: Journal, renamed: Callable[[str], str] = str) -> None:
    """Send what MLflow does not have yet.

    `renamed` gives the id that a run has in the store, by the one that it was made with.

    Raises:
        TakenOverError: another process has taken the run over; nothing is sent.
        Exception: what a store, a driver or a network has to say.
    """
    run_id = renamed(journal.owner.run_id)
    writer = client.get_run(run_id).data.tags.get(writers.WRITER, "")
    if writer not in ("", journal.owner.writer):
        raise TakenOverError(f"it was taken over by a process on {writer.partition(' ')[0]}")
    while pending := journal.pending():
        ends = [
            i for i, e in enumerate(pending, 1) if e.artifact or e.status or e.model is not None
        ]
        count = ends[0] if ends else len(pending)
        path = pending[count - 1].artifact
        if any(entry.artifact == path for entry in pending[count:]):
            path = None  # it is sent when it comes again
        tags = {k: v for entry in pending[:count] for k, v in entry.tags.items()}
        tags |= {k: renamed(v) for k, v in tags.items() if k in RUN_TAGS and v is not None}
        if path == LEVELS:
            rows = tables.from_csv(journal.artifact(path).read_text("utf-8"), levels.Level)
            tags |= {"pruneflow.curves": levels.curves(rows)} if rows else {}
        level = pending[count - 1].model
        if level is not None:  # first: a level whose metrics are there has its model
            metrics = [Metric(*metric) for metric in pending[count - 1].metrics]
            structure = _structure(journal, run_id, level)
            logged_models.log(client, client.get_run(run_id), level, structure, metrics)
        _send(client, run_id, pending[:count], tags)
        if path is not None and (place := journal.artifact(path)).is_dir():
            client.log_artifacts(run_id, str(place), path)
        elif path is not None and place.exists():
            client.log_artifact(run_id, str(place), path.rpartition("/")[0] or None)
        status, ended = pending[count - 1].status, pending[count - 1].time
        if status is not None and ended is not None:
            client.set_terminated(run_id, status, ended)
        elif status is not None:
            client.update_run(run_id, status)
        journal.acknowledge(count)


def _structure(journal: Journal, run_id: str, level: int) -> Mapping[str, Any]:
    """What a level's checkpoint says of its model, here or, where it is not any more, in MLflow."""
    path = f"{reader.checkpoint_path(level)}/structure.json"
    here = journal.artifact(path)
    text = here.read_text("utf-8") if here.exists() else reader.text_of(run_id, path)
    return dict(json.loads(text))


def _send(
    client: MlflowClient, run_id: str, entries: list[Entry], tags: dict[str, str | None]
) -> None:
    client.log_batch(
        run_id,
        # those of a logged model were sent with it
        metrics=[Metric(*m) for entry in entries if entry.model is None for m in entry.metrics],
        params=[Param(k, v) for entry in entries for k, v in entry.params.items()],
        tags=[RunTag(k, v) for k, v in tags.items() if v is not None],
    )
    if gone := {name for name, value in tags.items() if value is None}:
        for name in gone & client.get_run(run_id).data.tags.keys():
            client.delete_tag(run_id, name)
    data = []
    for inputs in (dict(entry.inputs) for entry in entries if entry.inputs is not None):
        context = InputTag("mlflow.data.context", inputs.pop("context", "training"))
        data.append(DatasetInput(Dataset(**inputs), [context]))
    if data:
        client.log_inputs(run_id, data)


def publish_folder(folder: Path, renamed: Callable[[str], str] | None = None) -> int:
    """Publish the folder of a run whose process has ended, and end the run if that was killed.

    A folder whose run has finished is removed; others stay, since their runs can go on. `renamed`
    is as in `publish`, for a store other than the run's own. Returns how many records were sent.
    Raises what `publish` does, and InputError: the folder is open in another process.
    """
    journal = Journal(folder, sent="sent" if renamed is None else "copied")
    renamed = renamed or str
    try:
        count = len(journal.pending())
        publish(MlflowClient(), journal, renamed)
        if journal.status == "RUNNING":
            run_id = renamed(journal.owner.run_id)
            writers.end(run_id, "KILLED", "its process ended without a word")
        return count
    finally:
        journal.close(remove=journal.status == "FINISHED" and not journal.pending())


class Publisher:
    """Publishes a run that is going on. An outage neither ends it nor holds it up."""

    def __init__(self, journal: Journal) -> None:
        self.outage = ""  # why nothing can be sent at the moment, if so
        self.refusal = ""  # why nothing is sent any more, if so
        self.taken_over = False  # by another process, which is the reason then
        self._client = MlflowClient()
        self._journal = journal
        self._last = self._beaten = self._not_before = -float("inf")

    def publish(self, *, every: float = 0.0) -> bool:
        """Send what MLflow does not have yet, if that is due; whether MLflow has all of it.

        It is due `every` so many seconds, in an outage after a pause that grows with what the last
        try took. Raises as `check` does.
        """
        self.check()
        start = time.monotonic()
        if start < max(self._not_before, self._last + every):
            return False
        try:
            publish(self._client, self._journal)
            if self._journal.status == "RUNNING" and start - self._beaten >= _BEAT_SECONDS:
                run_id = self._journal.owner.run_id
                self._client.set_tag(run_id, writers.HEARTBEAT, writers.heartbeat())
                self._beaten = start
        except Exception as error:  # whatever a store, a driver or a network has to say
            if is_refusal(error):
                self.refusal, self.taken_over = first_line(error), isinstance(error, TakenOverError)
                self.check()
            reason, now = in_short(error), time.monotonic()
            if not self.outage:
                _say(
                    f"MLflow does not answer ({reason}): the run goes on and keeps its records in "
                    f"{self._journal.folder}"
                )
            self.outage = reason
            self._not_before = now + max(_PAUSE_SECONDS, (now - start) / _SHARE)
            return False
        if self.outage:
            _say("MLflow answers again")
        self.outage, self._last = "", time.monotonic()
        return True

    def check(self) -> None:
        """See that the store takes what it is sent.

        Raises:
            ExperimentError: it has refused something (the run was deleted, the disk is full), or
                another process has taken the run over.
        """
        if self.taken_over:
            raise ExperimentError(f"the run is not written to any more: {self.refusal}")
        if self.refusal:
            raise ExperimentError(
                f"MLflow refused what was logged: {self.refusal}; it is in {self._journal.folder}"
            )

    def end(self, status: str, reason: str = "") -> None:
        """End the run with a status and what was the reason, publish it, and close its folder."""
        run_id, journal, sent = self._journal.owner.run_id, self._journal, False
        if not self.taken_over:  # else it is another's to end
            tags = {writers.FAILURE: reason[: levels.TAG_LIMIT]} if reason else {}
            with suppress(OSError):  # a full disk: what was appended is sent all the same
                journal.append(Entry(tags=tags, status=status, time=int(time.time() * 1000)))
            with suppress(ExperimentError):  # of what is refused, see below
                sent = self._publish_patiently(_PATIENCE_SECONDS[status])
        if not sent and not self.taken_over:
            if self.refusal:
                writers.end(run_id, "FAILED", reason or self.refusal)
            _say(
                f"MLflow has not all of run {run_id} ({self.refusal or self.outage}): once that is "
                f"mended, send it with: pruneflow sync {journal.folder}"
            )
        # what was made offline is copied from there, what did not finish can go on
        journal.close(remove=sent and status == "FINISHED" and not journal.owner.offline)

    def _publish_patiently(self, patience: float) -> bool:
        """Publish, in an outage again and again until nothing was sent for so many seconds."""
        sent, since = self._journal.sent, time.monotonic()
        while True:
            self._not_before = -float("inf")
            if self.publish():
                return True
            if self._journal.sent > sent:
                sent, since = self._journal.sent, time.monotonic()
            if time.monotonic() - since >= patience:
                return False
            time.sleep(min(_PAUSE_SECONDS, 1.0, patience))


def _say(text: str) -> None:
    print(f"pruneflow: {text}", file=sys.stderr)
