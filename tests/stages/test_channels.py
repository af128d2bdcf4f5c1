"""Channel pruning and texts through the stages: what runs record, and what always holds."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from mlflow.tracking import MlflowClient
from torch import Tensor, nn

import pruneflow
from pruneflow.errors import InputError
from pruneflow.tracking import checkpoints
from pruneflow.tracking.finished import load_checkpoint
from pruneflow.workloads import models
from pruneflow.workloads.models import head_name

SMALL: dict[str, Any] = {
    "model": "resnet18",
    "image_size": 32,
    "train_limit": 100,
    "batch_size": 50,
    "base_epochs": 1,
    "threads": 1,
    "precision": "fp32",
    "granularity": "channel",
}


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[tuple[str, str], pruneflow.FinishedRun]:
    """Every coupling in every form, two levels of 30 %."""
    return {
        (coupling, form): pruneflow.prune_iterative(
            coupling=coupling, form=form, fraction=0.3, iterations=2, **SMALL
        )
        for coupling in ("group", "independent")
        for form in ("masked", "compact")
    }


Runs = dict[tuple[str, str], Any]


def test_channels_left_follow_the_schedule(runs: Runs) -> None:
    for coupling in ("group", "independent"):
        levels = runs[coupling, "masked"].levels
        assert levels["channels_left"].tolist() == pytest.approx([1, 0.7, 0.49], abs=0.005)
        assert levels["target_sparsity"].tolist() == pytest.approx([0, 0.3, 0.51])


def test_masked_and_compact_of_a_group_are_the_same_model_before_fine_tuning(runs: Runs) -> None:
    masked, compact = runs["group", "masked"].levels, runs["group", "compact"].levels
    for column in ("params_left", "channels_left", "params_compact", "macs_compact", "sparsity"):
        assert masked[column][1] == pytest.approx(compact[column][1], abs=1e-12), column
    assert masked["test_before"][1] == pytest.approx(compact["test_before"][1], abs=0.01)
    # what exists in the compact form is what masks leave, but for biases that are zero anyway
    left = masked["params_left"] * masked["params"]
    assert (left / masked["params_compact"]).tolist() == pytest.approx([1, 1, 1], abs=1e-3)
    assert masked["test_compact"].isna().all()


def test_independent_masks_overstate_what_is_left(runs: Runs) -> None:
    levels = runs["independent", "masked"].levels
    assert levels["test_compact"].notna().tolist() == [False, True, True]
    assert levels["conv_params_masked"][0] == levels["conv_params_compact"][0]
    expected, whole = 0, torchvision.models.resnet18(num_classes=10)
    for conv in (m for m in whole.modules() if isinstance(m, nn.Conv2d)):
        left = conv.out_channels
        left -= round(0.3 * left)  # as torch.nn.utils.prune.ln_structured rounds
        left -= round(0.3 * left)
        expected += left * conv.weight[0].numel()
    assert levels["conv_params_masked"][2] == expected
    assert levels["conv_params_compact"][2] < 0.5 * expected


def test_conv_params_of_compact_runs_are_those_of_their_checkpoints(runs: Runs) -> None:
    for coupling in ("group", "independent"):
        done = runs[coupling, "compact"]
        for level in range(3):
            state = load_checkpoint(done.run_id, level).state
            convolutions = sum(v.numel() for v in state.values() if v.dim() == 4)
            assert done.levels["conv_params_compact"][level] == convolutions
            model = checkpoints.restore(load_checkpoint(done.run_id, level))
            params = sum(p.numel() for p in model.parameters())
            assert done.levels["params_compact"][level] == params


def test_new_columns_are_metrics_and_configuration_is_logged(runs: Runs) -> None:
    run = MlflowClient().get_run(runs["independent", "compact"].run_id)
    assert run.data.params["cfg/coupling"] == "independent"
    assert run.data.params["cfg/form"] == "compact"
    assert run.data.params["cfg/scope"] == "layer"
    assert run.data.params["cfg/recalibrate_bn"] == "True"
    assert run.data.params["cfg/criterion"] == "l2"
    levels = runs["independent", "compact"].levels
    for name in ("conv_params_masked", "conv_params_compact", "channels_left"):
        assert run.data.metrics[f"prune/{name}"] == levels[name][2]
    assert run.data.metrics["cost/macs_compact"] == levels["macs_compact"][2]


def test_layers_csv_counts_what_is_gone_against_the_unpruned_tensor(runs: Runs) -> None:
    text = Path(
        MlflowClient().download_artifacts(runs["group", "compact"].run_id, "layers.csv")
    ).read_text()
    rows = [
        row for row in csv.DictReader(text.splitlines()) if row["layer"] == "layer1.0.conv1.weight"
    ]
    first, _, last = rows
    assert (first["shape"], last["params"]) == ("64x64x3x3", first["params"])
    channels = int(last["shape"].split("x")[0])
    assert channels < 64
    assert float(last["sparsity"]) == pytest.approx(1 - channels / 64, abs=1e-3)


def filters_left(state: Mapping[str, Tensor]) -> dict[str, int]:
    """How many filters of each convolution are there and not all zero."""
    return {
        name: int(weight.flatten(1).any(1).sum())
        for name, weight in state.items()
        if weight.dim() == 4
    }


def promised(filters: int, levels: int) -> int:
    """What `ln_structured` leaves of so many filters after levels of 30 %."""
    for _ in range(levels):
        filters -= round(0.3 * filters)
    return filters


# One of each family of torchvision's classifiers; some of the channels of most cannot be removed.
FAMILIES = {
    "alexnet": 64, "vgg11_bn": 32, "squeezenet1_1": 64, "resnet18": 32, "resnext50_32x4d": 32,
    "wide_resnet50_2": 32, "densenet121": 32, "googlenet": 32, "inception_v3": 96,
    "mobilenet_v2": 32, "mobilenet_v3_small": 32, "mnasnet0_5": 32, "shufflenet_v2_x0_5": 32,
    "efficientnet_b0": 32, "efficientnet_v2_s": 32, "regnet_y_400mf": 32, "regnet_x_400mf": 32,
    "convnext_tiny": 32, "vit_b_16": 224, "swin_t": 64, "swin_v2_t": 64, "maxvit_t": 224,
}  # fmt: skip


@pytest.mark.parametrize("form", ["masked", "compact"])
@pytest.mark.parametrize("coupling", ["group", "independent"])
@pytest.mark.parametrize(
    "model",
    [pytest.param(n, marks=() if n.startswith("shuff") else pytest.mark.slow) for n in FAMILIES],
)
def test_what_was_pruned_stays_so_and_what_was_not_reached_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], model: str, coupling: str, form: str
) -> None:
    size = FAMILIES[model]
    small = {"model": model, "image_size": size, "train_limit": 40, "batch_size": 20}
    how = {"coupling": coupling, "form": form, "fraction": 0.3, "iterations": 2}
    done = pruneflow.prune_iterative(**SMALL | small | how, finetune_epochs=1)
    output = " ".join(capsys.readouterr().out.split())
    assert "not pruned: " in output
    states = [load_checkpoint(done.run_id, level).state for level in range(3)]
    before = filters_left(states[0])
    head = head_name(models.build(model, 10))
    for level in (1, 2):
        if coupling == "independent":
            for name, left in filters_left(states[level]).items():
                if name != f"{head}.weight":
                    assert left <= promised(before[name], level), (level, name)
        elif form == "masked":
            zeros = [
                {n: tensor == 0 for n, tensor in states[k].items()} for k in (level - 1, level)
            ]
            pruned = load_checkpoint(done.run_id, level - 1).masks
            for name, mask in pruned.items():
                assert bool(zeros[1][name][~mask].all()), (level, name)
        level_row = done.levels.iloc[level]
        if abs(1 - level_row["channels_left"] - level_row["target_sparsity"]) > 0.02:
            assert f"asked to remove {level_row['target_sparsity']:.4f} of " in output
    sparsity = done.levels["sparsity"]
    assert sparsity[0] < sparsity[1] < sparsity[2]


def test_compact_checkpoints_give_bit_equal_logits_in_a_fresh_process(runs: Runs) -> None:
    done = runs["group", "compact"]
    path = MlflowClient().download_artifacts(done.run_id, "checkpoints/level_02")
    code = """
import json, pathlib, sys, torch
from pruneflow.tracking import checkpoints
torch.set_num_threads(1)
model = checkpoints.restore(checkpoints.load(pathlib.Path(sys.argv[1])))
images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
with torch.no_grad():
    print(json.dumps(model(images).tolist()))
"""
    root = Path(__file__).resolve().parents[2]
    printed = subprocess.run(
        [sys.executable, "-c", code, path],
        env=os.environ | {"PYTHONPATH": str(root / "src")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    model = pruneflow.load_model(done.run_id, 2)
    with torch.no_grad():
        assert json.loads(printed) == model(images).tolist()


def test_one_iterative_level_is_direct_for_channels_too(folder: Path) -> None:
    settings = SMALL | {"target_sparsity": 0.4, "finetune_epochs": 0}
    one = pruneflow.prune_iterative(iterations=1, **settings).levels
    direct = pruneflow.prune_direct(**settings).levels
    times = ["score_seconds", "finetune_seconds", "evaluate_seconds"]
    assert one.drop(columns=times).equals(direct.drop(columns=times))


def test_without_recalibration_accuracy_before_differs(folder: Path) -> None:
    settings = SMALL | {"target_sparsity": 0.4, "finetune_epochs": 0}
    on = pruneflow.prune_direct(**settings).levels
    off = pruneflow.prune_direct(recalibrate_bn=False, **settings).levels
    assert on["test_before"][0] == off["test_before"][0]
    assert on["test_before"][1] != off["test_before"][1]


def test_compact_counts_of_unstructured_runs_are_exact(folder: Path) -> None:
    settings = {k: v for k, v in SMALL.items() if k not in ("granularity", "model")}
    levels = pruneflow.prune_direct(
        model="alexnet",
        target_sparsity=0.99,
        finetune_epochs=0,
        **settings | {"image_size": 64, "train_limit": 20, "batch_size": 20},
    ).levels
    assert levels["channels_left"].isna().all()
    assert levels["params_compact"][0] == levels["params"][0]
    assert levels["params_compact"][1] < levels["params"][1]
    assert levels["params_compact"][1] > levels["params_left"][1] * levels["params"][1]
    assert levels["macs_compact"][1] < levels["macs"][1]


def test_bert_on_reviews_loses_heads_and_hidden_units(folder: Path) -> None:
    settings = {"model": "bert", "train_limit": 60, "base_epochs": 1, "threads": 1}
    done = pruneflow.prune_iterative(
        granularity="channel", targets="heads,ffn", form="compact", fraction=0.4, iterations=2,
        **settings,
    )  # fmt: skip
    run = MlflowClient().get_run(done.run_id)
    assert run.data.params["cfg/dataset"] == "reviews"
    assert "(synthetic)" in run.data.tags["mlflow.note.content"]
    assert "reviews (synthetic)" in {data.dataset.name for data in run.inputs.dataset_inputs}
    model = pruneflow.load_model(done.run_id, 2)
    heads = [m.num_attention_heads for m in model.modules() if hasattr(m, "num_attention_heads")]
    assert sum(heads) == 16 - round(0.4 * 16) - round(0.4 * 10)
    assert all(heads)
    files = MlflowClient().list_artifacts(done.run_id, "checkpoints/level_02/tokenizer")
    assert any(file.path.endswith("tokenizer.json") for file in files)
    assert done.levels["macs_compact"][2] < done.levels["macs_compact"][0]
    # a base run that is named, of another vocabulary, is refused
    base = run.data.tags["pruneflow.base_run"]
    with pytest.raises(InputError, match="was trained with another"):
        pruneflow.prune_direct(model="bert", train_limit=20, threads=1, base_run=base)
    again = pruneflow.prune_direct(
        model="bert",
        train_limit=60,
        threads=1,
        base_run=base,
        finetune_epochs=0,
    )
    assert again.levels["params"][0] == done.levels["params"][0]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"targets": "heads"}, "targets=heads is not in this model"),
        ({"include": "nothing*"}, "matches no prunable layer"),
        ({"model": "bert", "dataset": "digits"}, "model=bert reads texts, dataset=digits is none"),
        ({"dataset": "reviews", "image_size": None}, "model=resnet18 reads images"),
    ],
)
def test_what_cannot_be_pruned_is_refused_before_a_run_opens(
    folder: Path, given: dict[str, Any], problem: str
) -> None:
    client = MlflowClient()
    before = len(client.search_runs(["0"]))
    with pytest.raises(InputError, match=problem):
        pruneflow.prune_direct(**SMALL | given)
    assert len(client.search_runs(["0"])) == before


def test_a_target_that_rounds_to_nothing_is_told_by_its_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = pruneflow.prune_direct(
        model="bert",
        train_limit=40,
        base_epochs=1,
        finetune_epochs=0,
        threads=1,
        precision="fp32",
        granularity="channel",
        scope="layer",
        target_sparsity=0.1,
    )
    said = capsys.readouterr().out
    assert "asked to remove 0.1000 of heads, removed 0.0000" in said
    note = MlflowClient().get_run(done.run_id).data.tags["mlflow.note.content"]
    assert "Asked to remove 0.1000 of heads" in note


def test_names_say_coupling_and_form(runs: Runs) -> None:
    client = MlflowClient()
    names = {how: client.get_run(done.run_id).info.run_name for how, done in runs.items()}
    assert names["group", "masked"] == "l2-channel-resnet18-digits-s0"
    assert names["independent", "compact"] == "l2-channel-independent-compact-resnet18-digits-s0"
    assert len(set(names.values())) == 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"coupling": "independent", "model": "bert"}, "has none to prune: pass coupling=group"),
        ({"recalibrate_bn": True, "model": "bert"}, "which has no BatchNorm"),
        ({"target_sparsity": 0.5, "iterations": 3}, "iterations=3 has no effect"),
    ],
)
def test_what_would_change_nothing_is_refused(
    given: dict[str, Any], said: str, folder: Path
) -> None:
    rest = {"granularity": "channel", "train_limit": 40, "threads": 1}
    with pytest.raises(InputError, match=said):
        pruneflow.prune_direct(**(rest | given))
