"""System metrics: in every run that asks for them, to its end, and never in its way."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pruneflow.config import Config, FinetuneConfig, PruneConfig
from pruneflow.errors import InputError
from pruneflow.report import evidence
from pruneflow.resolution import resolve
from pruneflow.tracking import fingerprints, publish, sync, system_metrics
from pruneflow.tracking.run import open_run

ON = resolve(FinetuneConfig, {"system_metrics": True, "device": "cpu"})
OFF = resolve(FinetuneConfig, {"device": "cpu"})
CPU = "system/cpu_utilization_percentage"


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEFLOW_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", raising=False)


def fill(config: Config, **given: Any) -> str:
    with open_run("finetune", config, name="x", tags={}, **given) as run:
        if "interrupted" in given:
            run.go_on()
    return run.id


def steps(run_id: str, name: str = CPU) -> list[int]:
    return [metric.step for metric in MlflowClient().get_metric_history(run_id, name)]


def interrupted(ends: type[BaseException], earlier: str | None = None) -> str:
    """Id of a run that something ends."""
    ids = []

    def run_on() -> None:
        with open_run("finetune", ON, name="x", tags={}, interrupted=earlier) as run:
            ids.append(run.id)
            assert collecting()
            if earlier is not None:
                run.go_on()
            raise ends

    with pytest.raises(ends):
        run_on()
    return ids[0]


def collecting() -> bool:
    return "system metrics" in [thread.name for thread in threading.enumerate()]


@pytest.mark.usefixtures("store")
def test_a_run_has_what_mlflow_collects_if_it_asks() -> None:
    run_id = fill(ON)
    names = {name for name in MlflowClient().get_run(run_id).data.metrics if "system/" in name}
    assert {CPU, "system/system_memory_usage_percentage", "system/disk_usage_percentage"} <= names
    assert steps(run_id) == [0]
    assert not any("system/" in n for n in MlflowClient().get_run(fill(OFF)).data.metrics)
    assert not collecting()


@pytest.mark.usefixtures("store")
def test_mlflows_own_variable_asks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    assert steps(fill(OFF)) == [0]
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "perhaps")
    with pytest.raises(InputError, match="perhaps"):
        fill(OFF)


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("ends", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_collecting_ends_with_the_run_whatever_ends_that(ends: type[BaseException]) -> None:
    run_id = interrupted(ends)
    assert not collecting()
    assert MlflowClient().get_run(run_id).info.status in ("FAILED", "KILLED")
    assert steps(run_id) == [0]


@pytest.mark.usefixtures("store")
def test_a_run_that_goes_on_has_later_steps_here_and_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = interrupted(KeyboardInterrupt)
    assert interrupted(KeyboardInterrupt, run_id) == run_id
    monkeypatch.setenv("PRUNEFLOW_STATE", str(tmp_path / "another machine"))
    assert fill(ON, interrupted=run_id) == run_id
    assert steps(run_id) == [0, 1, 2]


@pytest.mark.usefixtures("store")
def test_an_outage_loses_none_and_asks_nothing_of_the_store_beside_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publish, "_PATIENCE_SECONDS", dict.fromkeys(["FINISHED"], 0.0))
    callers: set[str] = set()
    with pytest.MonkeyPatch.context() as patch:

        def lost(*_: Any, **__: Any) -> None:
            callers.add(threading.current_thread().name)
            raise MlflowException("API request to http://x failed")

        for name in ("log_batch", "get_run"):
            patch.setattr(MlflowClient, name, lost)
        run_id = fill(ON)
    assert callers == {threading.current_thread().name}
    assert steps(run_id) == []
    sync.send([])
    assert steps(run_id) == [0]


@pytest.mark.usefixtures("store")
def test_what_cannot_be_collected_ends_no_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(run_id: str) -> None:
        raise RuntimeError("no /proc here")

    monkeypatch.setattr(system_metrics, "SystemMetricsMonitor", broken)
    run_id = fill(ON)
    assert MlflowClient().get_run(run_id).info.status == "FINISHED"
    line = "pruneflow: no system metrics are collected any more: no /proc here"
    assert line in capsys.readouterr().err


def test_what_is_watched_decides_no_result() -> None:
    plain, watched = (
        resolve(PruneConfig, {"device": "cpu", "threads": 1, **given})
        for given in ({}, {"system_metrics": True, "energy": True})
    )
    prints = [fingerprints.fingerprint("prune_direct", c, "d", "b") for c in (plain, watched)]
    assert prints[0] == prints[1]
    assert not {"system_metrics", "energy"} & {*evidence.DECIDING}
