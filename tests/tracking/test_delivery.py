"""Delivery: outages delay what is sent, nothing is lost or there twice, and nobody waits."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.tracking import MlflowClient

from pruneflow.config import FinetuneConfig, resolve
from pruneflow.errors import ExperimentError
from pruneflow.tracking import delivery, journal, run, sync
from pruneflow.tracking.run import Run, open_run

CONFIG = resolve(FinetuneConfig, {"model": "resnet18"})
LOST = MlflowException("API request to http://x failed")
BATCH = "log_batch"


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEFLOW_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(delivery, "_LONGEST_PAUSE", 0.05)


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
        patch.setitem(run._PATIENCE_SECONDS, "FINISHED", 0.3)
        outage(patch, set(range(10_000)), BATCH, after=False)
        start = time.monotonic()
        with open_run("finetune", CONFIG, name="n", tags={}) as one:
            fill(one)
        assert time.monotonic() - start < 5
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
        patch.setitem(run._PATIENCE_SECONDS, "FINISHED", 0.3)
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
        patch.setitem(run._PATIENCE_SECONDS, "FINISHED", 0.3)
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
            for step in range(200):
                one.log_metrics({"m": 1.0}, step)
                time.sleep(0.02)

    with pytest.raises(ExperimentError, match="MLflow refused"):
        work()


def test_refusals_are_told_from_outages() -> None:
    assert delivery.is_refusal(MlflowException("no", error_code=RESOURCE_DOES_NOT_EXIST))
    assert delivery.is_refusal(OSError(28, "No space left on device"))
    assert not delivery.is_refusal(LOST)
    assert not delivery.is_refusal(ConnectionError())


def test_a_heart_beats(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "HEARTBEAT_SECONDS", 0.05)
    with open_run("finetune", CONFIG, name="n", tags={}) as one:
        seen = set()
        deadline = time.monotonic() + 20
        while len(seen) < 2 and time.monotonic() < deadline:
            seen.add(MlflowClient().get_run(one.id).data.tags.get(delivery.HEARTBEAT))
            time.sleep(0.1)
        assert any(beat and str(os.getpid()) in beat for beat in seen)


def test_numbers_are_sent_in_few_requests(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = journal.Journal.make(
        journal.Owner(MlflowClient().create_run("0").info.run_id, "0", "", "", "", "")
    )
    for step in range(1500):
        own.append(journal.Entry(metrics=(("m", 1.0, 1, step),)))
    seen = outage(monkeypatch, set(), BATCH, after=False)
    while delivery.send(MlflowClient(), own.owner.run_id, own):
        pass
    assert len(seen) == 2
    assert len(MlflowClient().get_metric_history(own.owner.run_id, "m")) == 1500
    own.close(remove=True)
