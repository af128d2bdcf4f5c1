"""Logged models: each level is one of MLflow's models, there once, and predicts as it was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND, ErrorCode
from mlflow.tracking import MlflowClient
from own_models import WORDS

import pruneflow
from pruneflow.stages import experiment
from pruneflow.tracking import publish
from pruneflow.tracking.predictor import Predictor
from pruneflow.workloads import batches

SMALL = {"base_epochs": 1, "train_limit": 60, "finetune_epochs": 0, "threads": 1, "device": "cpu"}
NET = """
from torch import nn

def Net(classes):
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Conv2d(6, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, classes)
    )
"""
KINDS: dict[str, dict[str, Any]] = {
    "masked": {"model": "net.py:Net", "dataset": "digits"},
    "compact": {
        "model": "net.py:Net",
        "dataset": "digits",
        "granularity": "channel",
        "form": "compact",
    },
    "encoder": {"model": "bert"},
    "texts of one's own model": {"model": "net.py:Words", "dataset": "reviews"},
}
TEXTS = ["a moving story", "dull", "it was fine, and long " * 40]


def models_of(run_id: str) -> dict[int, LoggedModel]:
    client = MlflowClient()
    experiment_id = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
    assert len({model.name for model in found}) == len(found)
    return {int(model.tags["pruneflow.level"]): model for model in found}


def samples(given: dict[str, Any], side: int = 11) -> Any:
    if given["model"] in ("bert", "net.py:Words"):
        return TEXTS
    return np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_every_level_predicts_as_its_model_does(store: str, tmp_path: Path, kind: str) -> None:
    (tmp_path / "net.py").write_text(NET + WORDS, "utf-8")
    given = KINDS[kind]
    done = pruneflow.prune_direct(**SMALL, **given)
    models = models_of(done.run_id)
    assert models.keys() == {0, 1}
    for level, model in models.items():
        assert model.status == "READY"
        assert model.params["cfg/model"] == given["model"]
        metrics = {metric.key: metric for metric in model.metrics}
        row = done.levels[done.levels["level"] == level].iloc[0]
        for key, column in {
            "accuracy/test_after": "test_after",
            "cost/macs_left": "macs_left",
            "cost/size_bytes": "size_bytes",
        }.items():
            assert metrics[key].value == row[column]
        assert metrics["accuracy/test_after"].dataset_name.endswith(" (testing)")
        loaded = mlflow.pyfunc.load_model(f"models:/{model.model_id}")
        read = samples(given)
        logits = loaded.predict(read)
        predictor = Predictor(done.run_id, level)
        with torch.inference_mode():
            net = pruneflow.load_model(done.run_id, level)
            size = predictor._structure["input"].get("image_size")
            inputs, _ = batches.to_model(
                predictor._read(read), np.arange(3), size, predictor._machine
            )
            expected = experiment.models.logits(net, inputs).numpy()
        assert np.array_equal(logits, expected)
        labels = loaded.predict(read, params={"output": "labels"})
        assert [predictor.classes[n] for n in expected.argmax(1)] == list(labels)
        example = loaded.predict(loaded.input_example)
        assert example.shape == (2, len(predictor.classes))
        with pytest.raises(Exception, match="unknown output 'nothing': valid: "):
            loaded.predict(read, params={"output": "nothing"})
    if given["model"] in ("bert", "net.py:Words"):
        assert predictor.classes == ["negative", "positive"]


@pytest.mark.parametrize("after", [False, True], ids=["request lost", "answer lost"])
@pytest.mark.parametrize(
    "name",
    [
        "search_logged_models",
        "create_logged_model",
        "log_model_artifacts",
        "finalize_logged_model",
        "log_outputs",
        "log_batch",
    ],
)
def test_a_model_is_there_once_after_outages(
    store: str, monkeypatch: pytest.MonkeyPatch, name: str, after: bool, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(NET, "utf-8")
    monkeypatch.setattr(publish, "_PAUSE_SECONDS", 0.01)
    real, seen = getattr(MlflowClient, name), []

    def failing(client: MlflowClient, *args: Any, **named: Any) -> Any:
        seen.append(1)
        lost = len(seen) in (1, 2, 4, 5, 7)
        if lost and not after:
            raise MlflowException("API request to http://x failed")
        result = real(client, *args, **named)
        if lost:
            raise MlflowException("API request to http://x failed")
        return result

    monkeypatch.setattr(MlflowClient, name, failing)
    done = pruneflow.prune_direct(model="net.py:Net", dataset="digits", **SMALL)
    monkeypatch.setattr(MlflowClient, name, real)
    assert seen
    models = models_of(done.run_id)
    assert models.keys() == {0, 1}
    assert {model.status for model in models.values()} == {"READY"}
    outputs = MlflowClient().get_run(done.run_id).outputs.model_outputs
    assert {output.model_id for output in outputs} == {m.model_id for m in models.values()}
    for model in models.values():
        keys = [metric.key for metric in model.metrics]
        assert len(keys) == len(set(keys))
        assert mlflow.pyfunc.load_model(f"models:/{model.model_id}") is not None


def test_a_registered_level_is_found_by_its_alias(store: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET, "utf-8")
    done = pruneflow.prune_direct(model="net.py:Net", dataset="digits", **SMALL)
    model = models_of(done.run_id)[1]
    assert MlflowClient().get_experiment("0").tags["mlflow.experimentKind"].startswith("custom_mod")
    version = mlflow.register_model(f"models:/{model.model_id}", "small")
    MlflowClient().set_registered_model_alias("small", "champion", version.version)
    images = samples({"model": "net.py:Net"})
    by_id, by_alias = (
        mlflow.pyfunc.load_model(f"models:/{name}").predict(images)
        for name in (model.model_id, "small@champion")
    )
    assert np.array_equal(by_id, by_alias)


def test_the_weights_are_stored_once(store: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET, "utf-8")
    done = pruneflow.prune_direct(model="net.py:Net", dataset="digits", **SMALL)
    for model in models_of(done.run_id).values():
        folder = Path(mlflow.artifacts.download_artifacts(f"models:/{model.model_id}"))
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert {"MLmodel", "level.json"} <= {path.name for path in files}
        assert not [path for path in files if path.suffix in (".safetensors", ".pkl", ".pt")]


def test_a_server_without_logged_models_gets_none(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.py").write_text(NET, "utf-8")

    def missing(*_: Any, **__: Any) -> Any:
        raise RestException({"error_code": ErrorCode.Name(ENDPOINT_NOT_FOUND), "message": "none"})

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "search_logged_models", missing)
        done = pruneflow.prune_direct(model="net.py:Net", dataset="digits", **SMALL)
    assert capsys.readouterr().err.count("older than 3.0 and has no logged models") == 1
    assert MlflowClient().get_run(done.run_id).info.status == "FINISHED"
    assert models_of(done.run_id) == {}
