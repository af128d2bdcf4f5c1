"""The `sparse` form: zeros are not stored, where that is faster on this machine.

A linear layer or convolution can be run as it is (dense), with its empty rows and columns dropped,
or in compressed sparse rows (CSR). Which is fastest depends on its shape, its zeros and the batch
size, and on the processor and its libraries, so it is measured, inside the whole model (alone, a
layer would find its weights in the caches), and remembered.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pruneflow import measurements
from pruneflow.inference.latency import free_bytes
from pruneflow.inference.load import Load
from pruneflow.inference.profile import watched
from pruneflow.workloads import models

Layer = nn.Linear | nn.Conv2d
Run = Callable[[nn.Module], object]

_MARGIN = 0.95  # a layer leaves its dense kernel only if that takes less than this share of time
_LEAST_SPARSITY = 0.3  # below, no stored index pays
_LEAST_ROUNDS, _ROUNDS, _MODEL_ROUNDS = 3, 6, 20
_ENOUGH_SECONDS = 12.0  # then no more rounds than the least
_HOPELESS = 3.0  # times as slow as dense at first sight: not looked at again
_UNFOLDED = 0.25  # share of the free memory that an unfolded input may take


class Dropped(nn.Module):
    """A linear layer or convolution without its empty rows and columns; the same outputs.

    What it does not compute is the constant that the bias makes it.
    """

    rows: Tensor | None
    columns: Tensor | None
    constant: Tensor | None

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        rows, columns = _used(layer)
        weight = layer.weight.detach()
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach()
        self.dim = -1
        self.product: Callable[..., Tensor] = functional.linear
        if isinstance(layer, nn.Conv2d):
            window: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding}
            self.dim = -3
            self.product = partial(functional.conv2d, dilation=layer.dilation, **window)
        self.weight = nn.Parameter(weight[rows][:, columns].contiguous(), requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(bias[rows], requires_grad=False)
        self.register_buffer("rows", None if rows.all() else rows.nonzero()[:, 0])
        self.register_buffer("columns", None if columns.all() else columns.nonzero()[:, 0])
        constant = bias if self.dim == -1 else bias[:, None, None]
        self.register_buffer("constant", None if rows.all() else constant)

    def forward(self, x: Tensor) -> Tensor:
        """As the layer it stands for."""
        if self.columns is not None:
            x = x.index_select(self.dim, self.columns)
        y = self.product(x, self.weight, self.bias)
        if self.rows is None or self.constant is None:
            return y
        shape = list(y.shape)
        shape[self.dim] = len(self.constant)
        return y.new_empty(shape).copy_(self.constant).index_copy_(self.dim, self.rows, y)


class Csr(nn.Module):
    """A linear layer or convolution whose weight is stored in compressed sparse rows.

    A convolution becomes one product with its unfolded input (im2col); of 1x1 with stride 1 and
    no padding nothing is unfolded.
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        with warnings.catch_warnings(action="ignore"):  # "in beta state"
            csr = layer.weight.detach().flatten(1).to_sparse_csr()
            # int32 is half the bytes, and what MKL takes without a copy
            indices = csr.crow_indices().int(), csr.col_indices().int()
            weight = torch.sparse_csr_tensor(*indices, csr.values(), csr.shape)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = layer.bias
        self.window: tuple[Any, ...] = ()  # of a convolution: kernel, stride, padding, dilation
        if isinstance(layer, nn.Conv2d):
            self.window = layer.kernel_size, layer.stride, layer.padding, layer.dilation

    def forward(self, x: Tensor) -> Tensor:
        """As the layer it stands for."""
        if self.window:
            kernel, stride, padding, dilation = self.window
            patches = x.flatten(2)
            if (kernel, stride, padding) != ((1, 1), (1, 1), (0, 0)):
                patches = functional.unfold(x, kernel, dilation, padding, stride)
            inputs = patches.transpose(0, 1).flatten(1)
        else:
            inputs = x.reshape(-1, x.shape[-1]).t()
        is_vector = inputs.shape[1] == 1
        y = (self.weight @ inputs[:, 0])[:, None] if is_vector else self.weight @ inputs
        if self.bias is not None:
            y = y + self.bias[:, None]
        if not self.window:
            return y.t().reshape(*x.shape[:-1], len(y))
        sizes = zip(x.shape[2:], *self.window, strict=True)
        shape = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes]
        return y.view(len(y), len(x), *shape).transpose(0, 1)


def _drop(layer: Layer) -> nn.Module | None:
    dropped = Dropped(layer)
    is_full = dropped.rows is None and dropped.columns is None
    return None if is_full or not dropped.weight.numel() else dropped


def _csr(layer: Layer) -> nn.Module | None:
    return Csr(layer) if _sparsity(layer) >= _LEAST_SPARSITY else None


# Ways to store a layer beside the dense one; each gives None where it has nothing to offer.
REPRESENTATIONS: dict[str, Callable[[Layer], nn.Module | None]] = {"dropped": _drop, "csr": _csr}
# Layer -> way to store it -> the layer stored so.
Options = Mapping[str, Mapping[str, nn.Module]]


def sparse(
    model: nn.Module, run: Run, *, batch: str, cache: Path | None = None
) -> tuple[nn.Module, dict[str, str]]:
    """A masked model's `sparse` form for one batch size, on the CPU and threads of this moment.

    `run` runs a model once, on the inputs that `batch` describes ("16x3x224x224"). `cache` is a
    file that remembers what was measured while no other work used the processors.

    Returns:
        The form, which shares its dense tensors with the model, and how each layer that has zeros
        is stored: name -> `dense` or a name of REPRESENTATIONS.
    """
    layers = {name: layer for name, layer in model.named_modules() if _is_storable(layer)}
    options: dict[str, dict[str, nn.Module]] = {}
    with models.looking(model):
        with watched(layers) as (_, shapes):  # attention may use a weight without calling its layer
            run(model)
        for name, shape in shapes.items():
            weight = layers[name].weight
            made = {way: make(layers[name]) for way, make in REPRESENTATIONS.items()}
            unfolded_bytes = 8 * math.prod(shape) * weight[0].numel() // len(weight)
            if unfolded_bytes > _UNFOLDED * free_bytes("cpu"):
                made["csr"] = None
            if stored := {way: layer for way, layer in made.items() if layer}:
                options[name] = stored
        keys = {name: _key(layers[name], shapes[name], batch) for name in options}
        remembered = {} if cache is None else measurements.read(cache)
        chosen: dict[str, str] = {
            name: remembered[key]
            for name, key in keys.items()
            if remembered.get(key) in ("dense", *options[name])
        }
        if chosen.keys() != options.keys():
            load = Load()
            chosen = _measure(model, options, run) | chosen
            if cache is not None and load.is_quiet(load.others()):
                measurements.remember(cache, {keys[name]: way for name, way in chosen.items()})
        return _with(model, options, chosen), chosen


def _is_storable(module: nn.Module) -> TypeGuard[Layer]:
    """Whether the representations can do a layer's arithmetic."""
    if type(module) is not nn.Conv2d:
        return type(module) is nn.Linear
    zero_padded = module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return zero_padded and module.groups == 1


def _used(layer: Layer) -> tuple[Tensor, Tensor]:
    """Which rows (outputs) and columns (inputs) of a weight have any entry that is not zero."""
    used = layer.weight.detach() != 0
    return used.flatten(1).any(1), used.transpose(0, 1).flatten(1).any(1)


def _sparsity(layer: Layer) -> float:
    return 1 - int(layer.weight.count_nonzero()) / layer.weight.numel()


def _key(layer: Layer, shape: tuple[int, ...], batch: str) -> str:
    """What a measurement is remembered by: the layer's shape and zeros, batch, and machine."""
    rows, columns = (int(used.sum()) for used in _used(layer))
    zeros = f"sparsity {_sparsity(layer):.3f}; rows {rows} columns {columns}"
    outputs = "x".join(map(str, shape))
    return "; ".join((f"{layer}; {zeros}; {batch} -> {outputs}", *measurements.of_machine()))


def _measure(model: nn.Module, options: Options, run: Run) -> dict[str, str]:
    """The fastest way to store each layer, timed within the whole model.

    What a layer gains, another may lose (a layout that the next one has to turn), so the model
    that comes of the choices is timed against the dense one, and has to win.
    """
    ways = {name: ["dense", *made] for name, made in options.items()}
    for rounds in (2, _ROUNDS):  # first without those that are hopeless: the very first calls
        stored = {way: [n for n in ways if way in ways[n]] for way in ("dense", *REPRESENTATIONS)}
        forms = {w: _with(model, options, dict.fromkeys(n, w)) for w, n in stored.items() if n}
        times = _seconds(forms, ways, run, rounds)
        for name, names in ways.items():
            most = _HOPELESS * min(times["dense"][name])
            ways[name] = [way for way in names if min(times[way][name]) <= most]
    chosen = {}
    for name, names in ways.items():
        medians = {way: float(np.median(times[way][name])) for way in names}
        medians["dense"] *= _MARGIN
        chosen[name] = min(medians, key=medians.__getitem__)
    forms = {"dense": model, "form": _with(model, options, chosen)}
    whole = _seconds(forms, [""], run, _MODEL_ROUNDS)
    if np.median(whole["form"][""]) > np.median(whole["dense"][""]):
        return dict.fromkeys(chosen, "dense")
    return chosen


def _seconds(
    forms: Mapping[str, nn.Module], names: Iterable[str], run: Run, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Form -> module's name ("" is the whole form) -> seconds of each round, interleaved."""
    times: dict[str, dict[str, list[float]]] = {f: {name: [] for name in names} for f in forms}
    order, start = np.random.default_rng(0), time.perf_counter()
    for number in range(rounds):
        if number >= _LEAST_ROUNDS and time.perf_counter() - start > _ENOUGH_SECONDS:
            break
        for form in order.permutation(list(forms)).tolist():
            modules = {name: forms[form].get_submodule(name) for name in names}
            with watched(modules) as (seconds, _):
                run(forms[form])
            for name, value in seconds.items():
                times[form][name].append(value)
    return times


def _with(model: nn.Module, options: Options, chosen: Mapping[str, str]) -> nn.Module:
    """A copy that shares all tensors with the model, its layers stored as chosen."""
    shared = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    twin = copy.deepcopy(model, dict(shared))
    for name, way in chosen.items():
        if way != "dense":
            twin.set_submodule(name, options[name][way])
    return twin.eval()
