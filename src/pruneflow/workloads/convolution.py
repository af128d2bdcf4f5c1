"""Convolutions whose map is smaller than their kernel, without the taps that see padding alone.

The last stage of ResNet18 at 32x32 has 3x3 kernels on maps of 1x1: eight of nine taps multiply
zeros, forward and backward.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class SeeingTaps(TorchFunctionMode):
    """While it is entered, `conv2d` with an output of one position leaves out what sees padding.

    Outputs and gradients are the same up to rounding: a tap that is left out has a gradient of 0.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.conv2d and not kwargs and len(args) == 7:  # as nn.Conv2d calls it
            args = _cropped(*args)
        return func(*args, **(kwargs or {}))


def _cropped(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int] | str,
    dilation: tuple[int, int],
    groups: int,
) -> tuple[Any, ...]:
    """The arguments of `conv2d`, with the kernel cropped to the map where that gives the same."""
    same = (images, weight, bias, stride, padding, dilation, groups)
    if isinstance(padding, str) or tuple(padding) == (0, 0) or tuple(dilation) != (1, 1):
        return same
    sizes = list(zip(images.shape[2:], weight.shape[2:], stride, padding, strict=True))
    if any(n + 2 * p - k >= s for n, k, s, p in sizes):  # more than one position
        return same
    (height, _, _, top), (width, _, _, left) = sizes
    seeing = weight[:, :, top : top + height, left : left + width]
    return images, seeing, bias, stride, (0, 0), dilation, groups
