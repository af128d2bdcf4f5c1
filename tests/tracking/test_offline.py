"""Runs made offline are, once copied, as if they had been made there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

import pruneflow
from pruneflow.errors import InputError
from pruneflow.tracking import store, sync

SMALL = {
    "model": "shufflenet_v2_x0_5",
    "image_size": 32,
    "train_limit": 100,
    "batch_size": 50,
    "base_epochs": 1,
    "iterations": 1,
    "threads": 1,
    "precision": "fp32",
}


@pytest.fixture
def away(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Offline, and the URI of the store that the runs are to be copied to."""
    import mlflow

    monkeypatch.setenv("PRUNEFLOW_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PRUNEFLOW_OFFLINE", "1")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "away")
    yield store
    mlflow.set_tracking_uri(None)


def back(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    import mlflow

    monkeypatch.delenv("PRUNEFLOW_OFFLINE")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(None)


def test_runs_made_offline_are_copied_once(
    away: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = pruneflow.prune_iterative(**SMALL)
    with pytest.raises(InputError, match="PRUNEFLOW_OFFLINE is set"):
        sync.send([])
    back(monkeypatch, away)
    client = MlflowClient()
    assert client.get_experiment_by_name("away") is None
    sync.send([])
    sync.send([])
    assert "there is nothing to send" in capsys.readouterr().out
    experiment = client.get_experiment_by_name("away").experiment_id
    runs = {r.data.tags["pruneflow.stage"]: r for r in client.search_runs([experiment])}
    assert runs.keys() == {"finetune", "prune_iterative"}
    pruned = runs["prune_iterative"]
    assert pruned.info.status == "FINISHED"
    assert pruned.data.tags["pruneflow.base_run"] == runs["finetune"].info.run_id
    history = client.get_metric_history(pruned.info.run_id, "accuracy/test_after")
    assert sorted(m.step for m in history) == [0, 1]
    assert len(pruned.inputs.dataset_inputs) == 3
    models = client.search_logged_models([experiment], f"source_run_id = '{pruned.info.run_id}'")
    assert sorted(model.tags["pruneflow.level"] for model in models) == ["0", "1"]
    images = np.zeros((2, 16, 16, 3), dtype=np.uint8)
    for model in models:  # of the copy, and not of the run that stayed here
        assert mlflow.pyfunc.load_model(f"models:/{model.model_id}").predict(images).shape == (
            2,
            10,
        )
    levels = pruneflow.query.levels(experiment="away")
    pd.testing.assert_series_equal(
        levels["test_after"], done.levels["test_after"], check_index=False
    )
    assert pruneflow.load_model(pruned.info.run_id, 1) is not None


def test_a_copy_that_was_broken_off_is_finished(away: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pruneflow.finetune(**{k: v for k, v in SMALL.items() if k not in ("base_epochs", "iterations")})
    back(monkeypatch, away)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifacts", lambda *_: 1 / 0)
        (broken,) = sync.send_all(sync.journals([]))
    assert (broken.entries, broken.reason) == (0, "division by zero")
    (sent,) = sync.send_all(sync.journals([]))
    assert (sent.entries > 0, sent.reason) == (True, "")
    client = MlflowClient()
    experiment = client.get_experiment_by_name("away").experiment_id
    (copy,) = (r.info.run_id for r in client.search_runs([experiment]))
    steps = [m.step for m in client.get_metric_history(copy, "train/loss")]
    assert sorted(steps) == sorted(set(steps))
    assert client.get_run(copy).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("value", "wanted"), [("", False), ("0", False), ("no", False), ("1", True)]
)
def test_offline_is_asked_for(monkeypatch: pytest.MonkeyPatch, value: str, wanted: bool) -> None:
    monkeypatch.setenv("PRUNEFLOW_OFFLINE", value)
    assert store.is_offline() == wanted
