"""The `sparse` form: zeros are not stored, where that is faster on this machine.

A linear layer or convolution can be run as it is (dense), with its empty rows and columns dropped,
or in compressed sparse rows (CSR). Which is fastest hangs on its shape, its zeros and the batch
size, and on the processor and its libraries, so it is measured, inside the whole model (alone, a
layer would find its weights in the caches), and remembered.
"""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pruneflow import measurements
from pruneflow.inference.latency import Effort, clock, free_bytes, interleaved
from pruneflow.inference.load import Load, Unwatched
from pruneflow.workloads import models

Run = Callable[[nn.Module], object]

_MARGIN = 0.95  # a layer leaves its dense kernel only if that takes less than this share of time
_LEAST_SPARSITY = 0.3  # below, no stored index pays
_ROUNDS = 6
_LONG_ROUND = 2.0  # seconds; then half as many rounds
_HOPELESS = 3.0  # times as slow as dense at first sight: not looked at again
_UNFOLDED = 0.25  # share of the free memory that an unfolded input may take


class _Window(NamedTuple):
    """How a convolution moves over its input."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def of(cls, layer: nn.Module) -> _Window | None:
        if not isinstance(layer, nn.Conv2d):
            return None
        assert not isinstance(layer.padding, str)  # _storable
        return cls(layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)


class Dropped(nn.Module):
    """A linear layer or convolution without its empty rows and columns; the same outputs.

    Inputs and outputs have the shapes of the layer it stands for: what it does not compute is
    the constant that the bias makes it.
    """

    rows: Tensor | None
    columns: Tensor | None
    weight: Tensor
    bias: Tensor | None
    constant: Tensor | None

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        weight = layer.weight.detach()
        used = weight != 0
        rows = used.flatten(1).any(1)
        columns = used.movedim(1, 0).flatten(1).any(1)
        self.window = _Window.of(layer)
        self.dim = -1 if self.window is None else -3
        self.size = weight.shape[0]
        self.dropped = int((~rows).sum() + (~columns).sum())
        bias = None if layer.bias is None else layer.bias.detach()
        self.register_buffer("rows", None if rows.all() else rows.nonzero()[:, 0])
        self.register_buffer("columns", None if columns.all() else columns.nonzero()[:, 0])
        self.register_buffer("weight", weight[rows][:, columns].contiguous())
        self.register_buffer("bias", None if bias is None else bias[rows].contiguous())
        self.register_buffer("constant", None if bias is None or rows.all() else bias)

    def forward(self, x: Tensor) -> Tensor:
        """As the layer it stands for."""
        if self.columns is not None:
            x = x.index_select(self.dim, self.columns)
        if self.window is None:
            y = functional.linear(x, self.weight, self.bias)
        else:
            _, stride, padding, dilation, groups = self.window
            y = functional.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
        if self.rows is None:
            return y
        shape = list(y.shape)
        shape[self.dim] = self.size
        if self.constant is None:
            whole = y.new_zeros(shape)
        else:
            view = (-1, 1, 1) if self.dim == -3 else (-1,)
            whole = y.new_empty(shape).copy_(self.constant.view(view))
        return whole.index_copy_(self.dim, self.rows, y)


class Csr(nn.Module):
    """A linear layer or convolution whose weight is stored in compressed sparse rows.

    A convolution becomes one product with its unfolded input (im2col); of 1x1 with stride 1 and
    no padding nothing is unfolded.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        dense = layer.weight.detach().flatten(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "in beta state"
            csr = dense.to_sparse_csr()
            index = torch.int32  # half the bytes; what MKL takes without a copy
            weight = torch.sparse_csr_tensor(
                csr.crow_indices().to(index), csr.col_indices().to(index), csr.values(), csr.shape
            )
        self.window = _Window.of(layer)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """As the layer it stands for."""
        if self.window is not None:
            return self._convolve(x, self.window)
        rows = x.reshape(-1, x.shape[-1])
        y = (self.weight @ rows[0])[None] if len(rows) == 1 else (self.weight @ rows.t()).t()
        if self.bias is not None:
            y = y + self.bias
        return y.reshape(*x.shape[:-1], y.shape[-1])

    def _convolve(self, x: Tensor, window: _Window) -> Tensor:
        kernel, stride, padding, dilation, _ = window
        count, _, height, width = x.shape
        if (kernel, stride, padding) == ((1, 1), (1, 1), (0, 0)):
            columns = x.flatten(2)
        else:
            columns = functional.unfold(x, kernel, dilation, padding, stride)
            sizes = zip((height, width), kernel, stride, padding, dilation, strict=True)
            height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)
        flat = columns[0] if count == 1 else columns.transpose(0, 1).flatten(1)
        y = self.weight @ flat
        if self.bias is not None:
            y = y + self.bias[:, None]
        return y.view(-1, count, height, width).transpose(0, 1)


def _drop(layer: nn.Linear | nn.Conv2d) -> nn.Module | None:
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return None  # a row of the weight is of one group, a column of every one
    dropped = Dropped(layer)
    return dropped if dropped.dropped and dropped.weight.numel() else None


def _csr(layer: nn.Linear | nn.Conv2d) -> nn.Module | None:
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return None
    return Csr(layer) if _sparsity(layer) >= _LEAST_SPARSITY else None


# Ways to store a layer beside the dense one; each gives None where it has nothing to offer.
REPRESENTATIONS: dict[str, Callable[[nn.Linear | nn.Conv2d], nn.Module | None]] = {
    "dropped": _drop,
    "csr": _csr,
}


def sparse(
    model: nn.Module, run: Run, *, batch: str, cache: Path | None = None
) -> tuple[nn.Module, dict[str, str]]:
    """A model's `sparse` form for one batch size, on the CPU and threads of this moment.

    Args:
        model: masked, on the CPU; it is left as it was, and shares its dense tensors with the form.
        run: runs a model once, on the inputs it is for.
        batch: says what these are ("16x3x224x224"): measurements are remembered by it.
        cache: file that remembers measurements; None remembers nothing, as does other work on the
            processors.

    Returns:
        The form, and how each of its layers that has zeros is stored: name -> `dense` or a name of
        REPRESENTATIONS.
    """
    with models.looking(model):
        layers, outputs = _called(model, run)
    options: dict[str, dict[str, nn.Module]] = {}
    for name, layer in layers.items():
        roomy = _unfolded_bytes(layer, outputs[name]) < _UNFOLDED * free_bytes("cpu")
        ways = {way: make for way, make in REPRESENTATIONS.items() if way != "csr" or roomy}
        made = {way: one for way, make in ways.items() if (one := make(layer))}
        if made:
            options[name] = made
    keys = {
        name: _key(layers[name], f"{batch} -> {'x'.join(map(str, outputs[name]))}")
        for name in options
    }
    remembered = _remembered(cache)
    known = {
        keys[name]: remembered[keys[name]]
        for name, ways_of in options.items()
        if remembered.get(keys[name]) in ("dense", *ways_of)
    }
    if any(key not in known for key in keys.values()):
        load = Load()
        with models.looking(model):
            measured = _measure(model, options, run)
        new = {keys[name]: way for name, way in measured.items() if keys[name] not in known}
        known = known | new
        if cache is not None and load.is_quiet(load.others()):
            measurements.remember(cache, new)
    chosen = {name: known[key] for name, key in keys.items()}
    stored = {n: options[n][way] for n, way in chosen.items() if way in options[n]}
    return _with(model, stored), chosen


def stored_weight(layer: nn.Module) -> Tensor | None:
    """What a layer stores of its weight, sparse or not."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    return weight.values() if weight.layout == torch.sparse_csr else weight.detach()


def default_cache() -> Path:
    """Where measurements of kernels are remembered between runs."""
    return measurements.file_of("kernels")


def _called(
    model: nn.Module, run: Run
) -> tuple[dict[str, nn.Linear | nn.Conv2d], dict[str, tuple[int, ...]]]:
    """Layers that a model calls (attention may use a weight without that), and output shapes."""
    layers: dict[str, nn.Linear | nn.Conv2d] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    handles = []
    for name, module in model.named_modules():
        if _storable(module):

            def hook(layer: nn.Module, inputs: object, output: Tensor, name: str = name) -> None:
                layers[name] = layer  # type: ignore[assignment]
                shapes[name] = tuple(output.shape)

            handles.append(module.register_forward_hook(hook))
    try:
        run(model)
    finally:
        for handle in handles:
            handle.remove()
    return layers, shapes


def _unfolded_bytes(layer: nn.Module, output: tuple[int, ...]) -> int:
    """Memory that CSR takes for a convolution's unfolded input, and for turning it."""
    if not isinstance(layer, nn.Conv2d):
        return 0
    samples, _, height, width = output
    return 8 * samples * height * width * layer.weight[0].numel()


def _storable(module: nn.Module) -> bool:
    """Whether a layer's arithmetic is one that the representations can do."""
    if type(module) is nn.Conv2d:
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) is nn.Linear


def _measure(
    model: nn.Module, options: Mapping[str, Mapping[str, nn.Module]], run: Run
) -> dict[str, str]:
    """The fastest way to store each layer, timed within the whole model.

    What a layer gains, another may lose (a layout that the next one has to turn), so the model
    that comes of the choices is timed against the dense one, and has to win.
    """
    ways: dict[str, dict[str, nn.Module]] = {name: dict(made) for name, made in options.items()}
    first = _layer_seconds(model, ways, run, rounds=2, of=min)  # the very first call pays for more
    for name, made in ways.items():
        for way in list(made):
            if first[name][way] > _HOPELESS * first[name]["dense"]:
                del made[way]
    start = time.perf_counter()
    run(model)
    rounds = _ROUNDS if time.perf_counter() - start < _LONG_ROUND else _ROUNDS // 2
    chosen = _fastest(_layer_seconds(model, ways, run, rounds=rounds))
    stored = {n: options[n][way] for n, way in chosen.items() if way != "dense"}
    if not stored:
        return chosen
    form = _with(model, stored)
    calls = {"form": lambda: run(form), "dense": lambda: run(model)}
    times = interleaved(calls, clock("cpu"), Effort(rounds, _LONG_ROUND), load=Unwatched()).seconds
    if np.median(times["form"]) > np.median(times["dense"]):
        return dict.fromkeys(chosen, "dense")
    return chosen


def _fastest(seconds: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """Layer -> the way to store it that takes least, if that is clearly less than dense."""
    chosen = {}
    for name, times in seconds.items():
        best = min(times, key=lambda way: times[way])
        chosen[name] = best if times[best] < _MARGIN * times["dense"] else "dense"
    return chosen


def _layer_seconds(
    model: nn.Module,
    ways: Mapping[str, Mapping[str, nn.Module]],
    run: Run,
    *,
    rounds: int,
    of: Callable[[list[float]], float] = statistics.median,
) -> dict[str, dict[str, float]]:
    """Layer -> way to store it -> seconds (`of` all rounds), in models that store all so."""
    every = {"dense": model}
    for way in REPRESENTATIONS:
        stored = {name: made[way] for name, made in ways.items() if way in made}
        if stored:
            every[way] = _with(model, stored)
    times: dict[str, dict[str, list[float]]] = {name: {} for name in ways}
    order = np.random.default_rng(0)
    names = list(every)
    for _ in range(rounds):
        for number in order.permutation(len(names)):
            way = names[number]
            with _timing(every[way], ways) as seconds:
                run(every[way])
            for name, value in seconds.items():
                if way == "dense" or way in ways[name]:
                    times[name].setdefault(way, []).append(value)
    return {
        name: {way: of(values) for way, values in found.items()} for name, found in times.items()
    }


@contextmanager
def _timing(model: nn.Module, names: Mapping[str, object]) -> Iterator[dict[str, float]]:
    seconds: dict[str, float] = {}
    handles = []
    for name in names:

        def before(layer: nn.Module, inputs: object, name: str = name) -> None:
            seconds[name] = seconds.get(name, 0.0) - time.perf_counter()

        def after(layer: nn.Module, inputs: object, outputs: object, name: str = name) -> None:
            seconds[name] += time.perf_counter()

        layer = model.get_submodule(name)
        handles.append(layer.register_forward_pre_hook(before))
        handles.append(layer.register_forward_hook(after))
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


def _with(model: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """A copy that shares all tensors with the model, some layers replaced."""
    shared = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    twin = copy.deepcopy(model, dict(shared))
    for name, layer in layers.items():
        parent, _, attribute = name.rpartition(".")
        setattr(twin.get_submodule(parent), attribute, layer)
    return twin.eval()


def _sparsity(layer: nn.Linear | nn.Conv2d) -> float:
    return 1 - int(layer.weight.count_nonzero()) / layer.weight.numel()


def _key(layer: nn.Linear | nn.Conv2d, batch: str) -> str:
    """What a measurement is remembered by: the layer's shape and zeros, batch, and machine."""
    used = layer.weight.detach() != 0
    rows = int(used.flatten(1).any(1).sum())
    columns = int(used.movedim(1, 0).flatten(1).any(1).sum())
    parts = [
        type(layer).__name__,
        "x".join(map(str, layer.weight.shape)),
        str(tuple(_Window.of(layer) or ())),
        f"sparsity {_sparsity(layer):.3f}",
        f"rows {rows} columns {columns}",
        batch,
        *measurements.of_machine(),
    ]
    return "; ".join(parts)


def _remembered(cache: Path | None) -> dict[str, str]:
    """The fastest way to store each layer that was measured before."""
    known = {} if cache is None else measurements.read(cache)
    return {key: way for key, way in known.items() if way in ("dense", *REPRESENTATIONS)}
