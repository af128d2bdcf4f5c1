"""Delivery: a journal is sent to MLflow in the background, until MLflow has all of it.

Training never waits for a server. What could not be sent stays in the journal, for the next time
the run goes on or for `pruneflow sync`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from itertools import takewhile

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from pruneflow.errors import ExperimentError, first_line
from pruneflow.tracking.journal import Entry, Journal
from pruneflow.tracking.refusals import TakenOverError, in_short, is_refusal
from pruneflow.tracking.writers import (
    HEARTBEAT,
    HEARTBEAT_SECONDS,
    check_writer,
    heartbeat,
)

_LONGEST_PAUSE = 5.0  # between two tries
_MOST = {"metrics": 1000, "params": 100, "tags": 100}  # of one request


def fail_soon() -> None:
    """Have MLflow's own requests give up after seconds: it is tried again here, without end.

    Nor does it print where each run is. What the user has set stays.
    """
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")


def send(client: MlflowClient, run_id: str, journal: Journal) -> bool:
    """Send the next few entries of a journal; False if there were none.

    Raises:
        MlflowException, OSError, requests.RequestException: as MLflow does.
    """
    pending = journal.pending()
    if not pending:
        return False
    batch = _batch(pending)
    _send_numbers(client, run_id, batch or pending[:1])
    if not batch:
        _send_rest(client, run_id, journal, pending[0])
    journal.acknowledge(len(batch) or 1)
    return True


def _send_numbers(client: MlflowClient, run_id: str, entries: Sequence[Entry]) -> None:
    """Send the metrics, params and tags of entries."""
    metrics = [Metric(*metric) for entry in entries for metric in entry.metrics]
    params = [Param(k, v) for entry in entries for k, v in entry.params.items()]
    tags = [RunTag(k, v) for entry in entries for k, v in entry.tags.items()]
    if metrics or params or tags:
        client.log_batch(run_id, metrics=metrics, params=params, tags=tags)


def _batch(entries: Sequence[Entry]) -> list[Entry]:
    """The first entries, as many as are numbers and texts alone and fit into one request."""
    plain = takewhile(lambda e: not (e.untag or e.inputs or e.artifact or e.status), entries)
    batch: list[Entry] = []
    room = dict(_MOST)
    for entry in plain:
        for name in room:
            room[name] -= len(getattr(entry, name))
        if batch and min(room.values()) < 0:
            break
        batch.append(entry)
    return batch


def _send_rest(client: MlflowClient, run_id: str, journal: Journal, entry: Entry) -> None:
    """Send all else of an entry."""
    if entry.inputs is not None:
        context = InputTag("mlflow.data.context", "training")
        client.log_inputs(run_id, [DatasetInput(Dataset(**entry.inputs), [context])])
    if entry.artifact is not None:
        path, folder = journal.artifact(entry.artifact), entry.artifact.rpartition("/")[0] or None
        if path.is_dir():
            client.log_artifacts(run_id, str(path), entry.artifact)
        elif path.exists():
            client.log_artifact(run_id, str(path), folder)
    for name in entry.untag:
        if name in client.get_run(run_id).data.tags:
            client.delete_tag(run_id, name)
    if entry.status is not None and entry.time is not None:
        client.set_terminated(run_id, entry.status, entry.time)
    elif entry.status is not None:
        client.update_run(run_id, entry.status)


class Delivery:
    """Sends a run's journal while the run goes on, and its heartbeat with it."""

    def __init__(self, client: MlflowClient, run_id: str, journal: Journal) -> None:
        self._client = client
        self._run_id = run_id
        self._journal = journal
        self._stopping = threading.Event()
        self._outage: str | None = None
        self._refusal: BaseException | None = None
        self._progress = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="delivery", daemon=True)
        self._thread.start()

    @property
    def outage(self) -> str | None:
        """Why nothing can be sent at the moment, if so."""
        return self._outage

    @property
    def refusal(self) -> BaseException | None:
        """Why nothing is sent any more, if so."""
        return self._refusal

    def check(self) -> None:
        """See that the store takes what it is sent.

        Raises:
            ExperimentError: it has refused something (the run was deleted, the disk is full), or
                another process has taken the run over.
        """
        if isinstance(self._refusal, TakenOverError):
            raise ExperimentError(
                f"run {self._run_id} is not written to any more: {self._refusal}; what this "
                f"process recorded is in {self._journal.folder}"
            )
        if self._refusal is not None:
            raise ExperimentError(f"MLflow refused what was logged: {first_line(self._refusal)}")

    def begin(self, patience: float) -> None:
        """Wait until the store has taken the first records, has refused them or is silent.

        Raises:
            ExperimentError: it has refused them.
        """
        self._journal.wait(
            patience,
            lambda: not self._owed() or self._outage is not None or self._refusal is not None,
        )
        self.check()

    def wait(self, patience: float) -> bool:
        """Wait until all is sent; whether it is. Gives up `patience` seconds after the last one."""
        start = time.monotonic()
        while self._thread.is_alive():
            left = max(start, self._progress) + patience - time.monotonic()
            if left <= 0 or self._journal.wait(min(left, 0.5), lambda: not self._owed()):
                break
        return not self._owed()

    def _owed(self) -> bool:
        return bool(self._journal.pending())

    def stop(self) -> None:
        """Send no more; a request under way is left to itself."""
        self._stopping.set()
        self._journal.stir()
        self._thread.join(0.5)

    def _work(self) -> None:
        pause, beat = 0.0, 0.0
        while not self._stopping.is_set():
            # by the clock that goes on while the machine sleeps: others think the run dead then
            due = beat + HEARTBEAT_SECONDS - time.time()
            if pause:
                self._journal.wait(pause, self._stopping.is_set)
            else:
                due = min(max(0.0, due), HEARTBEAT_SECONDS)
                self._journal.wait(due, lambda: self._stopping.is_set() or self._owed())
            if self._stopping.is_set():
                return
            try:
                if abs(time.time() - beat) >= HEARTBEAT_SECONDS:
                    check_writer(self._client, self._run_id, self._journal)
                    self._client.set_tag(self._run_id, HEARTBEAT, heartbeat())
                    beat = time.time()
                if send(self._client, self._run_id, self._journal):
                    self._progress = time.monotonic()
                if self._outage is not None:
                    print("pruneflow: MLflow answers again", file=sys.stderr)
                self._outage, pause = None, 0.0
            except Exception as error:  # whatever a store, a driver or a network has to say
                if self._stopping.is_set():
                    return
                if is_refusal(error):
                    self._refusal = error
                    self._journal.stir()
                    return
                beat = 0.0  # the run may be another's before the store answers again
                if self._outage is None:
                    print(
                        f"pruneflow: MLflow does not answer ({in_short(error)}): the run "
                        f"goes on and keeps its records in {self._journal.folder}",
                        file=sys.stderr,
                    )
                self._outage = in_short(error)
                self._journal.stir()
                pause = min(_LONGEST_PAUSE, 2 * pause or 0.5)
