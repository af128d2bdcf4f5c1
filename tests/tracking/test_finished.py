"""Finished runs, found again and read."""

from __future__ import annotations

import time

import pytest
from mlflow.tracking import MlflowClient

from pruneflow.config import FinetuneConfig
from pruneflow.errors import InputError
from pruneflow.resolution import resolve
from pruneflow.tracking import finished
from pruneflow.tracking.run import open_run


@pytest.fixture
def config() -> FinetuneConfig:
    return resolve(FinetuneConfig, {"model": "resnet18", "epochs": "3"})


def finished_base(config: FinetuneConfig, workload: str, stage: str = "finetune") -> str:
    with open_run(stage, config, name="base", tags={"pruneflow.workload": workload}) as run:
        pass
    return run.id


def test_the_newest_finished_base_of_the_workload_is_found(
    store: str, config: FinetuneConfig
) -> None:
    assert finished.newest_base("w", {}) is None
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
    assert finished.newest_base("w", {}) == newest
    assert finished.newest_base("w", {"epochs": 3, "batch_size": 64}) == newest
    assert finished.newest_base("w", {"epochs": 3, "batch_size": 65}) is None


def test_a_base_that_cannot_be_used_is_refused(store: str, config: FinetuneConfig) -> None:
    pruning = finished_base(config, "w", stage="prune_direct")
    other = finished_base(config.resolved(model="vgg16"), "w")
    seed = finished_base(config.resolved(seed=7), "w")
    data = finished_base(config.resolved(dataset="cifar10"), "w")
    empty = finished_base(config, "w")
    with pytest.raises(RuntimeError), open_run("finetune", config, name="n", tags={}) as failed:
        raise RuntimeError
    for run_id, said in [
        ("nowhere", "does not exist"),
        (pruning, "not a finetune run but prune_direct"),
        (failed.id, "its status is FAILED"),
        (other, "has model=vgg16, not resnet18"),
        (seed, "has seed=7, not 0"),
        (data, "has dataset=cifar10, not digits"),
        (empty, "no checkpoint of level 0"),
    ]:
        with pytest.raises(InputError, match=said) as refused:
            finished.open_base(run_id, config, {"classes": 10}, "d")
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("study", ["it's", "a`b", 'a "b"'])
def test_a_study_that_no_filter_can_name_is_found_all_the_same(
    store: str, config: FinetuneConfig, study: str
) -> None:
    pruning, _ = (finished_base(config, "w", stage="prune_direct") for _ in range(2))
    with pytest.raises(InputError, match="has no finished pruning runs"):
        finished.pruning_runs_of(study)
    MlflowClient().set_tag(pruning, "pruneflow.study", study)
    assert finished.pruning_runs_of(study) == [pruning]


def test_runs_of_a_study_come_once_each_and_the_oldest_first(
    store: str, config: FinetuneConfig
) -> None:
    ids = []
    for workload in ("shared", "own", "both"):
        ids.append(finished_base(config, workload, stage="prune_direct"))
        time.sleep(0.01)
    with pytest.raises(InputError, match="no finished pruning runs"):
        finished.pruning_runs_of("one")
    client = MlflowClient()
    client.set_tag(ids[0], "pruneflow.study.one", "one")
    for run_id in ids[1:]:
        client.set_tag(run_id, "pruneflow.study", "one")
    client.set_tag(ids[2], "pruneflow.study.one", "one")
    assert finished.pruning_runs_of("one") == ids
