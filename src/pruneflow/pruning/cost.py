"""What a model costs to run, counted: multiply-accumulates (MACs).

Convention: the multiplications of weights in convolutions and matrix products, whatever layer does
them, for one sample (an image, or a text of the training set's median length); biases,
normalisation, activations, pooling, lookups in embeddings and products of activations with each
other (queries with keys, weights of attention with values) count nothing. One MAC is two FLOPs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pruneflow.pruning.groups import CONVOLUTIONS
from pruneflow.workloads import models

# Operations that multiply, and which of their arguments they multiply.
_PRODUCTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("convolution", "_convolution"), (0, 1)),
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "linear", "matmul", "_grouped_mm"), (0, 1)),
    **dict.fromkeys(("addmm", "baddbmm", "addbmm", "addmv"), (1, 2)),
    "_trilinear": (0, 1, 2),
}
_LOOKUPS = ("embedding", "embedding_bag", "_embedding_bag")
_INDEXING = ("index", "index_select", "gather")  # of a stack of matrices; else a lookup, too
# Operations whose results are entries of their arguments, in other places.
_COPIES = ("clone", "_to_copy", "cat", "stack", "copy_", "repeat", *_INDEXING)
# What memory has to do with parameters, by their names: it holds them, copies of their entries, or
# what is computed from them.
_ITSELF, _COPY, _COMPUTED = range(3)
_NOTHING: tuple[frozenset[str], int] = (frozenset(), _COMPUTED)


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, below autograd and modules, the MACs of each parameter.

    Hooks on layers would not do: attention uses its projections' weights without calling them, and
    a library's layers are of kinds that nobody here knows.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs: dict[str, float] = {}
        self._sizes = {name: p.numel() for name, p in model.named_parameters()}
        self._vectors = {n for n, p in model.named_parameters() if p.numel() == max((*p.shape, 1))}
        self._origins = {_memory(buffer): _NOTHING for buffer in model.buffers()}
        for name, parameter in model.named_parameters():
            names, _ = self._origins.get(_memory(parameter), _NOTHING)
            self._origins[_memory(parameter)] = (names | {name}, _ITSELF)
        self._copies: list[Tensor] = []  # so that their memory is not given to others

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        inputs = [*args, *(kwargs or {}).values()]
        if name in _PRODUCTS:
            inputs = [args[index] for index in _PRODUCTS[name]]
            self._count(name, inputs, _macs(name, inputs, args, output))
        lookup = name in _LOOKUPS or (name in _INDEXING and args[0].dim() <= 2)
        self._follow(name, [] if lookup else inputs, output)
        return output

    def _count(self, name: str, factors: list[Tensor], macs: int) -> None:
        """Add the MACs of a product to the parameters that are its weight, if any is."""
        origins = [self._origins.get(_memory(factor), _NOTHING) for factor in factors]
        if name in ("bmm", "baddbmm"):  # attention: its operands may be computed from parameters
            origins = [origin for origin in origins if origin[1] != _COMPUTED]
        weights = [origin for origin in reversed(origins) if origin[0]]
        names, _ = min(weights, key=lambda origin: origin[1], default=_NOTHING)
        names = names - self._vectors or names
        total = sum(self._sizes[n] for n in names)
        for n in names:
            self.macs[n] = self.macs.get(n, 0.0) + macs * self._sizes[n] / total

    def _follow(self, name: str, inputs: Any, output: Any) -> None:
        """Note what is made of parameters alone; else an activation, whatever was there before."""
        tensors = [t for t in tree_leaves(inputs) if isinstance(t, Tensor)]
        origins = [self._origins.get(_memory(t)) for t in tensors if t.is_floating_point()]
        known = [origin for origin in origins if origin is not None]
        made = bool(known) and len(known) == len(origins)
        for tensor in tree_leaves(output):
            if not isinstance(tensor, Tensor):
                continue
            if not made:
                self._origins.pop(_memory(tensor), None)
            elif _memory(tensor) not in self._origins:
                names = frozenset[str]().union(*(origin[0] for origin in known))
                how = max(_COPY if name in _COPIES else _COMPUTED, *(how for _, how in known))
                self._origins[_memory(tensor)] = (names, how)
                self._copies.append(tensor)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _macs(name: str, factors: list[Tensor], args: tuple[Any, ...], output: Tensor) -> int:
    """Multiply-accumulates of one operation of `_PRODUCTS`."""
    first, second = factors[:2]
    if name == "_trilinear":
        return int(output.numel() * math.prod(second.shape[1:]))
    if "convolution" in name:
        transposed = bool(args[6])
        return int((first if transposed else output).numel() * second[0].numel())
    summed = len(first) if name == "addbmm" else 1  # over the batch, too
    return int(summed * output.numel() * first.shape[-1])


def positions(model: nn.Module, sample: Tensor | Mapping[str, Tensor]) -> dict[str, float]:
    """How often each weight is used in one forward pass of one sample, as `models.logits` takes it.

    Returns:
        name of each parameter that multiplies something -> MACs of the sample / its entries: the
        number of output positions that it is applied at.
    """
    # recurrent layers are one operation in oneDNN and cuDNN, and products elsewhere
    with (
        warnings.catch_warnings(action="ignore"),
        torch.backends.mkldnn.flags(enabled=False),
        torch.backends.cudnn.flags(enabled=False),
        models.without_fused_attention(),
        models.looking(model),
        torch.no_grad(),
        _Uses(model) as uses,
    ):
        models.logits(model, sample)
    return {name: macs / model.get_parameter(name).numel() for name, macs in uses.macs.items()}


def macs(model: nn.Module, uses: Mapping[str, float]) -> tuple[int, int]:
    """MACs of one sample: of every weight, and of those that are not zero.

    The second is what a kernel that skips zeros would do (the "theoretical" count of Blalock et
    al. 2020); a dense kernel does the first. `uses` is what `positions` returned.
    """
    weights = {name: model.get_parameter(name) for name in uses}
    dense = sum(weight.numel() * uses[name] for name, weight in weights.items())
    left = sum(nonzeros(weight) * uses[name] for name, weight in weights.items())
    return round(dense), round(left)


def conv_params(model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> int:
    """Parameters of a model's convolutions, weights and biases, that masks keep."""
    convolutions = {
        name for name, module in model.named_modules() if isinstance(module, CONVOLUTIONS)
    }
    return sum(
        nonzeros(masks[name]) if masks and name in masks else parameter.numel()
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[0] in convolutions
    )


def nonzeros(tensor: Tensor) -> int:
    """Entries that are not zero; on a CPU by NumPy, 15 times as fast as by PyTorch."""
    if tensor.device.type != "cpu" or tensor.dtype == torch.bfloat16:
        return int(tensor.count_nonzero())
    return int(np.count_nonzero(tensor.detach().numpy() != 0))
