"""MACs, against hand counts and against PyTorch's own counter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pruneflow.pruning.cost import macs, positions
from pruneflow.pruning.selection import prunable_parameters


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
