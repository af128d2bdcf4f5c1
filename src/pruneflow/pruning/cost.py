"""What a model costs to run, counted: multiply-accumulates (MACs).

Convention: the multiplications of convolutions and linear layers, for one sample (an image, or a
text of the training set's median length); biases, normalisation, activations, pooling, lookups in
embeddings and the products of attention (queries with keys, weights with values) count nothing.
One MAC is two FLOPs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pruneflow.pruning.selection import prunable_parameters
from pruneflow.workloads import models

_PRODUCTS = {"convolution", "addmm", "mm", "bmm", "baddbmm", "linear", "matmul"}


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, below autograd and modules, at how many positions each weight is applied.

    Hooks on layers would not do: attention uses its projections' weights without calling them.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: dict[str, float] = {}
        self._weights = {w.untyped_storage().data_ptr(): (n, w) for n, w in weights.items()}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in _PRODUCTS:
            for argument in args:
                if isinstance(argument, Tensor):
                    found = self._weights.get(argument.untyped_storage().data_ptr())
                    if found is not None:
                        # Rows of the weight are output channels. A packed one (query, key, value)
                        # may be applied slice by slice: then each counts for its share of rows.
                        name, weight = found
                        uses = output.numel() / weight.shape[0]
                        self.counts[name] = self.counts.get(name, 0.0) + uses
        return output


def positions(model: nn.Module, sample: Tensor | Mapping[str, Tensor]) -> dict[str, int]:
    """How often each prunable weight is used in one forward pass of one sample.

    Args:
        model: any module; it is left as it was.
        sample: one image (1, 3, H, W), or one text as an encoder takes it.

    Returns:
        name of the weight -> number of output positions it is applied at.
    """
    weights = prunable_parameters(model, include=(), exclude=(), biases=False)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one opaque operation, where it applies
    try:
        with models.looking(model), torch.no_grad(), _Uses(weights) as uses:
            models.logits(model, sample)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return {name: round(count) for name, count in uses.counts.items()}


def macs(model: nn.Module, uses: dict[str, int]) -> tuple[int, int]:
    """MACs of one sample: of every weight, and of those that are not zero.

    The second is what a kernel that skips zeros would do (the "theoretical" count of Blalock et
    al. 2020); a dense kernel does the first.

    Args:
        model: the model.
        uses: what `positions` returned for it.
    """
    weights = {name: model.get_parameter(name) for name in uses}
    dense = sum(weight.numel() * uses[name] for name, weight in weights.items())
    left = sum(nonzeros(weight) * uses[name] for name, weight in weights.items())
    return dense, left


def nonzeros(tensor: Tensor) -> int:
    """Entries that are not zero; on a CPU by NumPy, 15 times as fast as by PyTorch."""
    if tensor.device.type != "cpu" or tensor.dtype == torch.bfloat16:
        return int(tensor.count_nonzero())
    return int(np.count_nonzero(tensor.detach().numpy() != 0))
