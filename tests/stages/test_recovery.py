"""Recovery: rewinding to the base's own values and rates, and learning from its outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from mlflow.tracking import MlflowClient

import pruneflow
from pruneflow.config import OF_TRAINING, PruneConfig
from pruneflow.errors import InputError
from pruneflow.resolution import base_config, resolve
from pruneflow.stages import experiment
from pruneflow.tracking.finished import load_checkpoint, load_epoch, with_base
from pruneflow.tracking.run import Run
from pruneflow.workloads import training
from pruneflow.workloads.training import Recipe
from tests.stages.test_prune import SMALL, TIMES

# a model with BatchNorm and dropout
GIVEN: dict[str, Any] = SMALL | {
    "model": "mobilenet_v3_small", "train_limit": 60, "batch_size": 20, "base_epochs": 3,
    "iterations": 2,
}  # fmt: skip
del GIVEN["learning_rate"]
REWOUND: dict[str, Any] = GIVEN | {"rewind": "weights", "rewind_epoch": 1}


class Stop(KeyboardInterrupt):
    """What a test interrupts a run with."""


def base_of(run: pruneflow.FinishedRun) -> str:
    runs = pruneflow.query.runs(run_ids=[run.run_id])
    return str(runs["base_run"].iloc[0])


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Recipe, dict[str, torch.Tensor]]]:
    """The recipe and weights that every training starts from."""
    seen: list[tuple[Recipe, dict[str, torch.Tensor]]] = []
    fit = training.fit

    def watched(model: torch.nn.Module, data: Any, recipe: Recipe, *args: Any, **named: Any) -> Any:
        seen.append((recipe, {n: t.clone() for n, t in model.state_dict().items()}))
        return fit(model, data, recipe, *args, **named)

    monkeypatch.setattr(training, "fit", watched)
    return seen


def test_rewound_weights_are_the_bases_and_pruned_ones_stay_zero(
    folder: Path, starts: list[tuple[Recipe, dict[str, torch.Tensor]]]
) -> None:
    run = pruneflow.prune_iterative(**REWOUND)
    base = base_of(run)
    early, last = load_epoch(base, 1).state, load_checkpoint(base, 0).state
    assert any(not torch.equal(early[name], last[name]) for name in early)
    trainings = [(r, s) for r, s in starts if r.epochs_before]
    assert len(trainings) == 2
    for level, (recipe, state) in enumerate(trainings, 1):
        assert (recipe.epochs_before, recipe.epochs, recipe.learning_rate) == (1, 2, 3e-4)
        masks = load_checkpoint(run.run_id, level).masks
        assert masks
        for name, tensor in state.items():
            kept = masks.get(name, torch.ones_like(tensor, dtype=torch.bool))
            assert torch.equal(tensor[kept], early[name][kept]), name
            assert not tensor[~kept].any(), name
    recorded = pruneflow.query.runs(run_ids=[run.run_id]).iloc[0]
    assert (recorded["finetune_epochs"], recorded["learning_rate"]) == (2, 3e-4)


def test_a_base_that_keeps_an_epoch_is_trained_as_one_that_does_not(folder: Path) -> None:
    given = {k: v for k, v in GIVEN.items() if k not in ("base_epochs", "iterations")}
    plain = pruneflow.finetune(epochs=3, **given)
    states = [load_checkpoint(plain.run_id, 0).state]
    for epoch in (0, 2):
        keeping = pruneflow.finetune(epochs=3, rewind_epoch=epoch, **given)
        states.append(load_checkpoint(keeping.run_id, 0).state)
        assert load_epoch(keeping.run_id, epoch).state.keys() == states[0].keys()
    for state in states[1:]:
        assert all(torch.equal(states[0][name], tensor) for name, tensor in state.items())
    named = {"rewind": "weights", "rewind_epoch": 1, "base_run": plain.run_id}
    with pytest.raises(InputError, match="did not keep its weights of after epoch 1: leave"):
        pruneflow.prune_direct(**given, **named)


def test_all_of_a_named_bases_training_is_taken_from_it(folder: Path) -> None:
    unusual = {
        "epochs": 50, "batch_size": 7, "learning_rate": 0.5, "lr_schedule": "step",
        "warmup_epochs": 3, "optimizer": "nesterov", "weight_decay": 0.125, "augment": "crop_flip",
        "label_smoothing": 0.25,
    }  # fmt: skip
    assert unusual.keys() == OF_TRAINING | {"epochs", "batch_size"}
    client = MlflowClient()
    base = client.create_run("0", tags={"pruneflow.stage": "finetune"}).info.run_id
    for name, value in (unusual | {"weights": "none"}).items():
        client.log_param(base, f"cfg/{name}", value)
    client.set_terminated(base)
    for rewind in ("weights", "learning_rate"):
        given = {"rewind": rewind, "rewind_epoch": 40, "base_run": base, "model": "alexnet"}
        config = with_base(resolve(PruneConfig, given))
        trained = config.model_dump() | {"epochs": config.finetune_epochs + config.rewind_epoch}
        assert {name: trained[name] for name in unusual} == unusual
        base_config(config)  # whose epochs are the preset's, and fewer


def test_rewound_rates_leave_weights(
    folder: Path, starts: list[tuple[Recipe, dict[str, torch.Tensor]]]
) -> None:
    given = GIVEN | {"rewind": "learning_rate", "rewind_epoch": 2}
    del given["iterations"]
    run = pruneflow.prune_direct(**given)
    pruned = [(recipe, state) for recipe, state in starts if recipe.epochs_before]
    (recipe, state), base = pruned[0], load_checkpoint(base_of(run), 0).state
    assert (recipe.epochs_before, recipe.epochs) == (2, 1)
    masks = load_checkpoint(run.run_id, 1).masks
    for name, kept in masks.items():
        assert torch.equal(state[name][kept], base[name][kept]), name


@pytest.mark.parametrize(
    "recover",
    [
        REWOUND,
        pytest.param(
            GIVEN | {"distill": 0.5, "finetune_epochs": 2, "lr_schedule": "cosine"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["rewound", "distilled"],
)
def test_a_run_that_recovers_goes_on_as_if_it_had_never_stopped(
    folder: Path, monkeypatch: pytest.MonkeyPatch, recover: dict[str, Any]
) -> None:
    monkeypatch.setattr(experiment, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(experiment, "_SAVE_SHARE", 1e9)
    recover = recover | {"seed": 3}  # no other test has finished it
    whole = pruneflow.prune_iterative(resume="never", **recover)
    save, record = Run.save_training, Run.record

    def saving(run: Run, level: int, snapshot: Any) -> None:
        save(run, level, snapshot)
        if level == 2:
            raise Stop

    def recording(run: Run, level: Any, *rest: Any) -> None:
        record(run, level, *rest)
        if level.level == 1:
            raise Stop

    MlflowClient().delete_run(whole.run_id)
    for name, stopping in (("record", recording), ("save_training", saving)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Run, name, stopping)
            with pytest.raises(Stop):
                pruneflow.prune_iterative(**recover)
    done = pruneflow.prune_iterative(**recover)
    pd.testing.assert_frame_equal(
        done.levels.drop(columns=TIMES), whole.levels.drop(columns=TIMES), check_exact=True
    )


def test_a_student_learns_from_the_base_and_from_nothing_else(folder: Path) -> None:
    few = GIVEN | {"finetune_epochs": 1, "iterations": 1}
    methods: list[dict[str, Any]] = [{}, {"distill": 0.9}, {"distill": 0.9, "temperature": 1.0}]
    alone, taught, hotter = (pruneflow.prune_iterative(**few, **method) for method in methods)
    same = ["sparsity", "test_before"]  # what is pruned does not depend on it
    pd.testing.assert_frame_equal(alone.levels[same], taught.levels[same])
    states = [load_checkpoint(run.run_id, 1).state for run in (alone, taught, hotter)]
    name = "classifier.3.weight"
    assert not torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[1][name], states[2][name])
