"""Looking changes nothing: whatever runs, traces, exports, counts or times a model."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pruneflow.inference import engines, forms, latency, profile, sparse
from pruneflow.pruning import compaction, cost, statistics, tracing
from pruneflow.workloads import models, training
from pruneflow.workloads.machine import Machine
from pruneflow.workloads.splits import Split
from pruneflow.workloads.training import Recipe

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))
MACHINE = Machine("cpu", "fp32", 1)
RECIPE = Recipe(1, 4, 0.1, "constant", "sgd", 0.0, 8, 1)
DATA = Split(
    np.random.default_rng(0).integers(0, 255, (12, 8, 8, 3), dtype=np.uint8),
    np.zeros(12, dtype=np.int64),
)


class Counted(nn.Module):
    """Counts its calls in a buffer, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return x


def network(training_mode: bool) -> nn.Sequential:
    """With all that a pass may change, submodules of both modes, and frozen parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.Dropout(0.5)),
        Counted(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(5, 4),
    ).train(training_mode)
    inner = model[3]
    assert isinstance(inner, nn.Sequential)
    inner.train(not training_mode)
    inner[2].train(training_mode)
    model[1].weight.requires_grad_(False)  # type: ignore[union-attr]
    model[8].bias.requires_grad_(False)  # type: ignore[union-attr]
    with torch.no_grad():
        model[0].weight[1] = 0  # type: ignore[index, operator]
    return model


def run(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        return models.logits(model, IMAGE)


def forward(model: nn.Module) -> Tensor:
    return models.logits(model, IMAGE.to(next(model.parameters()).dtype))


def groups(model: nn.Module) -> list[Any]:
    return tracing.find_groups(model, forward, outputs=["8"]).groups


def level(model: nn.Module) -> forms.PrunedLevel:
    found = groups(network(False))
    kept = {found[0].name: torch.arange(found[0].units) != 1}
    return forms.PrunedLevel(model, model, False, found, kept, False, "cpu")


def interleaved(model: nn.Module) -> object:
    with models.looking(model):
        calls = {"a": engines.eager(model, IMAGE, 1)}
        return latency.interleaved(calls, latency.cpu_seconds, 3, 0.01)


def traced(model: nn.Module) -> object:
    with models.looking(model):
        return latency.working_bytes(engines.eager(model, IMAGE, 1), "cpu")


def refused(model: nn.Module) -> None:
    def fails(module: nn.Module, inputs: object) -> None:
        raise RuntimeError("no")

    handle = model[7].register_forward_pre_hook(fails)  # type: ignore[index]
    with pytest.raises(Exception, match="no"):
        models.check_image_size(model, "it", 8)
    handle.remove()


def calibrated(model: nn.Module) -> None:
    needs = ("gradient", "squared_gradient", "flow_gradient", "input_norm", "output_zeros")
    labels = torch.zeros(len(IMAGE), dtype=torch.int64)
    names = [name for name, _ in model.named_parameters()]
    statistics.collect(model, names, lambda: [(IMAGE, labels)], needs)


def recalibrated(model: nn.Module) -> None:
    training.recalibrate(copy.deepcopy(model), DATA, RECIPE, MACHINE)


def seen_axes(model: nn.Module) -> None:
    assert statistics.input_axes(model, forward) == {"0.weight": 1, "3.0.weight": 1, "8.weight": 1}


def one_empty(model: nn.Module) -> object:
    return compaction.emptied(model, groups(model), forward)


LOOKS: dict[str, Callable[[Any], object]] = {
    "eager": lambda model: interleaved(model),
    "onnxruntime": lambda model: engines.onnxruntime(model, IMAGE, 1)(),
    "openvino": lambda model: engines.openvino(model, IMAGE, 1)(),
    "working_bytes": traced,
    "layer_times": lambda model: profile.layer_times(model, run, "cpu"),
    "masked": lambda model: forms.FORMS["masked"](level(model), run, "1"),
    "compact": lambda model: forms.FORMS["compact"](level(model), run, "1"),
    "sparse": lambda model: sparse.sparse(model, run, batch="1"),
    "find_groups": groups,
    "emptied": one_empty,
    "without_empty_filters": lambda model: compaction.without_empty_filters(model, groups(model)),
    "structure": compaction.structure,
    "positions": lambda model: cost.macs(model, cost.positions(model, IMAGE)),
    "check_image_size": lambda model: models.check_image_size(model, "it", 8),
    "check_image_size that fails": refused,
    "accuracy": lambda model: training.accuracy(model, DATA, MACHINE, image_size=8, batch_size=4),
    "calibrated": calibrated,
    "recalibrated copy": recalibrated,
    "input_axes": seen_axes,
}


def state(model: nn.Module) -> dict[str, Any]:
    """All that a look must not change."""
    return {
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": {
            name: (len(module._forward_hooks), len(module._forward_pre_hooks))
            for name, module in model.named_modules()
        },
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "places": {n: t.data_ptr() for n, t in model.state_dict(keep_vars=True).items()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "grad": {name: p.grad is None for name, p in model.named_parameters()},
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),  # type: ignore[index, union-attr]
        "python": random.getstate(),
        "threads": torch.get_num_threads(),
        "grad mode": torch.is_grad_enabled(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
    }


@pytest.mark.parametrize("training_mode", [True, False])
@pytest.mark.parametrize("name", LOOKS)
def test_a_look_leaves_everything_as_it_was(name: str, training_mode: bool) -> None:
    if (package := engines.missing(name)) is not None:
        pytest.skip(f"{package} is not installed")
    model = network(training_mode)
    before = state(model)
    LOOKS[name](model)
    after = state(model)
    for key in ("tensors",):
        assert before[key].keys() == after[key].keys()
        for tensor, value in before[key].items():
            assert torch.equal(value, after[key][tensor]), f"{tensor} has changed"
    assert torch.equal(before.pop("torch"), after.pop("torch")), "the generator has moved on"
    del before["tensors"], after["tensors"]
    assert after == before


@pytest.mark.parametrize("name", [name for name in engines.ENGINES if name != "eager"])
def test_an_engine_runs_a_model_in_eval_mode_whatever_mode_it_is_in(name: str) -> None:
    if engines.missing(name) is not None:
        pytest.skip("not installed")
    logits = engines.ENGINES[name](network(True), IMAGE, 1)()
    torch.testing.assert_close(logits, run(network(False).eval()), rtol=1e-4, atol=1e-5)
