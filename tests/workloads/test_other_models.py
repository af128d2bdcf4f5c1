"""Tests of models that are not listed: timm's, Hugging Face's of images, and somebody's own."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, ResNetConfig, ViTConfig

import pruneflow
from pruneflow.config import FinetuneConfig
from pruneflow.errors import InputError
from pruneflow.resolution import resolve
from pruneflow.stages.experiment import prepare
from pruneflow.workloads import batches, factories, models, other_models
from pruneflow.workloads.splits import MEAN, STD

OWN = """
import torch
from torch import nn

class Net(nn.Module):
    # the head is made first: its place does not say what it is
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Linear(16, classes)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU()
        )
    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))

class Words(nn.Module):
    def __init__(self, classes, vocab_size):
        super().__init__()
        self.table = nn.Embedding(vocab_size, 8)
        self.hidden = nn.Linear(8, 16)
        self.head = nn.Linear(16, classes)
    def forward(self, input_ids, attention_mask):
        mask = attention_mask[..., None]
        mean = (self.table(input_ids) * mask).sum(1) / mask.sum(1)
        return self.head(self.hidden(mean).relu())

class Softened(Net):
    def forward(self, x):
        return super().forward(x).log_softmax(1)

class Drawn(Net):
    def __init__(self, classes):
        super().__init__(classes)
        self.shift = torch.rand(())
    def forward(self, x):
        return super().forward(x) + self.shift

class Growing(Net):
    made = 0
    def __init__(self, classes):
        super().__init__(classes)
        Growing.made += 1
        self.extra = nn.Linear(1, Growing.made)

class Mixed(Net):
    def __init__(self, classes):
        super().__init__(classes)
        self.mix = nn.Parameter(torch.eye(16))
    def forward(self, x):
        return self.head(torch.einsum("bi,io->bo", self.body(x).mean((2, 3)), self.mix))

class Standardised(Net):
    def __init__(self, classes):
        super().__init__(classes)
        nn.utils.parametrizations.weight_norm(self.body[3])

ONCE = Net(10)
def once(classes): return ONCE
def nothing(classes): return None
def empty(classes): return nn.Sequential(nn.Flatten())
def lazy(classes): return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))
def fewer(classes): return Net(classes - 1)
def several(classes):
    class Pair(Net):
        def forward(self, x):
            y = super().forward(x)
            return (y, y) if self.training else y
    return Pair(classes)
def infinite(classes):
    net = Net(classes)
    net.head.bias.data.fill_(float("inf"))
    return net
"""
SMALL = {
    "dataset": "digits",
    "train_limit": 60,
    "train_eval_samples": 20,
    "image_size": 16,
    "base_epochs": 1,
    "iterations": 1,
    "device": "cpu",
    "threads": 1,
}


@pytest.fixture
def own(store: str, tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "own_net.py"
    file.write_text(OWN)
    yield file
    sys.modules.pop("own_net", None)


def same_when_loaded(run: Any, level: int) -> Any:
    model = pruneflow.load_model(run.run_id, level)
    kept = sum(int(p.count_nonzero()) for p in model.parameters())
    assert kept > 0
    return model


@pytest.mark.parametrize(
    ("name", "granularity"),
    [("own_net.py:Net", "weight"), ("own_net:Net", "channel"), ("own_net.py:Softened", "channel")],
)
def test_a_model_of_ones_own_is_pruned_saved_and_loaded(
    own: Path, name: str, granularity: str
) -> None:
    form = {"form": "compact"} if granularity == "channel" else {}
    run = pruneflow.prune_iterative(model=name, granularity=granularity, **SMALL, **form)
    model = same_when_loaded(run, 1)
    assert type(model).__name__ == name.rpartition(":")[2]
    assert run.levels["params_left"].iloc[-1] < 1
    assert model.head.out_features == 10  # it makes the logits, whatever its place
    again = pruneflow.prune_iterative(model=name, granularity=granularity, **SMALL, **form)
    assert again.run_id == run.run_id  # the same has been done
    own.write_text(OWN + "\n# another\n")
    if name.startswith("own_net.py"):  # an imported module stays as it was imported
        changed = pruneflow.prune_iterative(model=name, granularity=granularity, **SMALL, **form)
        assert changed.run_id != run.run_id


def test_a_model_of_ones_own_reads_texts(own: Path) -> None:
    given = SMALL | {"dataset": "reviews", "image_size": None}
    run = pruneflow.prune_direct(model="own_net.py:Words", granularity="channel", **given)
    assert same_when_loaded(run, 1).hidden.in_features == 8
    timed = pruneflow.benchmark_latency(run=run.run_id, batch_sizes=1, rounds=3, seconds=0.1)
    assert set(timed.latencies["form"]) >= {"dense", "compact"}


def test_the_callable_itself_can_be_given(own: Path) -> None:
    net = factories.load_factory("model", "own_net:Net")
    run = pruneflow.finetune(model=net, epochs=0, train_limit=60)
    params = MlflowClient().get_run(run.run_id).data.params
    assert params["cfg/model"] == "own_net:Net"


def test_loading_says_what_to_import_when_it_is_not_there(own: Path) -> None:
    run = pruneflow.finetune(model="own_net.py:Net", epochs=0, train_limit=60)
    own.unlink()
    with pytest.raises(InputError, match=r"model='own_net.py:Net': there is no file own_net.py"):
        pruneflow.load_model(run.run_id)


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("once", "its factory returns the same module again"),
        ("Drawn", "with the same state dict it computes something else"),
        ("Growing", "another call of its factory makes another model"),
        ("nothing", "returned NoneType: it should return a torch.nn.Module"),
        ("empty", "has no parameters"),
        ("lazy", "has lazy layers"),
        ("fewer", "logits of shape (2, 9), not (2, 10)"),
        ("several", "cannot classify these images"),
        ("infinite", "its logits are not finite"),
        ("Words", "raised TypeError"),
    ],
)
def test_a_model_that_will_not_do_is_refused_before_a_run_is_opened(
    own: Path, factory: str, reason: str
) -> None:
    with pytest.raises(InputError) as error:
        pruneflow.prune_iterative(model=f"own_net.py:{factory}", **SMALL)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert MlflowClient().search_runs(["0"]) == []


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"weights": "pretrained"}, "weights=pretrained is not valid for model=own_net.py:Net"),
        ({"dataset": "reviews", "image_size": None}, "cannot classify these texts"),
    ],
)
def test_what_does_not_go_with_a_factory_is_one_line(
    own: Path, given: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InputError) as error:
        pruneflow.finetune(model="own_net.py:Net", train_limit=60, **given)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"model": "own_net.py:Mixed", "criterion": "wanda"}, "what is multiplied by mix: "),
        ({"model": "own_net.py:Standardised", "criterion": "wanda"}, "multiplied by body.3."),
        (
            {"model": "own_net.py:Words", "criterion": "synflow", "dataset": "reviews"}
            | {"image_size": None},
            "criterion=synflow cannot be computed of model=own_net.py:Words",
        ),
    ],
)
def test_a_criterion_that_cannot_see_its_statistics_is_refused_before_training(
    own: Path, given: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InputError) as error:
        pruneflow.prune_direct(**(SMALL | given | {"iterations": 1}))
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert MlflowClient().search_runs(["0"]) == []


# ------------------------------------------------------------------------ timm and Hugging Face


def test_a_model_of_timm_is_pruned_saved_and_loaded(own: Path) -> None:
    given = SMALL | {"image_size": 32}
    run = pruneflow.prune_direct(model="timm:test_resnet", granularity="channel", **given)
    assert type(same_when_loaded(run, 1)).__module__.startswith("timm.")


def test_an_unknown_model_of_timm_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown timm model 'resnet18x': did you mean resnet18"):
        models.check("timm:resnet18x")


def test_timm_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_models.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"needs timm: pip install 'pruneflow\[timm\]'"):
        models.check("timm:resnet18")


TINY: dict[str, Any] = {
    "vit": ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
    ),
    "resnet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
}


@pytest.mark.parametrize(("kind", "weights"), [("vit", "pretrained"), ("resnet", "none")])
def test_an_image_classifier_of_hugging_face_is_pruned_saved_and_loaded(
    own: Path, kind: str, weights: str
) -> None:
    folder = own.parent / kind
    torch.manual_seed(1)
    published = AutoModelForImageClassification.from_config(TINY[kind])
    published.save_pretrained(folder)
    built = models.build(f"hf:{folder}", 10, weights=weights)
    entry = next(n for n, p in published.named_parameters() if p.dim() == 4)
    same = torch.equal(built.get_parameter(entry), published.get_parameter(entry))
    assert same is (weights == "pretrained")
    run = pruneflow.prune_direct(model=f"hf:{folder}", weights=weights, **SMALL)
    assert type(same_when_loaded(run, 1)) is type(published)


@pytest.mark.parametrize("name", ["hf:{}", "timm:test_resnet", "own_net.py:Net"])
def test_images_are_normalised_as_the_published_model_expects(own: Path, name: str) -> None:
    folder = own.parent / "published"
    AutoModelForImageClassification.from_config(TINY["resnet"]).save_pretrained(folder)
    stated = {"image_mean": [0.5, 0.25, 0.125], "image_std": [0.5, 0.4, 0.3]}
    (folder / "preprocessor_config.json").write_text(json.dumps(stated))
    name = name.format(folder)
    given = {k: v for k, v in SMALL.items() if k not in ("base_epochs", "iterations")}
    config = resolve(FinetuneConfig, given | {"model": name, "epochs": 0})
    experiment, _ = prepare(config, load=True)
    train = experiment.data.train
    images, _ = batches.to_model(train, np.arange(4), train.samples.shape[1], experiment.machine)
    mean, deviation = {
        "hf:": ((0.5, 0.25, 0.125), (0.5, 0.4, 0.3)),
        "own": (MEAN, STD),
        "tim": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    }[name[:3]]
    pixels = torch.from_numpy(train.samples[:4]).permute(0, 3, 1, 2) / 255
    for colour in range(3):
        expected = (pixels[:, colour] - mean[colour]) / deviation[colour]
        torch.testing.assert_close(images[:, colour], expected)


@pytest.mark.parametrize(
    ("change", "reason"),
    [("other shape", "is missing or of another shape"), ("nan", "hold NaN or infinite values")],
)
def test_weights_of_hugging_face_that_do_not_fit_are_refused(
    own: Path, change: str, reason: str
) -> None:
    folder = own.parent / "resnet"
    AutoModelForImageClassification.from_config(TINY["resnet"]).save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    name = next(n for n, tensor in state.items() if tensor.dim() == 4)
    state[name] = state[name][:1].clone() if change == "other shape" else state[name] * math.nan
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=reason):
        models.build(f"hf:{folder}", 10, weights="pretrained")


def test_a_folder_that_is_no_image_classifier_is_one_line(own: Path) -> None:
    (own.parent / "odd").mkdir()
    (own.parent / "odd" / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    with pytest.raises(InputError, match="cannot be used as a classifier of images"):
        models.build(f"hf:{own.parent / 'odd'}", 10)


def test_the_documented_own_model_and_data_set_go_through_every_training_stage(
    root: Path, store: str, tmp_path: Path
) -> None:
    section = (root / "docs" / "your-model-and-data.md").read_text("utf-8")
    (tmp_path / "mine.py").write_text(section.split("```python\n")[1].split("```")[0])
    given = {"model": "mine.py:Net", "dataset": "mine.py:stripes", "image_size": 16}
    given |= {"base_epochs": 2, "device": "cpu", "threads": 1, "learning_rate": 0.01}
    run = pruneflow.prune_iterative(**given, iterations=2, granularity="channel", form="compact")
    assert run.levels["macs_left"].iloc[-1] < 0.8
    assert len(pruneflow.prune_gradual(**given, iterations=2).levels) == 2
    del given["learning_rate"]
    measured = pruneflow.sensitivity(**given, fractions=0.5)
    assert len(pruneflow.query.sensitivity(run_ids=[measured.run_id])) > 0
    timed = pruneflow.benchmark_latency(run=run.run_id, batch_sizes=1, rounds=3, seconds=0.1)
    assert set(timed.latencies["form"]) >= {"dense", "compact"}
    assert pruneflow.write_report(output_dir=str(tmp_path / "report")).run_id
