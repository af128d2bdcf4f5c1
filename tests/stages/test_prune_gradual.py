"""Pruning within one training, through whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient

import pruneflow
from pruneflow import query
from pruneflow.report import evidence
from pruneflow.stages import experiment, prune, study
from pruneflow.stages.experiment import Experiment
from pruneflow.tracking.finished import load_checkpoint
from pruneflow.tracking.run import Run
from pruneflow.workloads import training
from tests.stages.test_prune import SMALL
from tests.stages.test_resume import Stop, epochs_trained, points, same_levels

GRADUAL = SMALL | {"train_limit": 100, "finetune_epochs": 4, "iterations": 3, "fraction": 0.5}
GRADUAL |= {"scope": "layer"}  # that of all would empty the classifier


@pytest.fixture(scope="module")
def done(folder: Path) -> pruneflow.FinishedRun:
    return pruneflow.prune_gradual(**GRADUAL)


def state(run: pruneflow.FinishedRun, level: int = 1) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(run.run_id, level).state)


def test_a_gradual_run_has_its_base_and_one_level_at_the_target(
    done: pruneflow.FinishedRun, folder: Path
) -> None:
    run = MlflowClient().get_run(done.run_id)
    assert run.info.run_name == "gradual-l1-weight-shufflenet_v2_x0_5-digits-s0"
    assert run.data.tags["pruneflow.stage"] == "prune_gradual"
    assert run.data.params["cfg/schedule"] == "cubic"
    assert done.levels["level"].tolist() == [0, 1]
    assert done.levels["target_sparsity"].tolist() == [0, 1 - 0.5**3]
    assert done.levels["sparsity"].tolist() == pytest.approx([0, 1 - 0.5**3], abs=1e-4)
    assert done.levels["score_seconds"][1] > 0
    assert done.levels["finetune_seconds"][1] > 0
    assert query.levels(run_ids=done.run_id)["stage"].tolist() == ["prune_gradual"] * 2
    found = evidence.read("all").configurations
    assert found["procedure"].tolist() == ["gradual"]


def test_its_levels_are_timed_as_those_of_other_pruning_runs(done: pruneflow.FinishedRun) -> None:
    timed = pruneflow.benchmark_latency(
        run=[done.run_id], batch_sizes=[1], rounds=3, seconds=0.05, threads=[1]
    )
    assert set(timed.latencies["level"]) == {0, 1}


def test_the_same_seed_gives_the_same_numbers(done: pruneflow.FinishedRun) -> None:
    again = pruneflow.prune_gradual(resume="never", **GRADUAL)
    assert again.run_id != done.run_id
    same_levels(again.levels, done.levels)


def test_before_is_after_the_last_pruning_and_measuring_it_changes_nothing(
    folder: Path, done: pruneflow.FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[float] = []  # sparsities that prunings lead to, and 0 for each measurement
    remove = prune._remove_lowest

    def removing(one: Any, units: Any, step: Any) -> dict[str, float]:
        cost = remove(one, units, step)
        events.append(units.masks.sparsity)
        return cost

    def measuring(*_: Any) -> float:
        events.append(0)
        return len(events) / 100

    monkeypatch.setattr(prune, "_remove_lowest", removing)
    monkeypatch.setattr(Experiment, "accuracy", measuring)
    unmeasured = pruneflow.prune_gradual(resume="never", **GRADUAL)
    final = 1 - 0.5**3
    pruned = [final * (1 - (1 - level / 3) ** 3) for level in (1, 2, 3)]
    # test, train and validation of level 0; test and train after the last pruning; all at the end
    assert events == pytest.approx([0, 0, 0, *pruned, 0, 0, 0, 0, 0], abs=2e-3)
    row = unmeasured.levels.iloc[1]
    assert row[["test_before", "train_before"]].tolist() == [0.07, 0.08]
    assert row[["test_after", "train_after", "val_after"]].tolist() == [0.09, 0.1, 0.11]
    ours, theirs = state(unmeasured), state(done)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


CHANNELS = {"granularity": "channel", "fraction": 0.2, "criterion": "taylor"}


@pytest.mark.parametrize(
    ("method", "stop_after"),  # epochs: before the last pruning, and after it
    [
        pytest.param({}, 1, marks=pytest.mark.slow),
        pytest.param({"optimizer": "sgd"}, 1, marks=pytest.mark.slow),
        ({}, 3),
        pytest.param(CHANNELS, 1, marks=pytest.mark.slow),
        pytest.param(CHANNELS, 3, marks=pytest.mark.slow),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_a_training_that_goes_on_is_the_same_to_the_last_bit(
    folder: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any], stop_after: int
) -> None:
    monkeypatch.setattr(experiment, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(experiment, "_SAVE_SHARE", 1e9)
    given = GRADUAL | method | {"seed": stop_after}
    whole = pruneflow.prune_gradual(**given, resume="never")
    MlflowClient().delete_run(whole.run_id)
    save = Run.save_training

    def saving(run: Run, level: int, snapshot: training.Snapshot) -> None:
        save(run, level, snapshot)
        if snapshot.epoch == stop_after:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save_training", saving)
        with pytest.raises(Stop):
            pruneflow.prune_gradual(**given)
    epochs = epochs_trained(monkeypatch)
    again = pruneflow.prune_gradual(**given)
    assert epochs == list(range(stop_after + 1, 5))
    tags = MlflowClient().get_run(again.run_id).data.tags
    assert tags["pruneflow.resumed_from"] == "level 0"
    same_levels(again.levels, whole.levels)
    assert points(again.run_id) == points(whole.run_id)
    ours, theirs = state(again), state(whole)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_study_can_have_gradual_runs() -> None:
    listed = study.Study(name="x", axes={"stage": ["prune_gradual", "prune_direct"]})
    jobs = study.jobs(listed)
    assert [job.stage for job in jobs] == ["finetune", "prune_gradual", "prune_direct"]
    assert [getattr(job.config, "schedule", "") for job in jobs] == ["", "cubic", "geometric"]
    assert jobs[1].needs is jobs[2].needs is jobs[0]
