"""export: files that give a level's logits, and say what they take; bad input is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnxruntime as ort
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
)

import pruneflow
from pruneflow.errors import ExperimentError, InputError
from pruneflow.inference import FORMATS, exporting
from pruneflow.stages import export
from pruneflow.workloads import models

SMALL = {"base_epochs": 1, "train_limit": 60, "finetune_epochs": 0, "threads": 1, "device": "cpu"}
NET = """
from torch import nn

def Net(classes):
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, 2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    )
"""
KINDS: dict[str, dict[str, Any]] = {
    "weights": {"model": "net.py:Net", "dataset": "digits"},
    "channels": {"model": "net.py:Net", "dataset": "digits", "granularity": "channel"},
    "removed": {
        "model": "net.py:Net", "dataset": "digits", "granularity": "channel", "form": "compact",
    },
    "encoder": {"model": "bert"},
    "encoder's channels": {"model": "bert", "granularity": "channel"},
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, str]:
    (folder / "net.py").write_text(NET, "utf-8")
    return {
        kind: pruneflow.prune_iterative(iterations=2, fraction=0.3, **SMALL, **given).run_id
        for kind, given in KINDS.items()
    }


def run_files(name: str, folder: Path, inputs: Any, model: torch.nn.Module) -> torch.Tensor:
    """Logits of the files, read as somebody else would read them."""
    named = {"input": inputs} if isinstance(inputs, torch.Tensor) else inputs
    if name == "onnx":
        session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        taken = {node.name for node in session.get_inputs()}
        feed = {n: t.contiguous().numpy() for n, t in named.items() if n in taken}
        return torch.from_numpy(session.run(["logits"], feed)[0])
    if name == "torch_export":
        return torch.export.load(folder / "model.pt2").module()(*named.values())
    if name == "huggingface":
        again = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        assert len(AutoTokenizer.from_pretrained(folder)) > 5
        assert again.config.id2label == {0: "negative", 1: "positive"}
        return models.logits(again, inputs)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return models.logits(model, inputs)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_files_give_the_logits_of_the_saved_model(
    runs: dict[str, str], tmp_path: Path, kind: str, name: str
) -> None:
    given = {"run": runs[kind], "format": name, "output_dir": str(tmp_path / "out")}
    if name == "huggingface" and kind != "encoder":
        if kind == "encoder's channels":
            reason = "sizes differ from layer to layer, .*: pass form=masked"
            with pytest.raises(InputError, match=reason):
                pruneflow.export(**given, form="compact")
        else:
            with pytest.raises(InputError, match="no model of transformers: pass format="):
                pruneflow.export(**given)
        assert not (tmp_path / "out").exists()
        if kind != "encoder's channels":
            return
    done = pruneflow.export(**given)
    about = json.loads((tmp_path / "out" / export.ABOUT).read_text("utf-8"))
    model = pruneflow.load_model(runs[kind], 2)
    size = 16 if "enc" in kind else about["takes"]["input"][2]
    structure = {"builder": "transformers", "config": {"vocab_size": 50}} if "enc" in kind else {}
    with torch.inference_mode():
        for batch in (1, 7):
            inputs = models.random_inputs(structure, batch, size=size, device="cpu")
            expected = models.logits(model, inputs)
            compact = pruneflow.load_model(runs[kind], 2)
            if name == "safetensors" and about["form"] == "compact" and kind != "removed":
                continue  # shapes of its own: what `takes` says of them is checked by the stage
            got = run_files(name, tmp_path / "out", inputs, compact)
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    assert about["difference"] < 1e-3
    assert (about["run"], about["level"], about["format"]) == (runs[kind], 2, name)
    assert len(about["labels"]) == (2 if "encoder" in kind else 10)
    files = {path.path for path in MlflowClient().list_artifacts(done.run_id)}
    assert files >= {path.name for path in (tmp_path / "out").iterdir()}
    metrics = MlflowClient().get_run(done.run_id).data.metrics
    assert metrics["export/difference"] == about["difference"]


def test_the_best_level_is_chosen_on_validation(runs: dict[str, str], tmp_path: Path) -> None:
    levels = pruneflow.query.levels(run_ids=[runs["weights"]])

    def chosen(best: str) -> int:
        pruneflow.export(run=runs["weights"], best=best, output_dir=str(tmp_path))
        return int(json.loads((tmp_path / export.ABOUT).read_text("utf-8"))["level"])

    lost = levels["val_after"].iloc[0] - levels["val_after"]
    fits = levels[lost <= 0.05]
    assert chosen("accuracy:0.05") == fits["level"][fits["size_bytes"].idxmin()]
    assert chosen("accuracy:0.99") == 2
    assert chosen(f"params:{levels['params_left'].iloc[2] + 1e-6}") == 2
    with pytest.raises(InputError, match=r"fits no level of run .* the least that it has is macs:"):
        chosen("macs:0.01")


def test_what_was_exported_is_registered(runs: dict[str, str], tmp_path: Path) -> None:
    given = {"run": runs["weights"], "output_dir": str(tmp_path), "register": "digits"}
    pruneflow.export(level=1, alias="champion", **given)
    version = MlflowClient().get_model_version_by_alias("digits", "champion")
    assert version.run_id == runs["weights"]
    images = np.zeros((1, 16, 16, 3), dtype=np.uint8)
    assert mlflow.pyfunc.load_model("models:/digits@champion").predict(images).shape == (1, 10)


def test_an_alias_stays_where_it_was_when_its_answer_is_lost(
    runs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"run": runs["weights"], "output_dir": str(tmp_path), "register": "kept", "alias": "a"}
    pruneflow.export(level=1, **given)
    real = MlflowClient.set_registered_model_alias
    answers = iter([False, True])

    def lost(*args: Any) -> None:
        real(*args)
        if not next(answers):
            raise MlflowException("attempt to write a readonly database")

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", lost)
    with pytest.raises(InputError, match="nothing is registered"):
        pruneflow.export(level=2, **given)
    client = MlflowClient()
    assert int(client.get_model_version_by_alias("kept", "a").version) == 1
    assert [int(v.version) for v in client.search_model_versions("name = 'kept'")] == [1]


def test_a_model_that_is_not_whole_is_not_registered(
    runs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient()
    half = client.create_logged_model("0", source_run_id="r", tags={"pruneflow.level": "1"})
    monkeypatch.setattr(MlflowClient, "search_logged_models", lambda *_, **__: [half])
    with pytest.raises(InputError, match="has no logged model of level 1"):
        pruneflow.export(
            run=runs["weights"], level=1, register="x", output_dir=str(tmp_path / "out")
        )
    assert not (tmp_path / "out").exists()


def test_what_an_earlier_export_left_is_replaced(runs: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for kind, name in (("encoder", "huggingface"), ("weights", "onnx"), ("encoder", "safetensors")):
        pruneflow.export(run=runs[kind], format=name, output_dir=str(tmp_path))
        about = json.loads((tmp_path / export.ABOUT).read_text("utf-8"))
        there = {path.name for path in tmp_path.iterdir()}
        assert there == {*about["files"], export.ABOUT, "mine.txt"}
    assert there == {"model.safetensors", export.ABOUT, "mine.txt"}


@pytest.mark.parametrize("outputs", [1, 3, 5, (7, 2), (4, 6)])
def test_pooling_to_any_size_is_exported(tmp_path: Path, outputs: Any) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 2, 3), torch.nn.AdaptiveAvgPool2d(outputs), torch.nn.Flatten()
    ).eval()
    call = exporting.write("onnx", model, torch.randn(2, 3, 8, 10), {}, tmp_path)
    images = torch.randn(5, 3, 8, 10)
    torch.testing.assert_close(call(images), model(images).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["onnx", "torch_export"])
def test_an_encoder_of_few_positions_is_exported(folder: Path, tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=24, num_labels=2,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    structure = {"builder": "transformers", "config": {"vocab_size": 30}}
    inputs = models.random_inputs(structure, 2, size=12, device="cpu")
    call = exporting.write(name, model, inputs, structure, tmp_path)
    for batch, length in ((1, 24), (3, 7)):
        others = models.random_inputs(structure, batch, size=length, device="cpu")
        with torch.inference_mode():
            torch.testing.assert_close(
                call(others), models.logits(model, others), rtol=1e-3, atol=1e-4
            )


@pytest.mark.parametrize("call", ["create_model_version", "set_registered_model_alias"])
def test_nothing_is_half_registered(
    runs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise MlflowException("attempt to write a readonly database")

    monkeypatch.setattr(MlflowClient, call, refused)
    with pytest.raises(InputError, match="register='new' was refused, and nothing is registered"):
        pruneflow.export(
            run=runs["weights"], output_dir=str(tmp_path), register="new", alias="best"
        )
    assert not MlflowClient().search_registered_models("name = 'new'")


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_files_that_compute_something_else_are_not_kept(
    runs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    real = exporting.FORMATS["safetensors"]

    def wrong(*given: Any) -> Any:
        call = real(*given)
        return lambda inputs: call(inputs) * (factor if len(inputs) == 5 else 1)

    monkeypatch.setitem(exporting.FORMATS, "safetensors", wrong)
    with pytest.raises(ExperimentError, match="give other logits than the saved model"):
        pruneflow.export(run=runs["weights"], output_dir=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"level": 9}, "level=9 is not valid: run .* has the levels 0 to 2"),
        ({"level": 1, "best": "macs:0.5"}, "best=macs:0.5 and level both say which level"),
        ({"best": "speed:1"}, "best='speed:1' is not valid: it should be accuracy:"),
        ({"best": "macs:2"}, "best='macs:2' is not valid"),
        ({"alias": "a"}, "alias=a has no effect without register"),
        ({"format": "onnz"}, "unknown format 'onnz': did you mean onnx"),
        ({"form": "sparse"}, "form='sparse' is not valid"),
        ({"run": "nothing"}, "run='nothing' does not exist"),
        ({"output_dir": "/dev/null/x"}, "output_dir='/dev/null/x' is not valid"),
        ({"register": "a/b"}, "register='a/b' was refused"),
    ],
)
def test_bad_input_is_one_line(
    runs: dict[str, str], tmp_path: Path, given: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InputError, match=reason) as error:
        pruneflow.export(**({"run": runs["weights"], "output_dir": str(tmp_path)} | given))
    assert "\n" not in str(error.value)


def test_a_compact_run_has_no_masked_form(runs: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="form=masked is not to be had of this level: the run kept"
    ):
        pruneflow.export(run=runs["removed"], form="masked", output_dir=str(tmp_path))


def test_a_missing_package_is_named(
    runs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"format=onnx needs the package onnxruntime: pip install"):
        pruneflow.export(run=runs["weights"], format="onnx", output_dir=str(tmp_path))
