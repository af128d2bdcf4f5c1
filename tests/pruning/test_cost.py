"""MACs, against hand counts and against PyTorch's own counter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from pruneflow.pruning.cost import macs, positions
from pruneflow.pruning.prunable import prunable_parameters


def counted_by_torch(model: nn.Module, sample: Tensor) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(sample)
    return int(counter.get_total_flops()) // 2


def test_macs_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 10))
    uses = positions(model, torch.zeros(1, 3, 8, 8))
    assert uses == {"0.weight": 36, "2.weight": 1}
    assert macs(model, uses)[0] == 4 * 3 * 3 * 3 * 36 + 144 * 10


def test_zeros_are_left_out_of_the_second_count_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 2), nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]]))  # half: 4 positions
        model[2].weight.fill_(1.0)
        model[2].weight[0, 0] = 0.0  # one of eight
        model[2].bias.zero_()
    uses = positions(model, torch.zeros(1, 1, 3, 3))
    assert macs(model, uses) == (4 * 4 + 8, 2 * 4 + 7)


BUILD: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "grouped": (
        lambda: nn.Conv2d(6, 8, (3, 5), stride=(2, 1), padding=2, groups=2),
        (1, 6, 13, 17),
    ),
    "depthwise": (
        lambda: nn.Conv2d(4, 4, 3, dilation=2, groups=4, bias=False),
        (1, 4, 11, 9),
    ),
    "conv1d": (lambda: nn.Conv1d(3, 5, 4, stride=3), (1, 3, 20)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (1, 2, 4, 5, 6)),
    "linear on a sequence": (lambda: nn.Linear(6, 5), (1, 7, 6)),
    "squeezenet1_1": (lambda: torchvision.models.squeezenet1_1(num_classes=10), (1, 3, 64, 64)),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), (1, 3, 32, 32)),
    "mobilenet": (lambda: torchvision.models.mobilenet_v3_small(num_classes=10), (1, 3, 32, 32)),
}


@pytest.mark.parametrize("name", sorted(BUILD))
def test_dense_macs_are_half_of_pytorchs_flops(name: str) -> None:
    build, shape = BUILD[name]
    model, sample = build(), torch.randn(shape)
    expected = counted_by_torch(model, sample)
    assert expected > 0
    assert macs(model, positions(model, sample))[0] == expected


def test_a_layer_that_is_called_twice_counts_twice() -> None:
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    sample = torch.zeros(1, 3)
    assert macs(model, positions(model, sample))[0] == counted_by_torch(model, sample) == 18


ATTENTION: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: torchvision.models.VisionTransformer(8, 4, 1, 2, 8, 16, num_classes=3),
    "swin": lambda: torchvision.models.SwinTransformer(
        [2, 2], 8, [1, 1], [2, 2], [2, 2], num_classes=3
    ),
}


@pytest.mark.parametrize("name", sorted(ATTENTION))
def test_every_prunable_weight_of_an_attention_model_is_counted(name: str) -> None:
    model = ATTENTION[name]()
    prunable = prunable_parameters(model, include=(), exclude=(), biases=False)
    assert prunable.keys() - positions(model, torch.zeros(1, 3, 8, 8)).keys() == set()


class Multiplies(nn.Module):
    """A layer of no library: what its forward pass does with its parameters."""

    def __init__(self, forward: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        for number, shape in enumerate(shapes):
            self.register_parameter(f"w{number}", nn.Parameter(torch.randn(shape)))
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(x, *self.parameters())


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.cell = kind(5, 7, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.cell(x)[0]
        return output


# Layers of every kind, the shape of their input, and the MACs of each weight, by hand.
X = (1, 4, 5)  # four vectors of five numbers
PRODUCTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, int]]] = {
    "rows are inputs": (lambda: Conv1D(3, 5), X, {"weight": 60}),
    "transposed convolution": (
        lambda: nn.ConvTranspose2d(2, 3, 3, stride=2), (1, 2, 4, 4), {"weight": 16 * 54},
    ),
    "grouped transposed convolution": (
        lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), (1, 4, 5), {"weight": 5 * 36},
    ),
    "lstm": (
        lambda: Recurrent(nn.LSTM), X,
        {"cell.weight_ih_l0": 4 * 28 * 5, "cell.weight_hh_l0": 4 * 28 * 7},
    ),
    "gru": (
        lambda: Recurrent(nn.GRU), X,
        {"cell.weight_ih_l0": 4 * 21 * 5, "cell.weight_hh_l0": 4 * 21 * 7},
    ),
    "parameter at": (lambda: Multiplies(lambda x, w: x @ w, (5, 3)), X, {"w0": 60}),
    "parameter first": (lambda: Multiplies(lambda x, w: w @ x, (3, 4)), X, {"w0": 60}),
    "a vector": (lambda: Multiplies(lambda x, w: w @ x[0, 0], (3, 5)), X, {"w0": 15}),
    "einsum": (
        lambda: Multiplies(lambda x, w: torch.einsum("bti,hoi->btho", x, w), (2, 3, 5)), X,
        {"w0": 120},
    ),
    "copied": (
        lambda: Multiplies(lambda x, w: x @ w.t().contiguous().double().float(), (3, 5)), X,
        {"w0": 60},
    ),
    "fused from two": (
        lambda: Multiplies(lambda x, a, b: x @ torch.cat([a, b]).t(), (3, 5), (2, 5)), X,
        {"w0": 60, "w1": 40},
    ),
    "sliced": (
        lambda: Multiplies(lambda x, w: torch.cat([x @ w[:2].t(), x @ w[2:].t()], -1), (3, 5)), X,
        {"w0": 60},
    ),
    "expert by number": (
        lambda: Multiplies(lambda x, w: x @ w[1], (3, 5, 2)), X, {"w0": 40},
    ),
    "experts by choice": (
        lambda: Multiplies(
            lambda x, w: torch.bmm(x[0, :, None], w[torch.tensor([2, 0, 0, 1])]), (3, 5, 2)
        ), X, {"w0": 40},
    ),
    "standardised": (
        lambda: Multiplies(lambda x, w: x @ ((w - w.mean()) / w.std()).t(), (3, 5)), X, {"w0": 60},
    ),
    "weight norm": (
        lambda: weight_norm(nn.Linear(5, 3)), X, {"parametrizations.weight.original1": 60},
    ),
    "spectral norm": (  # and what it finds the norm with, 15 and 15
        lambda: spectral_norm(nn.Linear(5, 3)), X, {"parametrizations.weight.original": 60},
    ),
    "looked up": (
        lambda: Multiplies(lambda x, e, w: e[torch.tensor([1, 0])] @ w, (4, 5), (5, 3)), X,
        {"w1": 30},
    ),
    "added": (lambda: Multiplies(lambda x, e, w: (x + e) @ w, (4, 5), (5, 3)), X, {"w1": 60}),
    "attention without weights": (lambda: Multiplies(lambda x: x @ x.mT), X, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PRODUCTS))
def test_whatever_multiplies_a_parameter_is_counted_and_can_be_pruned(name: str) -> None:
    build, shape, expected = PRODUCTS[name]
    model = build()
    uses = positions(model, torch.randn(shape))
    counted = {n: round(use * model.get_parameter(n).numel()) for n, use in uses.items()}
    if name == "spectral norm":
        counted = {n: macs - 15 * (macs - 60) // 15 for n, macs in counted.items()}
    assert counted == expected
    if expected:
        prunable = prunable_parameters(model, include=(), exclude=(), biases=False, products=uses)
        assert prunable.keys() == expected.keys()


def test_a_bilinear_layer_is_counted() -> None:
    bilinear = nn.Bilinear(2, 3, 4)
    model = Multiplies(lambda x, *_: bilinear(x[..., :2], x[..., 2:]))
    model.bilinear = bilinear
    assert positions(model, torch.randn(X)) == {"bilinear.weight": 4}


@pytest.mark.parametrize("training", [True, False])
def test_counting_leaves_mode_buffers_and_hooks_as_they_were(training: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    positions(model, torch.randn(1, 3, 8, 8))
    assert [module.training for module in model.modules()] == [training] * 4
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [len(module._forward_hooks) for module in model.modules()] == [0] * 4


def test_a_forward_that_fails_leaves_mode_and_hooks_as_they_were() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).train()
    with pytest.raises(RuntimeError):
        positions(model, torch.zeros(1, 5, 8, 8))
    assert model.training
    assert len(model[0]._forward_hooks) == 0
