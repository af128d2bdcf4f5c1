"""The main job on real images, small: what it records, and what always holds."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

import pruneflow
from pruneflow.errors import InputError
from pruneflow.tracking.finished import load_checkpoint

SMALL: dict[str, Any] = {
    "model": "shufflenet_v2_x0_5",
    "image_size": 32,
    "train_limit": 200,
    "batch_size": 50,
    "base_epochs": 1,
    "learning_rate": 3e-3,
    "threads": 1,
    "precision": "fp32",
}
# without fine-tuning, where a learning rate would have no effect
UNTRAINED = {k: v for k, v in SMALL.items() if k != "learning_rate"} | {"finetune_epochs": 0}
TIMES = ["score_seconds", "finetune_seconds", "evaluate_seconds"]


@pytest.fixture(scope="module")
def job(folder: Path) -> tuple[pruneflow.FinishedRun, Run, Path]:
    """prune_iterative of two levels on a fresh store: the run, and its artifacts."""
    done = pruneflow.prune_iterative(iterations=2, **SMALL)
    client = MlflowClient()
    artifacts = Path(client.download_artifacts(done.run_id, "", str(folder)))
    return done, client.get_run(done.run_id), artifacts


def test_run_has_the_contract_tags(job: tuple[Any, Run, Path]) -> None:
    tags = job[1].data.tags
    assert job[1].info.status == "FINISHED"
    assert job[1].info.run_name == "l1-weight-shufflenet_v2_x0_5-digits-s0"
    assert tags["pruneflow.stage"] == "prune_iterative"
    assert len(tags["pruneflow.fingerprint"]) == 16
    base = MlflowClient().get_run(tags["pruneflow.base_run"])
    assert base.data.tags["pruneflow.stage"] == "finetune"
    assert base.data.params["cfg/epochs"] == "1"
    assert "| level |" in tags["mlflow.note.content"]
    curves = json.loads(tags["pruneflow.curves"])
    assert curves["level"] == [0, 1, 2]
    assert curves["test_after"] == pytest.approx(job[0].levels["test_after"].tolist(), rel=1e-5)


def test_run_has_the_contract_metrics(job: tuple[Any, Run, Path]) -> None:
    client = MlflowClient()
    levels = job[0].levels
    for key, column in {
        "accuracy/test_before": "test_before",
        "accuracy/train_after": "train_after",
        "prune/sparsity": "sparsity",
        "prune/params_left": "params_left",
        "cost/macs_left": "macs_left",
        "cost/size_bytes": "size_bytes",
        "time/finetune_seconds": "finetune_seconds",
    }.items():
        history = sorted(client.get_metric_history(job[1].info.run_id, key), key=lambda m: m.step)
        assert [m.step for m in history] == [0, 1, 2]
        assert [m.value for m in history] == levels[column].tolist()
    steps = [
        m.step for m in client.get_metric_history(job[1].info.run_id, "by_sparsity/test_after")
    ]
    assert steps == [round(1000 * s) for s in levels["sparsity"]]


def test_run_has_the_data_set_as_its_input(job: tuple[Any, Run, Path]) -> None:
    inputs = {data.tags[0].value: data.dataset for data in job[1].inputs.dataset_inputs}
    assert {context: data.name for context, data in inputs.items()} == {
        "training": "digits",
        "validation": "digits (validation)",
        "testing": "digits (testing)",
    }
    assert len({data.digest for data in inputs.values()}) == 1
    assert json.loads(inputs["training"].profile) == {"train": 200, "val": 144, "test": 359}


def test_run_has_the_contract_artifacts(job: tuple[Any, Run, Path]) -> None:
    _, _, artifacts = job
    found = {str(p.relative_to(artifacts)) for p in artifacts.rglob("*") if p.is_file()}
    checkpoints = {
        f"checkpoints/level_{n:02d}/{f}"
        for n in range(3)
        for f in ("model.safetensors", "structure.json")
    }
    assert found >= checkpoints | {
        "config.json",
        "environment.json",
        "levels.csv",
        "layers.csv",
        "figures/accuracy_curves.png",
        "figures/layer_sparsity.png",
    }
    environment = json.loads((artifacts / "environment.json").read_text("utf-8"))
    assert torch.__version__.startswith(environment["versions"]["torch"])
    assert environment["threads"] == 1


def test_levels_csv_is_what_is_returned(job: tuple[Any, Run, Path]) -> None:
    pd.testing.assert_frame_equal(
        pd.read_csv(job[2] / "levels.csv"), job[0].levels, check_dtype=False
    )


def test_level_0_is_the_base_model_unpruned(job: tuple[Any, Run, Path]) -> None:
    first = job[0].levels.iloc[0]
    base = MlflowClient().get_run(job[1].data.tags["pruneflow.base_run"])
    assert first["test_before"] == first["test_after"] == base.data.metrics["accuracy/test"]
    assert first["train_after"] == base.data.metrics["accuracy/train"]
    saved = load_checkpoint(job[1].info.run_id, 0).state
    for name, tensor in load_checkpoint(base.info.run_id, 0).state.items():
        assert torch.equal(saved[name], tensor)


def test_each_level_removes_half_of_what_is_left(job: tuple[Any, Run, Path]) -> None:
    with (job[2] / "layers.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    prunable = [r for r in rows if r["kind"] in ("Conv2d", "Linear")]
    total = sum(int(r["params"]) for r in prunable if r["level"] == "0")
    masked = [round(0.5 * total)]
    masked.append(masked[0] + round(0.5 * (total - masked[0])))
    for number, count in zip(("1", "2"), masked, strict=True):
        assert sum(int(r["zeros"]) for r in prunable if r["level"] == number) == count
    assert job[0].levels["sparsity"].tolist()[1:] == [count / total for count in masked]


def test_layers_csv_has_every_tensor_in_model_order(job: tuple[Any, Run, Path]) -> None:
    import torchvision

    model = torchvision.models.get_model("shufflenet_v2_x0_5", num_classes=10)
    layers = pd.read_csv(job[2] / "layers.csv")
    for number in range(3):
        rows = layers[layers["level"] == number]
        assert rows["layer"].tolist() == [name for name, _ in model.named_parameters()]
        assert rows["params"].tolist() == [p.numel() for p in model.parameters()]
        left = 1 - rows["zeros"].sum() / rows["params"].sum()
        assert job[0].levels["params_left"][number] == pytest.approx(left, abs=1e-12)


def test_checkpoints_hold_what_layers_csv_counts(job: tuple[Any, Run, Path]) -> None:
    layers = pd.read_csv(job[2] / "layers.csv").query("level == 2").set_index("layer")
    state = load_checkpoint(job[1].info.run_id, 2).state
    counted = {n: int((state[n] == 0).sum()) for n in layers.index}
    assert counted == layers["zeros"].to_dict()


def test_checkpoints_shrink(job: tuple[Any, Run, Path]) -> None:
    sizes = job[0].levels["size_bytes"]
    assert sizes[0] > sizes[1] > sizes[2]


def test_same_configuration_gives_the_same_numbers_from_the_same_base(
    job: tuple[Any, Run, Path],
) -> None:
    again = pruneflow.prune_iterative(iterations=2, resume="never", **SMALL)
    assert again.run_id != job[0].run_id
    pd.testing.assert_frame_equal(
        again.levels.drop(columns=TIMES), job[0].levels.drop(columns=TIMES), check_exact=True
    )
    tags = MlflowClient().get_run(again.run_id).data.tags
    for tag in ("pruneflow.base_run", "pruneflow.fingerprint"):
        assert tags[tag] == job[1].data.tags[tag]


def test_direct_is_iterative_of_one_level(job: tuple[Any, Run, Path]) -> None:
    one = pruneflow.prune_iterative(iterations=1, fraction=0.75, **SMALL)
    direct = pruneflow.prune_direct(target_sparsity=0.75, **SMALL)
    pd.testing.assert_frame_equal(
        one.levels.drop(columns=TIMES), direct.levels.drop(columns=TIMES), check_exact=True
    )


def test_base_epochs_that_are_given_are_kept_to(job: tuple[Any, Run, Path]) -> None:
    other = pruneflow.prune_direct(**(UNTRAINED | {"base_epochs": 2}))
    tags = MlflowClient().get_run(other.run_id).data.tags
    assert tags["pruneflow.base_run"] != job[1].data.tags["pruneflow.base_run"]
    newest = pruneflow.prune_direct(
        **{k: v for k, v in UNTRAINED.items() if k != "base_epochs"}, base_run="newest"
    )
    found = MlflowClient().get_run(newest.run_id).data.tags["pruneflow.base_run"]
    assert found == tags["pruneflow.base_run"]
    # a later base run of other settings changes nothing for those that have theirs
    again = pruneflow.prune_iterative(iterations=2, **SMALL)
    found = MlflowClient().get_run(again.run_id).data.tags
    assert found["pruneflow.base_run"] == job[1].data.tags["pruneflow.base_run"]
    assert found["pruneflow.fingerprint"] == job[1].data.tags["pruneflow.fingerprint"]


def test_a_base_run_of_other_samples_is_refused_with_both_digests(
    job: tuple[Any, Run, Path],
) -> None:
    base = MlflowClient().get_run(job[1].data.tags["pruneflow.base_run"])
    data = base.inputs.dataset_inputs[0]
    given = {k: v for k, v in SMALL.items() if k != "base_epochs"}
    with pytest.raises(InputError, match=f"digest {data.dataset.digest}, not [0-9a-f]{{16}}"):
        pruneflow.prune_direct(**given | {"train_limit": 90}, base_run=base.info.run_id)


def test_without_fine_tuning_before_and_after_are_one(job: tuple[Any, Run, Path]) -> None:
    levels = pruneflow.prune_direct(**(UNTRAINED | {"scope": "layer"})).levels
    assert levels["test_before"].tolist() == levels["test_after"].tolist()
    assert levels["finetune_seconds"].tolist() == [0.0, 0.0]


def test_options_reach_the_masks(job: tuple[Any, Run, Path]) -> None:
    done = pruneflow.prune_direct(
        **UNTRAINED,
        include="conv1*,fc",
        exclude="conv1*",
        prune_bias=False,
        scope="layer",
        criterion="random",
        target_sparsity=0.3,
    )
    folder = MlflowClient().download_artifacts(done.run_id, "layers.csv")
    zeros = pd.read_csv(folder).query("level == 1").set_index("layer")["zeros"]
    assert zeros["fc.weight"] == round(0.3 * 10240)
    assert zeros["fc.bias"] == 0
    assert zeros["conv1.0.weight"] == 0
    assert done.levels["sparsity"][1] == round(0.3 * 10240) / 10240


def test_a_loss_that_is_not_finite_ends_the_run_as_failed(job: tuple[Any, Run, Path]) -> None:
    with pytest.raises(pruneflow.ExperimentError, match=r"(loss|weights) became"):
        pruneflow.prune_direct(**(SMALL | {"learning_rate": 1e30, "optimizer": "sgd", "seed": 0}))
    (failed,) = MlflowClient().search_runs(["0"], "attributes.status = 'FAILED'")
    assert failed.data.tags["pruneflow.stage"] == "prune_direct"
    assert re.search(r"(loss|weights) became", failed.data.tags["pruneflow.failure"])
    assert not MlflowClient().search_runs(["0"], "attributes.status = 'RUNNING'")


def test_bad_input_from_python_is_an_input_error(job: tuple[Any, Run, Path]) -> None:
    with pytest.raises(InputError, match="did you mean model"):
        pruneflow.prune_iterative(modle="alexnet")


def test_a_layer_that_is_emptied_is_named(
    job: tuple[Any, Run, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    done = pruneflow.prune_direct(**UNTRAINED, include="fc", target_sparsity=0.99999)
    assert "nothing is left of fc.weight" in capsys.readouterr().out
    note = MlflowClient().get_run(done.run_id).data.tags["mlflow.note.content"]
    assert "Nothing is left of fc.weight" in note


@pytest.fixture(scope="module")
def gpt2(folder: Path) -> str:
    """A tiny GPT-2, whose layers are no `nn.Linear`: their weights are (inputs, outputs)."""
    from transformers import BertTokenizer, GPT2Config

    path = folder / "gpt2"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "the", "film", "is"]
    vocabulary = {word: number for number, word in enumerate(words)}
    BertTokenizer(vocab=vocabulary, model_max_length=64).save_pretrained(path)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    GPT2Config(vocab_size=len(words), pad_token_id=0, **sizes).save_pretrained(path)
    return f"hf:{path}"


def test_matrix_products_of_any_library_are_pruned_and_counted(
    gpt2: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done = pruneflow.prune_direct(
        model=gpt2,
        weights="none",
        dataset="reviews",
        train_limit=40,
        base_epochs=1,
        finetune_epochs=1,
        threads=1,
        precision="fp32",
        target_sparsity=0.9,
        scope="layer",
        exclude="transformer.wpe",
    )
    layers = pd.read_csv(MlflowClient().download_artifacts(done.run_id, "layers.csv"))
    rows = layers[(layers["kind"] == "Conv1D") & layers["layer"].str.endswith("weight")]
    assert len(rows) == 2 * 2 * 4
    assert rows.query("level == 1")["sparsity"].tolist() == pytest.approx([0.9] * 8, abs=0.01)
    products = rows.query("level == 0")["params"].sum()
    tokens, rest = divmod(done.levels["macs"][0], products + 16 * 2)  # and the head
    assert (tokens > 1, rest) == (True, 0)
    assert done.levels["macs_left"][1] == pytest.approx(0.1, abs=0.02)
    output = capsys.readouterr().out
    note = MlflowClient().get_run(done.run_id).data.tags["mlflow.note.content"]
    share = 100 * 64 * 16 / layers.query("level == 0")["params"].sum()
    assert f"not pruned: {share:.3g} % of the parameters: Embedding {share:.3g} %" in output
    assert "Not pruned: " in note


def test_channels_of_layers_that_tracing_does_not_know_are_refused_with_the_reason(
    gpt2: str,
) -> None:
    with pytest.raises(InputError, match="no channels can be removed from this model: "):
        pruneflow.prune_direct(
            model=gpt2, weights="none", dataset="reviews", train_limit=40, granularity="channel"
        )


def test_accuracy_on_the_training_set_is_of_a_sample_of_it(
    job: tuple[pruneflow.FinishedRun, Run, Path],
) -> None:
    base = job[1].data.tags["pruneflow.base_run"]
    few = {k: v for k, v in UNTRAINED.items() if k != "base_epochs"}
    few |= {"iterations": 2, "base_run": base}
    sampled = pruneflow.prune_iterative(**few, train_eval_samples=17)
    every = pruneflow.prune_iterative(**few)
    correct = 17 * sampled.levels[["train_before", "train_after"]]
    assert ((correct - correct.round()).abs() < 1e-9).all(axis=None)
    assert sampled.levels["train_after"].tolist() != every.levels["train_after"].tolist()
    same = ["test_before", "test_after", "val_after", "sparsity"]
    pd.testing.assert_frame_equal(sampled.levels[same], every.levels[same])
