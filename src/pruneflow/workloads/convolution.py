"""Convolutions on small maps, faster than the library's on a CPU.

Images of 32 or 64 pixels leave the last layers of ResNet, VGG16 or AlexNet maps of 1x1 to 4x4.
There the library's gradient of a kernel takes several times as long as the matrix products it comes
down to, and many taps of a kernel see padding alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

# Maps and kernels for which products tap by tap were faster than the library, or as fast.
_MOST_POSITIONS = 16
_FEWEST_WEIGHTS = 1 << 18

Pair = tuple[int, int]


class SmallMaps(TorchFunctionMode):
    """While it is entered, `conv2d` takes these ways on a CPU, for the same up to rounding.

    A kernel is cropped to the map where its output has one position, as all else sees padding;
    and the gradient of a large kernel on a small map is made of a product for each tap.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.conv2d and not kwargs and len(args) == 7:  # as nn.Conv2d calls it
            return _conv2d(*args)
        return func(*args, **(kwargs or {}))


def _conv2d(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair | str,
    dilation: Pair,
    groups: int,
) -> Tensor:
    plain = isinstance(padding, str) or tuple(dilation) != (1, 1) or images.dim() != 4
    if plain or images.device.type != "cpu":
        return torch.conv2d(images, weight, bias, stride, padding, dilation, groups)
    assert not isinstance(padding, str)
    height, width = _positions(images, weight, stride, padding)
    learns = torch.is_grad_enabled() and weight.requires_grad and groups == 1
    if learns and height * width <= _MOST_POSITIONS and weight.numel() >= _FEWEST_WEIGHTS:
        result: Tensor = _ByTaps.apply(images, weight, bias, stride, padding)
        return result
    seeing, padding = _seeing(images, weight, stride, padding)
    return torch.conv2d(images, seeing, bias, stride, padding, dilation, groups)


def _positions(images: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Pair:
    """Height and width of the output."""
    sizes = zip(images.shape[2:], weight.shape[2:], stride, padding, strict=True)
    height, width = ((n + 2 * p - k) // s + 1 for n, k, s, p in sizes)
    return height, width


def _seeing(images: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> tuple[Tensor, Pair]:
    """The part of a kernel that sees the map, and the padding it needs."""
    if padding == (0, 0) or _positions(images, weight, stride, padding) != (1, 1):
        return weight, padding
    (height, width), (top, left) = images.shape[2:], padding
    return weight[:, :, top : top + height, left : left + width], (0, 0)


class _ByTaps(torch.autograd.Function):
    """A convolution whose kernel's gradient is a matrix product for each tap."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair
    ) -> Tensor:
        seeing, left = _seeing(images, weight, stride, padding)
        dtype = images.dtype
        if torch.is_autocast_enabled("cpu") and dtype != torch.float64:  # as it treats conv2d
            dtype = torch.get_autocast_dtype("cpu")
        cast, seeing = images.to(dtype), seeing.to(dtype)
        ctx.save_for_backward(cast, seeing, weight)
        ctx.given = images.dtype, None if bias is None else bias.dtype, stride, padding, left
        return torch.conv2d(cast, seeing, None if bias is None else bias.to(dtype), stride, left)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, seeing, weight = ctx.saved_tensors
        dtype, bias_dtype, stride, padding, left = ctx.given
        of_images = of_bias = None
        if ctx.needs_input_grad[0]:
            of_images = torch.ops.aten.convolution_backward(
                *(gradient, images, seeing, None, stride, left, (1, 1), False, (0, 0), 1),
                (True, False, False),
            )[0].to(dtype)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3), dtype=bias_dtype)
        return of_images, _by_taps(gradient, images, weight, stride, padding), of_bias, None, None


def _by_taps(
    gradient: Tensor, images: Tensor, weight: Tensor, stride: Pair, padding: Pair
) -> Tensor:
    """The gradient of a kernel, in its type and layout, from that of the output (N, O, H, W)."""
    result = torch.zeros_like(weight)
    outputs, inputs = gradient.permute(0, 2, 3, 1), images.permute(0, 2, 3, 1)
    rows, columns = (
        list(
            _taps(
                weight.shape[d], images.shape[d], gradient.shape[d], stride[d - 2], padding[d - 2]
            )
        )
        for d in (2, 3)
    )
    for top, of_output, of_input in rows:
        for left, across_output, across_input in columns:
            given = outputs[:, of_output, across_output].flatten(0, 2)
            seen = inputs[:, of_input, across_input].flatten(0, 2)
            result[:, :, top, left] = given.t() @ seen
    return result


def _taps(
    kernel: int, size: int, positions: int, stride: int, padding: int
) -> Iterator[tuple[int, slice, slice]]:
    """Along one side, each tap that sees the map: from which outputs, and what of the input."""
    for tap in range(kernel):
        first = max(0, -((tap - padding) // stride))  # the first output whose tap is not before it
        last = min(positions - 1, (size - 1 + padding - tap) // stride)
        if first <= last:
            start = first * stride - padding + tap
            yield (
                tap,
                slice(first, last + 1),
                slice(start, last * stride - padding + tap + 1, stride),
            )
