"""Sensitivity: what each layer alone costs, against PyTorch's own pruning; nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient
from torch.nn.utils import prune

import pruneflow
from pruneflow import query
from pruneflow.errors import InputError
from pruneflow.stages import sensitivity
from pruneflow.stages.experiment import Experiment
from pruneflow.tracking.run import Run
from pruneflow.workloads import datasets, models, training
from pruneflow.workloads.machine import Machine

SMALL: dict[str, Any] = {
    "model": "resnet18",
    "image_size": 32,
    "train_limit": 100,
    "batch_size": 50,
    "base_epochs": 1,
    "threads": 1,
    "precision": "fp32",
    "recalibrate_bn": False,
    "fractions": "0.2,0.6",
}
CHANNEL = {"granularity": "channel", "recalibrate_bn": True}


@pytest.fixture(scope="module")
def weights(folder: Path) -> pruneflow.FinishedRun:
    return pruneflow.sensitivity(**SMALL)


def test_a_row_a_layer_and_fraction(weights: Any) -> None:
    rows = query.sensitivity(run_ids=weights.run_id)
    model = models.build("resnet18", 10)
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    layers = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    assert rows["layer"].tolist() == [layer for layer in layers for _ in range(2)]
    assert rows["fraction"].tolist() == [0.2, 0.6] * len(layers)
    of_layer = {n: sum(p.numel() for p in model.get_submodule(n).parameters()) for n in layers}
    assert rows["units"].tolist() == [of_layer[layer] for layer in rows["layer"]]
    share = (rows["pruned"] / rows["units"]).tolist()
    assert share == pytest.approx(rows["fraction"].tolist(), abs=0.001)
    base = MlflowClient().get_run(weights.run_id).data.metrics["accuracy/val"]
    assert (rows["accuracy"] + rows["drop"]).tolist() == pytest.approx([base] * len(rows))
    assert (rows["stage"] == "sensitivity").all()


def test_accuracies_are_those_of_pytorchs_own_pruning(weights: Any) -> None:
    rows = query.sensitivity(run_ids=weights.run_id)
    base = str(rows["base_run"].iloc[0])
    data = datasets.load("digits", data_dir=None, image_size=32, train_limit=100, seed=0)
    machine = Machine("cpu", "fp32", 1)
    seen = set()
    for layer in ("conv1", "layer3.0.conv1", "fc"):
        for fraction in (0.2, 0.6):
            model = pruneflow.load_model(base)
            module = model.get_submodule(layer)
            for name in [name for name, _ in module.named_parameters()]:
                prune.l1_unstructured(module, name, fraction)
            expected = training.accuracy(model, data.val, machine, image_size=32, batch_size=50)
            row = rows[(rows["layer"] == layer) & (rows["fraction"] == fraction)].iloc[0]
            assert row["accuracy"] == expected
            seen.add(expected)
    assert len(seen) > 1


@pytest.mark.parametrize("given", [{}, CHANNEL, CHANNEL | {"coupling": "independent"}])
def test_the_model_is_afterwards_as_it_was_and_only_validation_data_is_looked_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    measurements, accuracy = sensitivity.measurements, Experiment.accuracy
    looked: list[str] = []

    def watched(experiment: Any, units: Any, *rest: Any) -> Iterator[Any]:
        before = {name: t.clone() for name, t in units.model.state_dict().items()}
        masks = {name: mask.clone() for name, mask in units.masks.items()}
        modes = [module.training for module in units.model.modules()]
        yield from measurements(experiment, units, *rest)
        for name, tensor in units.model.state_dict().items():
            assert torch.equal(tensor, before[name]), name
        assert all(torch.equal(units.masks[name], masks[name]) for name in masks)
        assert [module.training for module in units.model.modules()] == modes

    def looking(experiment: Any, model: Any, split: Any) -> float:
        parts = ("train", "val", "test")
        looked.extend(part for part in parts if getattr(experiment.data, part) is split)
        return accuracy(experiment, model, split)

    monkeypatch.setattr(sensitivity, "measurements", watched)
    if given:  # the base is there already
        monkeypatch.setattr(Experiment, "accuracy", looking)
    few = {"include": "layer1.*", "resume": "never"}
    run = pruneflow.sensitivity(**SMALL | given | few)
    rows = query.sensitivity(run_ids=run.run_id)
    assert len(rows) >= 4
    if given:
        assert looked == ["val"] * (1 + len(rows))
        assert rows["pruned"].tolist() == [
            round(f * n) for f, n in zip(rows["fraction"], rows["units"], strict=True)
        ]


def test_an_interrupted_run_measures_what_is_left_and_ends_the_same(
    folder: Path, weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = SMALL | CHANNEL | {"include": "layer1.*,layer2.0*"}
    whole = query.sensitivity(run_ids=pruneflow.sensitivity(**given).run_id)
    MlflowClient().delete_run(whole["run_id"].iloc[0])
    record, accuracy, measured = Run.record_sensitivity, Experiment.accuracy, []

    def stops(run: Run, row: Any) -> None:
        record(run, row)
        if len(run.sensitivities) == 5:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "record_sensitivity", stops)
        with pytest.raises(KeyboardInterrupt):
            pruneflow.sensitivity(**given)

    def counted(*given: Any) -> float:
        measured.append(given)
        return accuracy(*given)

    monkeypatch.setattr(Experiment, "accuracy", counted)
    done = pruneflow.sensitivity(**given)
    assert len(measured) == 1 + len(whole) - 5
    rows, same = query.sensitivity(run_ids=done.run_id), ["layer", "pruned", "accuracy", "drop"]
    assert rows[same].equals(whole[same])
    run = MlflowClient().get_run(done.run_id)
    assert run.data.tags["pruneflow.resumed_from"] == "measurement 5"
    assert pruneflow.sensitivity(**given).run_id == done.run_id
    assert len(measured) == 1 + len(whole) - 5


def test_a_run_holds_its_figures_and_names_the_layers_that_matter(weights: Any) -> None:
    client = MlflowClient()
    figures = [f.path for f in client.list_artifacts(weights.run_id, "figures")]
    assert figures == ["figures/sensitivity.png", "figures/sensitivity_heat_map.png"]
    rows = query.sensitivity(run_ids=weights.run_id)
    means = rows.groupby("layer")["drop"].mean()
    note = client.get_run(weights.run_id).data.tags["mlflow.note.content"]
    assert f"| most sensitive | mean drop |\n|---|---:|\n| {means.idxmax()} |" in note
    assert weights.levels.empty
    config = json.loads(
        Path(client.download_artifacts(weights.run_id, "config.json")).read_text("utf-8")
    )
    assert config["fractions"] == [0.2, 0.6]
    assert "scope" not in config


# -------------------------------------------------------------------------- scope=sensitivity

PRUNE: dict[str, Any] = {k: v for k, v in SMALL.items() if k != "fractions"} | {
    "scope": "sensitivity",
    "iterations": 2,
    "finetune_epochs": 0,
}


@pytest.mark.parametrize("form", ["masked", "compact"])
def test_channels_are_pruned_as_far_as_they_bear(folder: Path, form: str) -> None:
    kind = CHANNEL | {"include": "layer1.*,layer2.0*"}
    measured = pruneflow.sensitivity(**SMALL | kind)
    run = pruneflow.prune_iterative(**PRUNE | kind | {"form": form, "fraction": 0.3})
    assert run.levels["channels_left"].tolist() == pytest.approx([1, 0.7, 0.49], abs=0.01)
    tags = MlflowClient().get_run(run.run_id).data.tags
    assert tags["pruneflow.sensitivity_run"] == measured.run_id
    again = pruneflow.prune_iterative(
        **PRUNE | kind | {"form": form, "fraction": 0.3, "sensitivity_run": measured.run_id}
    )
    assert again.run_id == run.run_id  # it is what that run measured that counts


def test_weights_are_pruned_as_far_as_their_layer_bears(folder: Path, weights: Any) -> None:
    run = pruneflow.prune_direct(**PRUNE | {"fraction": 0.5, "iterations": 1})
    assert run.levels["sparsity"][1] == pytest.approx(0.5, abs=1e-6)
    layers = query.layers(run_ids=run.run_id)
    shares = layers[(layers["level"] == 1) & layers["layer"].str.endswith("conv1.weight")]
    rows = query.sensitivity(run_ids=weights.run_id)
    drops = rows.groupby("layer")["drop"].max()
    share = dict(zip(shares["layer"].str.removesuffix(".weight"), shares["sparsity"], strict=True))
    worst = max(share, key=drops.to_dict().__getitem__)
    assert share[worst] == pytest.approx(min(share.values()), abs=0.05)


def test_a_run_that_does_not_fit_is_refused(folder: Path, weights: Any) -> None:
    named = PRUNE | {"sensitivity_run": weights.run_id}
    base = MlflowClient().get_run(weights.run_id).data.tags["pruneflow.base_run"]
    for given, said in (
        ({"criterion": "l2"}, "has criterion=l1, not l2"),
        ({"seed": 5}, "is of another model, data set, preset or seed"),
        ({"sensitivity_run": None, "include": "fc"}, "of the same model, samples, seed and layers"),
        ({"sensitivity_run": base}, "is not a sensitivity run but finetune"),
        ({"sensitivity_run": None, "criterion": "l2"}, "--granularity weight --criterion l2"),
    ):
        with pytest.raises(InputError, match=said):
            pruneflow.prune_iterative(**named | given)
