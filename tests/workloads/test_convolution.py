"""Taps that see padding alone: left out, and nobody can tell."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pruneflow.workloads.convolution import SeeingTaps


class Kernels(TorchFunctionMode):
    """Records the sizes of the kernels that convolutions are run with."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, ...]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d:
            self.sizes.append(tuple(args[1].shape[2:]))
        return func(*args, **(kwargs or {}))


def results(layer: nn.Conv2d, images: Tensor) -> list[Tensor]:
    """The output, and the gradients of the images and of every parameter."""
    leaf = images.clone().requires_grad_()
    output = layer(leaf)
    weighted = output * torch.arange(1, output.numel() + 1).view_as(output)
    return [output, *torch.autograd.grad(weighted.sum(), [leaf, *layer.parameters()])]


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "groups", "size", "run"),
    [
        (3, 1, 1, 1, (1, 1), (1, 1)),
        (3, 2, 1, 1, (2, 2), (2, 2)),
        (3, 2, 1, 1, (1, 2), (1, 2)),
        (5, 1, 2, 4, (1, 1), (1, 1)),
        (7, 2, 3, 2, (2, 1), (2, 1)),
        ((3, 1), 1, (1, 0), 1, (1, 1), (1, 1)),
        (3, 3, 2, 1, (1, 1), (1, 1)),
        (3, 1, 1, 1, (2, 2), (3, 3)),  # every tap sees the map from some position
        (3, 1, 1, 1, (1, 4), (3, 3)),
        (3, 1, "same", 1, (1, 1), (3, 3)),
        (1, 1, 0, 1, (1, 1), (1, 1)),
        (3, 1, 0, 1, (3, 3), (3, 3)),
    ],
)
def test_outputs_and_gradients_are_the_same_with_the_smaller_kernel(
    kernel: Any, stride: int, padding: Any, groups: int, size: tuple[int, int], run: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, kernel, stride, padding, groups=groups).double()
    images = torch.randn(3, 4, *size, dtype=torch.float64)
    expected = results(layer, images)
    with Kernels() as seen, SeeingTaps():  # the inner one is asked first
        found = results(layer, images)
    assert seen.sizes == [run]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_dilated_kernel_is_left_alone() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 2, 3, padding=2, dilation=2)
    images = torch.randn(1, 2, 1, 1)
    expected = layer(images)
    with SeeingTaps():
        assert torch.equal(layer(images), expected)
