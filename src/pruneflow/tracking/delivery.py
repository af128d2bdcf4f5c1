"""Delivery: a journal is sent to MLflow in the background, until MLflow has all of it.

Training never waits for a server. What could not be sent stays in the journal, for the next time
the run goes on or for `pruneflow sync`.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile

import requests
import urllib3
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pruneflow.errors import ExperimentError, InputError, first_line
from pruneflow.tracking import store
from pruneflow.tracking.journal import Entry, Journal
from pruneflow.tracking.writers import (
    HEARTBEAT,
    HEARTBEAT_SECONDS,
    TakenOverError,
    check_writer,
    heartbeat,
)

_LONGEST_PAUSE = 5.0  # between two tries
_PASSING_STATUS = {408, 409, 425, 429, 499}  # the only ones of 4xx where trying again may help
_LASTING_STATUS = {501, 507}  # and of 5xx where it does not
_STATUS_IN_TEXT = re.compile(r"failed with error code (\d{3})")
_PASSING_ERRNO = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EINTR,
    errno.ENETDOWN,
    errno.ENETRESET,
    errno.ENETUNREACH,
    errno.ESTALE,
}
_LASTING_TEXT = re.compile(  # of databases and drivers that say it in words alone
    "readonly database|read-only|disk is full|disk full|no such table|malformed|"
    "(permission|access) ?denied|not authorized|credential|"
    "authentication failed|could not find a registered artifact repository",
    re.IGNORECASE,
)
_MOST = {"metrics": 1000, "params": 100, "tags": 100}  # of one request


def fail_soon() -> None:
    """Have MLflow's own requests give up after seconds: it is tried again here, without end.

    Nor does it print where each run is. What the user has set stays.
    """
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")


def is_refusal(error: BaseException) -> bool:
    """Whether a store has said no, so that trying again does not help, rather than nothing.

    What a driver, a permission, a disk or a name lacks is a refusal; a network, a server or a lock
    that may be there again is an outage, and so is what cannot be told. An error that says nothing
    of this by itself is judged by its cause.
    """
    cause: BaseException | None = error
    while cause is not None:
        verdict = _verdict(cause)
        if verdict is not None:
            return verdict
        cause = cause.__cause__ or cause.__context__
    return False


def _verdict(error: BaseException) -> bool | None:
    """Whether one error is a refusal; None if it does not say."""
    status = _status(error)
    if status is not None and status < 500:
        return status >= 400 and status not in _PASSING_STATUS
    if status in _LASTING_STATUS:
        return True
    network = (requests.RequestException, urllib3.exceptions.HTTPError, ssl.SSLError)
    if isinstance(error, (*network, ConnectionError, TimeoutError, socket.gaierror)):
        return False
    if isinstance(error, MlflowException) and (error.__cause__ or error.__context__):
        return None  # its text is that of its cause, with addresses in it
    if _LASTING_TEXT.search(str(error)) or isinstance(error, TakenOverError | InputError):
        return True
    if isinstance(error, OSError):
        return error.errno not in _PASSING_ERRNO
    wrong = (ImportError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError)
    if isinstance(error, wrong) and type(error).__module__ == "builtins":
        return True
    return None


def _status(error: BaseException) -> int | None:
    """The HTTP status of an error of MLflow, requests or a cloud's driver."""
    if isinstance(error, MlflowException):
        if error.error_code == "INVALID_STATE":  # 500 for MLflow
            return 400
        found = _STATUS_IN_TEXT.search(str(error))
        return int(found[1]) if found else int(error.get_http_status_code())
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore's
        return _number(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    for holder, name in ((response, "status_code"), (error, "status_code"), (error, "code")):
        number = _number(getattr(holder, name, None))
        if number is not None:
            return number
    return None


def _number(value: object) -> int | None:
    return int(value) if isinstance(value, int) and 100 <= value < 600 else None


@contextmanager
def in_a_line() -> Iterator[None]:
    """What a store raises outside of any run ends an experiment in one line."""
    try:
        yield
    except (MlflowException, requests.RequestException) as error:
        what = "refuses" if is_refusal(error) else store.NO_ANSWER
        raise ExperimentError(f"MLflow {what} ({in_short(error)})") from error


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


def in_short(error: BaseException) -> str:
    """What MLflow says of a request that failed, without what the network said to it."""
    return first_line(error).partition(" with exception")[0][:200]
