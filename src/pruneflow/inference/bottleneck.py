"""Why a form is as fast as it is: time of each layer, and what the machine could do at best.

The estimates are those of the roofline model (Williams et al. 2009): arithmetic at the speed of a
large matrix product, memory traffic at the speed of reading as much as the weights take, and the
price of starting an operation, each measured on the device and threads of the moment.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pruneflow.inference.latency import Clock, clock
from pruneflow.workloads import models

_PRODUCT = 1024  # rows and columns of the matrices whose product shows the speed of arithmetic
_REPEATS = 7
_PASSES = 5
_LONG_PASS = 0.5  # seconds; then fewer passes
_BUFFER = 1 << 28  # bytes; no cache holds more


@dataclass(frozen=True)
class LayerTime:
    """A layer without layers of its own, in one forward pass.

    Attributes:
        ms: the median over passes, of all its calls together.
        output_bytes: of what it gives out, in all its calls.
    """

    layer: str
    kind: str
    ms: float
    output_bytes: int


@dataclass(frozen=True)
class Machine:
    """What a device does at best, with the threads of the moment.

    Attributes:
        macs_per_second: float32 multiply-accumulates of a large matrix product or convolution,
            whichever library is faster at its own.
        bytes_per_second: of reading weights that take as much memory as the model's.
        call_seconds: the price of one operation on next to no data.
    """

    macs_per_second: float
    bytes_per_second: float
    call_seconds: float


@dataclass(frozen=True)
class Bottleneck:
    """What bounds a form's time.

    Attributes:
        by: `arithmetic`, `memory traffic`, `overhead` or `unpruned layers`.
        share: how much of the time that explains, a fraction.
    """

    by: str
    share: float


def layer_times(
    model: nn.Module,
    run: Callable[[nn.Module], object],
    device: str,
    *,
    counter: Callable[[], float] = time.perf_counter,
) -> list[LayerTime]:
    """Time of every layer, in the order in which they are first called, the first pass discarded.

    Args:
        model: any; it is timed in eval mode.
        run: runs it once, eagerly.
        device: where it is; on CUDA every layer is waited for, so that the sum is above the whole.
        counter: of seconds.
    """
    times: dict[str, list[float]] = {}
    kinds: dict[str, str] = {}
    sizes: dict[str, int] = {}
    started: dict[str, float] = {}
    current: dict[str, float] = {}

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return counter()

    handles = []
    for name, module in model.named_modules():
        if next(module.children(), None) is not None:
            continue

        def before(layer: nn.Module, inputs: object, name: str = name) -> None:
            started[name] = now()

        def after(layer: nn.Module, inputs: object, output: object, name: str = name) -> None:
            current[name] = current.get(name, 0.0) + now() - started[name]
            kinds[name] = type(layer).__name__
            given = output.nbytes if isinstance(output, Tensor) else 0
            sizes[name] = sizes.get(name, 0) + given

        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after))
    passes, number = _PASSES, 0
    try:
        with models.looking(model):
            while number < passes:
                start = counter()
                current.clear()
                sizes.clear()
                run(model)
                if counter() - start > _LONG_PASS:
                    passes = 3
                if number:
                    for name, seconds in current.items():
                        times.setdefault(name, []).append(seconds)
                number += 1
    finally:
        for handle in handles:
            handle.remove()
    return [
        LayerTime(name, kinds[name], 1e3 * float(np.median(values)), sizes[name])
        for name, values in times.items()
    ]


@functools.cache
def machine(device: str, threads: int, weight_bytes: int) -> Machine:
    """Measure a device, for models whose weights take so many bytes; it is remembered."""
    timer = clock(device)
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(_PRODUCT, _PRODUCT, device=device, generator=generator) for _ in range(2))
    channels, side = 256, 32
    images = torch.randn(1, channels, side, side, device=device, generator=generator)
    filters = torch.randn(channels, channels, 3, 3, device=device, generator=generator)
    images, filters = (t.to(memory_format=torch.channels_last) for t in (images, filters))
    # not zeros: untouched pages of zeros are all the same page, and that is in the cache
    weights = torch.ones(max(1 << 18, min(weight_bytes, _BUFFER)) // 4, device=device)
    one = torch.zeros(1, device=device)
    with torch.inference_mode():
        product = _PRODUCT**3 / _quickest(lambda: torch.mm(a, b), timer)
        convolution = _quickest(lambda: functional.conv2d(images, filters, padding=1), timer)
        convolution = (channels * side) ** 2 * 9 / convolution
        reading = _quickest(weights.sum, timer)
        calls = _quickest(lambda: [torch.relu(one) for _ in range(100)], timer) / 100
    return Machine(max(product, convolution), weights.nbytes / reading, calls)


def _quickest(call: Callable[[], object], timer: Clock) -> float:
    call()
    return min(timer(call) for _ in range(_REPEATS))


def bottleneck(
    seconds: float,
    layers: list[LayerTime],
    *,
    macs: int,
    weight_bytes: int,
    operations: int,
    unpruned: Mapping[str, bool],
    limits: Machine,
) -> Bottleneck:
    """What bounds a form, from its time and what the machine could do at best.

    Half of the time or more in layers that pruning has not touched: these. Otherwise whichever of
    arithmetic, memory traffic and overhead would take longest by itself.

    Args:
        seconds: of one batch.
        layers: its `layer_times`.
        macs: multiply-accumulates of the batch.
        weight_bytes: bytes of weights that are read.
        operations: operations that are started.
        unpruned: layer -> whether pruning has left its weights as they were; layers not named
            have none.
        limits: of the machine.
    """
    idle = sum(layer.ms for layer in layers if unpruned.get(layer.layer, False)) / 1e3 / seconds
    if idle >= 0.5 and not all(unpruned.values()):
        return Bottleneck("unpruned layers", min(1.0, idle))
    outputs = sum(layer.output_bytes for layer in layers)
    estimates = {
        "arithmetic": macs / limits.macs_per_second,
        "memory traffic": (weight_bytes + 2 * outputs) / limits.bytes_per_second,
        "overhead": operations * limits.call_seconds,
    }
    by = max(estimates, key=lambda name: estimates[name])
    return Bottleneck(by, min(1.0, estimates[by] / seconds))
