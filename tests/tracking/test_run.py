"""Runs: opened, and ended for a reason."""

from __future__ import annotations

import json
import os
import re

import pytest
import torch
from mlflow.tracking import MlflowClient
from records import LAYER, LEVELS

from pruneflow.config import FinetuneConfig
from pruneflow.errors import ExperimentError, InputError
from pruneflow.resolution import resolve
from pruneflow.tracking import store as stores
from pruneflow.tracking import writers
from pruneflow.tracking.checkpoints import Checkpoint
from pruneflow.tracking.finished import load_checkpoint
from pruneflow.tracking.run import open_run


@pytest.fixture
def config() -> FinetuneConfig:
    return resolve(FinetuneConfig, {"model": "resnet18", "epochs": "3"})


def test_configuration_is_logged_as_params_and_as_typed_json(
    store: str, config: FinetuneConfig
) -> None:
    with open_run("finetune", config, name="n", tags={}) as run:
        pass
    client = MlflowClient()
    found = client.get_run(run.id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "n"
    assert found.data.params["cfg/epochs"] == "3"
    assert found.data.params["cfg/model"] == "resnet18"
    folder = client.download_artifacts(run.id, "config.json")
    with open(folder, encoding="utf-8") as file:
        values = json.load(file)
    assert values["stage"] == "finetune"
    assert values == {"stage": "finetune", **config.model_dump(mode="json")}


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (RuntimeError("no luck"), "FAILED", "RuntimeError: no luck"),
        (KeyboardInterrupt(), "KILLED", "terminated"),
        (SystemExit(143), "KILLED", "terminated: 143"),
    ],
)
def test_a_run_that_does_not_finish_says_why(
    store: str, config: FinetuneConfig, error: BaseException, status: str, said: str
) -> None:
    with (
        pytest.raises(type(error)),
        open_run("finetune", config, name="n", tags={}) as run,
    ):
        raise error
    found = MlflowClient().get_run(run.id)
    assert found.info.status == status
    assert found.data.tags["pruneflow.failure"].startswith(said)


def test_a_level_is_written_as_it_was_recorded(store: str, config: FinetuneConfig) -> None:
    weight, mask = torch.tensor([1.0, 0.0, 3.0]), torch.tensor([True, False, True])
    with open_run("prune_iterative", config, name="n", tags={}) as run:
        run.record(LEVELS[0], [LAYER], Checkpoint({}, {"w": weight}, {"w": mask}))
        weight.zero_()  # training goes on at once
        mask.zero_()
    found = load_checkpoint(run.id, 0)
    assert found.state["w"].tolist() == [1, 0, 3]
    assert found.masks["w"].tolist() == [True, False, True]
    assert run.levels[0].size_bytes > 0
    assert MlflowClient().get_run(run.id).data.metrics["cost/size_bytes"] == (
        run.levels[0].size_bytes
    )


def test_a_level_that_cannot_be_written_fails_the_run(store: str, config: FinetuneConfig) -> None:
    unlike = Checkpoint({}, {"w": torch.ones(2)}, {"w": torch.tensor([True, False])})
    with (
        pytest.raises(ValueError, match="not zero"),
        open_run("prune_iterative", config, name="n", tags={}) as run,
    ):
        run.record(LEVELS[0], [LAYER], unlike)
    found = MlflowClient().get_run(run.id)
    assert found.info.status == "FAILED"
    assert "accuracy/test_after" not in found.data.metrics


def test_a_full_disk_fails_the_run_and_is_one_line(store: str, config: FinetuneConfig) -> None:
    with (
        pytest.raises(ExperimentError, match="No space left on device"),
        open_run("finetune", config, name="n", tags={}) as run,
    ):
        raise OSError(28, "No space left on device")
    assert MlflowClient().get_run(run.id).info.status == "FAILED"


def test_the_run_handed_over_is_taken_over_once(
    store: str, config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed = MlflowClient().create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", handed)
    with open_run("finetune", config, name="first", tags={}) as first:
        pass
    with open_run("finetune", config, name="second", tags={}) as second:
        pass
    assert first.id == handed
    assert second.id != handed
    assert MlflowClient().get_run(handed).info.run_name == "first"


def test_the_current_experiment_is_used(
    store: str, config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    with open_run("finetune", config, name="n", tags={}) as run:
        pass
    assert MlflowClient().get_experiment(run.experiment_id).name == "mine"


@pytest.mark.parametrize("model", ['hf:/a/it\'s "x" #1/', f"hf:{'x' * 300}", "hf:x/a:b?c=d%2f"])
def test_names_of_runs_are_what_files_and_databases_can_hold(model: str) -> None:
    name = resolve(FinetuneConfig, {"model": model, "weights": "none"}).run_name
    assert re.fullmatch(r"[\w.\-]{1,200}", name)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://me:pass@host:5000/x", "http://host:5000/x"),
        ("postgresql://me:p@ss@host/db", "postgresql://host/db"),
        ("postgresql://host/db?user=me&password=p", "postgresql://host/db"),
        ("http://me:pass@[bad", "[bad"),
        ("sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
    ],
)
def test_credentials_are_not_shown(address: str, shown: str) -> None:
    assert stores.without_credentials(address) == shown


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("MLFLOW_TRACKING_URI", "bogus://me:secret@host/mlflow", "bogus://host/mlflow"),
        ("MLFLOW_TRACKING_URI", "http://me:secret@[bad", "does not answer"),
        ("MLFLOW_RUN_ID", "deadbeef", "MLFLOW_RUN_ID='deadbeef'"),
        ("MLFLOW_EXPERIMENT_ID", "999", "unknown experiment '999'"),
        ("MLFLOW_EXPERIMENT_ID", "1", "experiment '1' is deleted"),
        ("MLFLOW_EXPERIMENT_NAME", "gone", "experiment 'gone' is deleted"),
        ("MLFLOW_EXPERIMENT_NAME", "x" * 300, "has 300 characters"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused(
    store: str, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    MlflowClient().delete_experiment(MlflowClient().create_experiment("gone"))
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=re.escape(said)) as refused:
        stores.check()
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)


def test_refusing_a_handed_over_run_that_is_not_there_raises_nothing(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "deadbeef")
    writers.refuse_handed_over("a reason")
    assert "MLFLOW_RUN_ID" not in os.environ
