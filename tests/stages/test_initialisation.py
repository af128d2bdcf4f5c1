"""Pruning at initialisation: the base is the model as it is built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient

import pruneflow
from pruneflow import query
from pruneflow.tracking.finished import load_checkpoint
from pruneflow.workloads import models
from tests.stages.test_prune import SMALL

INITIAL = SMALL | {"base_epochs": 0, "train_limit": 100, "seed": 11}
PRUNE = {"iterations": 1, "fraction": 0.9, "optimizer": "sgd"}


@pytest.mark.parametrize("criterion", ["snip", "synflow"])
def test_what_is_pruned_is_the_model_as_the_seed_draws_it(folder: Path, criterion: str) -> None:
    done = pruneflow.prune_iterative(**INITIAL | PRUNE, criterion=criterion)
    torch.manual_seed(11)
    built = models.build("shufflenet_v2_x0_5", 10).state_dict()
    base = MlflowClient().get_run(done.run_id).data.tags["pruneflow.base_run"]
    for run_id in (done.run_id, base):
        state = load_checkpoint(run_id, 0).state
        assert all(torch.equal(tensor, state[name]) for name, tensor in built.items())
    assert done.levels["sparsity"].tolist() == pytest.approx([0, 0.9], abs=1e-3)
    assert done.levels["test_after"][0] < 0.3
    assert done.levels["finetune_seconds"][1] > 0


def test_an_untrained_base_is_measured_kept_read_and_reported(folder: Path, tmp_path: Path) -> None:
    names = ("model", "image_size", "train_limit", "batch_size", "seed", "threads")
    done = pruneflow.finetune(epochs=0, **{name: INITIAL[name] for name in names})
    run = MlflowClient().get_run(done.run_id)
    assert 0 <= run.data.metrics["accuracy/test"] < 0.3
    assert "not trained" in run.data.tags["mlflow.note.content"]
    assert pruneflow.load_model(done.run_id) is not None
    assert query.runs(run_ids=done.run_id)["epochs"].tolist() == [0]
    pruned = pruneflow.prune_iterative(**INITIAL | PRUNE | {"optimizer": "adamw"})
    runs = query.runs(run_ids=pruned.run_id)
    assert runs["base_run"].tolist() == [done.run_id]
    assert runs["base_epochs"].tolist() == [0]
    pruneflow.write_report(output_dir=str(tmp_path))
    assert "shufflenet" in (tmp_path / "report.md").read_text("utf-8")
