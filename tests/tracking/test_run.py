"""Runs: opened, ended for a reason, and found again."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pruneflow.config import FinetuneConfig, resolve
from pruneflow.errors import InputError
from pruneflow.tracking import run as tracking
from pruneflow.tracking import store as stores
from pruneflow.tracking.run import open_run


@pytest.fixture
def config() -> FinetuneConfig:
    return resolve(FinetuneConfig, {"model": "resnet18", "epochs": "3"})


def finished_base(config: FinetuneConfig, workload: str, stage: str = "finetune") -> str:
    with open_run(stage, config, name="base", tags={"pruneflow.workload": workload}) as run:
        pass
    return run.id


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
    ("error", "status"),
    [(RuntimeError("no luck"), "FAILED"), (KeyboardInterrupt(), "KILLED")],
)
def test_a_run_that_does_not_finish_says_why(
    store: str, config: FinetuneConfig, error: BaseException, status: str
) -> None:
    with (
        pytest.raises(type(error)),
        open_run("finetune", config, name="n", tags={}) as run,
    ):
        raise error
    found = MlflowClient().get_run(run.id)
    assert found.info.status == status
    assert found.data.tags["pruneflow.failure"].startswith(type(error).__name__)
    assert str(error) in found.data.tags["pruneflow.failure"]


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


def test_the_newest_finished_base_of_the_workload_is_found(
    store: str, config: FinetuneConfig
) -> None:
    assert tracking.find_base("w", epochs=None) is None
    finished_base(config, "w")
    time.sleep(0.01)
    newest = finished_base(config, "w")
    time.sleep(0.01)
    finished_base(config, "another")
    finished_base(config, "w", stage="prune_iterative")
    with (
        pytest.raises(RuntimeError),
        open_run("finetune", config, name="n", tags={"pruneflow.workload": "w"}),
    ):
        raise RuntimeError
    assert tracking.find_base("w", epochs=None) == newest
    assert tracking.find_base("w", epochs=3) == newest
    assert tracking.find_base("w", epochs=4) is None


def test_a_base_that_cannot_be_used_is_refused(store: str, config: FinetuneConfig) -> None:
    pruning = finished_base(config, "w", stage="prune_direct")
    other = finished_base(config.resolved(model="vgg16"), "w")
    empty = finished_base(config, "w")
    with pytest.raises(RuntimeError), open_run("finetune", config, name="n", tags={}) as failed:
        raise RuntimeError
    for run_id, said in [
        ("nowhere", "does not exist"),
        (pruning, "not a finetune run but prune_direct"),
        (failed.id, "its status is FAILED"),
        (other, "is of model vgg16, not resnet18"),
        (empty, "no checkpoint of level 0"),
    ]:
        with pytest.raises(InputError, match=said) as refused:
            tracking.open_base(run_id, config, 10)
        assert "\n" not in str(refused.value)


def test_fingerprint_follows_what_decides_the_result_and_nothing_else() -> None:
    def fingerprint(**given: object) -> str:
        return tracking.fingerprint("finetune", resolve(FinetuneConfig, given), "data", None)

    same = fingerprint()
    assert fingerprint(preset="quick") == same
    assert fingerprint(data_dir="elsewhere") == same
    assert fingerprint(seed=1) != same
    assert fingerprint(learning_rate=0.1) != same
    config = resolve(FinetuneConfig, {})
    assert tracking.fingerprint("finetune", config, "other data", None) != same
    assert tracking.fingerprint("finetune", config, "data", "base") != same
    assert tracking.fingerprint("prune_direct", config, "data", None) != same


def test_fingerprints_follow_the_content_of_a_weights_file(tmp_path: Path) -> None:
    def fingerprints() -> tuple[str, str]:
        config = resolve(FinetuneConfig, {"weights": str(tmp_path / "w.safetensors")})
        return (
            tracking.fingerprint("finetune", config, "data", None),
            tracking.workload_fingerprint(config, "data"),
        )

    (tmp_path / "w.safetensors").write_bytes(b"one")
    one = fingerprints()
    assert fingerprints() == one
    (tmp_path / "w.safetensors").write_bytes(b"two")
    assert fingerprints()[0] != one[0]
    assert fingerprints()[1] != one[1]


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://me:pass@host:5000/x", "http://host:5000/x"),
        ("postgresql://me:p@ss@host/db", "postgresql://host/db"),
        ("sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
    ],
)
def test_credentials_are_not_shown(address: str, shown: str) -> None:
    assert stores.without_credentials(address) == shown


def test_a_store_that_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "bogus://me:pass@host/mlflow")
    with pytest.raises(InputError, match="cannot be used") as refused:
        stores.check()
    assert "\n" not in str(refused.value)
