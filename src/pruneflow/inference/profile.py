"""Profile: which layers a form's time goes to, and how much of it pruning could reach."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from pruneflow.workloads import models

_PASSES = 4  # the first does not count


@contextmanager
def watched(
    layers: Mapping[str, nn.Module], now: Callable[[], float] = time.perf_counter
) -> Iterator[tuple[dict[str, float], dict[str, tuple[int, ...]]]]:
    """Seconds of the layers that are called in here, and shapes of their outputs, by name."""
    seconds: dict[str, float] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    handles = []
    for name, layer in layers.items():

        def before(*call: Any, name: str = name) -> None:
            seconds[name] = seconds.get(name, 0.0) - now()

        def after(*call: Any, name: str = name) -> None:
            seconds[name] += now()
            shapes[name] = tuple(getattr(call[-1], "shape", ()))

        handles += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
    try:
        yield seconds, shapes
    finally:
        for handle in handles:
            handle.remove()


def layer_times(
    model: nn.Module,
    run: Callable[[nn.Module], object],
    device: str,
    *,
    counter: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Milliseconds of the layers that hold no others, medians of passes, in the order of calls.

    On CUDA each layer is waited for, so that the sum is above the whole.
    """

    def now() -> float:
        if device != "cpu":
            torch.cuda.synchronize(device)
        return counter()

    layers = {name: m for name, m in model.named_modules() if next(m.children(), None) is None}
    passes: list[dict[str, float]] = []
    with models.looking(model):
        for _ in range(_PASSES):
            with watched(layers, now) as (seconds, _):
                run(model)
            passes.append(seconds)
    return {n: 1e3 * float(np.median([p.get(n, 0.0) for p in passes[1:]])) for n in passes[1]}


def reach(
    layers: Mapping[str, float],
    dense_layers: Mapping[str, float],
    dense_ms: float,
    *,
    macs: Mapping[str, float],
    dense_macs: Mapping[str, float],
    pruned: Collection[str],
) -> dict[str, float]:
    """What became of the pruned layers, as columns of `latency.csv`; nothing if none was timed.

    Were they free, a form would be 1 / (1 - `pruned_share`) times as fast as dense (Amdahl's law),
    whose batch takes `dense_ms`. MACs are by weight, the rest is by layer.
    """
    touched = [layer for layer in dense_layers if layer in pruned]
    before, after = (sum(each.get(n, 0.0) for n in touched) for each in (dense_layers, layers))
    if not before:
        return {}
    dense_count, count = (
        sum(n for name, n in each.items() if name.rpartition(".")[0] in touched)
        for each in (dense_macs, macs)
    )
    return {
        "pruned_share": min(1.0, before / dense_ms),
        "pruned_time_left": after / before,
        "pruned_macs_left": count / dense_count if dense_count else 1.0,
    }
