"""Publish: outages delay what is sent, nothing is lost or there twice, and nobody waits."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import requests
import sqlalchemy
import urllib3
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    REQUEST_LIMIT_EXCEEDED,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
)
from mlflow.tracking import MlflowClient

from pruneflow.config import FinetuneConfig
from pruneflow.errors import ExperimentError
from pruneflow.resolution import resolve
from pruneflow.tracking import journal, publish, refusals, sync, writers
from pruneflow.tracking.run import Run, open_run

CONFIG = resolve(FinetuneConfig, {"model": "resnet18"})
LOST = MlflowException("API request to http://x failed")
BATCH = "log_batch"


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEFLOW_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(publish, "_PAUSE_SECONDS", 0.01)


def outage(monkeypatch: pytest.MonkeyPatch, calls: set[int], name: str, after: bool) -> list[int]:
    """Let some calls of a client's method fail: before they do anything, or after."""
    real = getattr(MlflowClient, name)
    seen: list[int] = []

    def failing(client: MlflowClient, *args: Any, **named: Any) -> Any:
        seen.append(len(seen))
        if seen[-1] in calls and not after:
            raise LOST
        result = real(client, *args, **named)
        if seen[-1] in calls:
            raise LOST
        return result

    monkeypatch.setattr(MlflowClient, name, failing)
    return seen


def fill(one: Run) -> None:
    for step in range(20):
        one.log_metrics({"m": step / 3}, step=step)
        if step % 5 == 0:
            one.log_text(f"texts/{step}.txt", str(step))
    one.set_tags({"done": "yes"})


def check(run_id: str) -> None:
    client = MlflowClient()
    found = client.get_run(run_id)
    assert found.info.status == "FINISHED"
    assert found.data.tags["done"] == "yes"
    assert found.data.params["cfg/model"] == "resnet18"
    history = client.get_metric_history(run_id, "m")
    assert sorted((m.step, m.value) for m in history) == [(n, n / 3) for n in range(20)]
    texts = {f.path for f in client.list_artifacts(run_id, "texts")}
    assert texts == {f"texts/{n}.txt" for n in (0, 5, 10, 15)}


@pytest.mark.parametrize("after", [False, True], ids=["request lost", "answer lost"])
@pytest.mark.parametrize("name", [BATCH, "log_artifact", "set_terminated"])
def test_every_point_is_there_once_after_outages(
    store: str, monkeypatch: pytest.MonkeyPatch, name: str, after: bool
) -> None:
    seen = outage(monkeypatch, {0, 1, 3, 4, 6}, name, after)
    with open_run("finetune", CONFIG, name="n", tags={}) as one:
        fill(one)
    assert len(seen) > 2
    check(one.id)
    assert not journal.folder_of(one.id).exists()


def test_a_run_whose_store_is_gone_ends_soon_and_is_sent_later(
    store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(publish._PATIENCE_SECONDS, "FINISHED", 0.3)
        outage(patch, set(range(10_000)), BATCH, after=False)
        start = time.monotonic()
        with open_run("finetune", CONFIG, name="n", tags={}) as one:
            fill(one)
        assert time.monotonic() - start < 20  # and not the 30 of an outage
    said = capsys.readouterr().err
    assert "MLflow does not answer" in said
    assert f"pruneflow sync {journal.folder_of(one.id)}" in said
    assert MlflowClient().get_run(one.id).info.status == "RUNNING"
    (sent,) = sync.send_all(sync.journals([]))
    assert (sent.owner.run_id, sent.reason) == (one.id, "")
    assert sent.entries > 20
    check(one.id)
    assert not journal.folder_of(one.id).exists()
    assert sync.journals([]) == []


def test_journals_of_another_machine_are_sent_from_where_they_lie(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(publish._PATIENCE_SECONDS, "FINISHED", 0.3)
        outage(patch, set(range(10_000)), BATCH, after=False)
        with open_run("finetune", CONFIG, name="n", tags={}) as one:
            fill(one)
    os.rename(tmp_path / "state", tmp_path / "brought")
    (sent,) = sync.send_all(sync.journals([tmp_path / "brought" / "journals"]))
    assert sent.reason == ""
    check(one.id)


def test_a_journal_of_another_store_is_kept(
    store: str, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(publish._PATIENCE_SECONDS, "FINISHED", 0.3)
        outage(patch, set(range(10_000)), BATCH, after=False)
        with open_run("finetune", CONFIG, name="n", tags={}) as one:
            fill(one)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{empty_store}")
    (sent,) = sync.send_all(sync.journals([]))
    assert sent.entries == 0
    assert f"belongs to {store}" in sent.reason
    assert journal.folder_of(one.id).exists()


def test_a_run_that_was_deleted_under_its_process_fails(store: str) -> None:
    def work() -> None:
        with open_run("finetune", CONFIG, name="n", tags={}) as one:
            MlflowClient().delete_run(one.id)
            one.log_metrics({"m": 1.0}, 0)
            pytest.fail("it goes on")

    with pytest.raises(ExperimentError, match="MLflow refused"):
        work()


def answer(status: int) -> requests.HTTPError:
    """What requests raises for a status."""
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status}", response=response)


def by_status(kind: str, status: int) -> Exception:
    """What other drivers raise for a status: of a name like theirs, and as they hold it."""
    error = type(kind, (Exception,), {})(f"{kind}: {status}")
    if kind == "ClientError":  # botocore
        error.response = {"ResponseMetadata": {"HTTPStatusCode": status}}
    elif kind == "HttpResponseError":  # azure
        error.status_code = status
    else:  # google
        error.code = status
    return error


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def database(text: str) -> BaseException:
    """What MLflow raises where its database fails."""
    said = sqlalchemy.exc.OperationalError("INSERT ...", {}, Exception(text))
    return caused(MlflowException(str(said), error_code=TEMPORARILY_UNAVAILABLE), said)


REFUSALS: list[BaseException] = [
    MlflowException("no", error_code=RESOURCE_DOES_NOT_EXIST),
    MlflowException("no", error_code=INVALID_PARAMETER_VALUE),
    MlflowException("no", error_code=PERMISSION_DENIED),
    MlflowException("API request to endpoint /api failed with error code 413 != 200"),
    *(answer(status) for status in (400, 401, 403, 404, 405, 413, 501, 507)),
    *(by_status(k, 403) for k in ("ClientError", "HttpResponseError", "Forbidden")),
    caused(Exception("upload failed"), by_status("ClientError", 403)),
    type("NoCredentialsError", (Exception,), {})("Unable to locate credentials"),
    ModuleNotFoundError("No module named 'boto3'"),
    ImportError("cannot import name 'x'"),
    caused(MlflowException("cannot upload"), ModuleNotFoundError("No module named 'azure'")),
    PermissionError(errno.EACCES, "Permission denied"),
    FileNotFoundError(errno.ENOENT, "No such file or directory"),
    NotADirectoryError(errno.ENOTDIR, "Not a directory"),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EROFS, "Read-only file system"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    database("attempt to write a readonly database"),
    database("database or disk is full"),
    database("no such table: runs"),
    TypeError("unexpected keyword"),
    MlflowException("Could not find a registered artifact repository for: foo://x/y"),
]
OUTAGES: list[BaseException] = [
    LOST,
    ConnectionError(),
    ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
    TimeoutError(),
    socket.gaierror(-3, "Temporary failure in name resolution"),
    OSError(errno.EHOSTUNREACH, "No route to host"),
    OSError(errno.ESTALE, "Stale file handle"),
    requests.ConnectionError(),
    requests.ReadTimeout(),
    requests.exceptions.ChunkedEncodingError(),
    urllib3.exceptions.ProtocolError("broken"),
    *(answer(status) for status in (408, 429, 500, 502, 503, 504)),
    *(by_status(k, 503) for k in ("ClientError", "HttpResponseError", "ServiceUnavailable")),
    MlflowException("API request to endpoint /api failed with error code 502 != 200"),
    MlflowException("busy", error_code=REQUEST_LIMIT_EXCEEDED),
    caused(MlflowException("API request to http://credentials failed"), requests.Timeout()),
    database("database is locked"),
    database("server closed the connection unexpectedly"),
    type("EndpointConnectionError", (Exception,), {})("Could not connect to the endpoint URL"),
]


@pytest.mark.parametrize("error", REFUSALS, ids=repr)
def test_what_trying_again_does_not_help_is_a_refusal(error: BaseException) -> None:
    assert refusals.is_refusal(error)


@pytest.mark.parametrize("error", OUTAGES, ids=repr)
def test_what_may_pass_is_an_outage(error: BaseException) -> None:
    assert not refusals.is_refusal(error)


@pytest.mark.parametrize(
    ("place", "said"),
    [("s3://bucket/x", "boto3"), ("file:///dev/null/x", "Not a directory")],
)
def test_artifacts_that_cannot_be_kept_end_a_run_as_it_begins(
    store: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
    said: str,
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    client = MlflowClient()
    experiment = client.create_experiment("elsewhere", artifact_location=place)
    begun = False
    with (
        pytest.raises(ExperimentError, match=said),
        open_run("finetune", CONFIG, name="n", tags={}, experiment_id=experiment),
    ):
        begun = True
    assert not begun
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FAILED"
    assert said in run.data.tags["pruneflow.failure"]
    assert "pruneflow sync" in capsys.readouterr().err
    assert journal.folder_of(run.info.run_id).exists()


def test_what_is_refused_at_the_end_fails_the_run(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    def work() -> None:
        with open_run("finetune", CONFIG, name="n", tags={}) as one:
            monkeypatch.setattr(MlflowClient, "log_artifact", refusing)
            one.log_text("last.txt", "x")

    with pytest.raises(ExperimentError, match="Permission denied"):
        work()
    (run,) = MlflowClient().search_runs(["0"])
    assert run.info.status == "FAILED"


def test_a_run_says_when_it_was_last_published(store: str) -> None:
    with open_run("finetune", CONFIG, name="n", tags={}) as one:
        tags = MlflowClient().get_run(one.id).data.tags
        assert str(os.getpid()) in tags[writers.HEARTBEAT]


def test_an_outage_holds_up_no_training(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a try that failed there is none for a while, in proportion to what it took."""
    now = [0.0]
    monkeypatch.setattr(publish.time, "monotonic", lambda: now[0])
    tries: list[float] = []

    def lost(*_: object) -> None:
        tries.append(now[0])
        now[0] += 30.0  # a server that does not refuse, and does not answer either
        raise LOST

    with open_run("finetune", CONFIG, name="n", tags={}) as one:
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "get_run", lost)
            for step in range(1000):
                one.log_metrics({"m": step / 3}, step)
                now[0] += 10.0
        assert 2 < len(tries) < 20
        now[0] += 1000.0
    history = MlflowClient().get_metric_history(one.id, "m")
    assert sorted((m.step, m.value) for m in history) == [(n, n / 3) for n in range(1000)]


def test_a_long_epoch_is_published_now_and_then(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(publish.time, "monotonic", lambda: now[0])
    with open_run("finetune", CONFIG, name="n", tags={}) as one:
        seen = outage(monkeypatch, set(), "set_tag", after=False)
        for _ in range(100):  # batches, a second each
            now[0] += 1.0
            one.publish(every=30.0)
        assert len(seen) == 3  # it is alive, others see


def test_numbers_are_sent_in_few_requests(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_run("finetune", CONFIG, name="n", tags={}) as one:
        with monkeypatch.context() as patch:
            patch.setattr(one, "publish", lambda **_: None)
            for step in range(30):
                one.log_metrics({"m": 1.0}, step)
        seen = outage(monkeypatch, set(), BATCH, after=False)
        one.publish()
        assert len(seen) == 1
    assert len(MlflowClient().get_metric_history(one.id, "m")) == 30
