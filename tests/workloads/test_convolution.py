"""Small maps: other ways to the same outputs and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pruneflow.workloads import convolution
from pruneflow.workloads.convolution import SmallMaps

# kernel, stride, padding, groups, size of the map, part of the kernel that sees it
CASES: list[tuple[Any, int, Any, int, tuple[int, int], tuple[int, int]]] = [
    (3, 1, 1, 1, (1, 1), (1, 1)),
    (3, 2, 1, 1, (2, 2), (2, 2)),
    (3, 2, 1, 1, (1, 2), (1, 2)),
    (5, 1, 2, 4, (1, 1), (1, 1)),
    (7, 2, 3, 2, (2, 1), (2, 1)),
    ((3, 1), 1, (1, 0), 1, (1, 1), (1, 1)),
    (3, 3, 2, 1, (1, 1), (1, 1)),
    (3, 1, 1, 1, (2, 2), (3, 3)),  # from here on every tap sees the map from some position
    (3, 1, 1, 1, (1, 4), (3, 3)),
    (3, 2, 1, 1, (4, 4), (3, 3)),
    (5, 3, 2, 1, (7, 6), (5, 5)),
    (3, 1, "same", 1, (1, 1), (3, 3)),
    (1, 1, 0, 1, (1, 1), (1, 1)),
    (1, 2, 0, 1, (3, 4), (1, 1)),
    (3, 1, 0, 1, (3, 3), (3, 3)),
]


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
    weighted = output * torch.arange(1, output.numel() + 1).view_as(output) / output.numel()
    return [output, *torch.autograd.grad(weighted.sum(), [leaf, *layer.parameters()])]


@pytest.mark.parametrize("tap_by_tap", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "padding", "groups", "size", "part"), CASES)
def test_outputs_and_gradients_are_the_librarys(
    monkeypatch: pytest.MonkeyPatch,
    kernel: Any,
    stride: int,
    padding: Any,
    groups: int,
    size: tuple[int, int],
    part: tuple[int, int],
    tap_by_tap: bool,
) -> None:
    monkeypatch.setattr(convolution, "_FEWEST_WEIGHTS", 0 if tap_by_tap else 1 << 30)
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, kernel, stride, padding, groups=groups).double()
    images = torch.randn(3, 4, *size, dtype=torch.float64)
    expected = results(layer, images)
    with Kernels() as run, SmallMaps():  # the inner one is asked first
        found = results(layer, images)
    assert run.sizes == [part]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("bias", [True, False])
def test_in_bf16_gradients_have_the_types_and_layout_of_what_they_are_for(bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(256, 256, 3, padding=1, bias=bias).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(4, 256, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        expected = results(layer, images)
        with SmallMaps():
            found = results(layer, images)
    assert "ByTaps" in str(found[0].grad_fn)
    assert [one.dtype for one in found] == [one.dtype for one in expected]
    assert found[2].stride() == layer.weight.stride()
    for ours, theirs in zip(found, expected, strict=True):
        scale = float(theirs.detach().abs().max())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.01 * scale)


def test_nothing_is_learned_of_images_or_frozen_weights() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(256, 256, 3, padding=1)
    images = torch.randn(2, 256, 2, 2)
    with SmallMaps():
        layer(images).sum().backward()
        gradient = layer.weight.grad
        layer.weight.requires_grad_(False)
        layer(images).sum().backward()
    assert images.grad is None
    assert gradient is not None
    assert torch.equal(layer.weight.grad, gradient)  # type: ignore[arg-type]


def test_a_dilated_kernel_is_left_alone() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 2, 3, padding=2, dilation=2)
    images = torch.randn(1, 2, 1, 1)
    expected = layer(images)
    with SmallMaps():
        assert torch.equal(layer(images), expected)
