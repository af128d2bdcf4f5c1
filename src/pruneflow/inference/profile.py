"""Profile: which layers a form's time went to, and how much of it pruning could reach."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from pruneflow.workloads import models

_PASSES = 5
_LONG_PASS = 0.5  # seconds; then fewer passes


@dataclass(frozen=True)
class LayerTime:
    """A layer without layers of its own, in one forward pass.

    Attributes:
        ms: the median over passes, of all its calls together.
    """

    layer: str
    kind: str
    ms: float


@dataclass(frozen=True)
class Reach:
    """What became of the layers that a level has pruned.

    Attributes:
        share: of the dense form's time, what these layers took: were they free, a form would be
            1 / (1 - share) times as fast (Amdahl's law).
        time_left: their time in the form / in the dense form.
        macs_left: their multiply-accumulates, likewise.
    """

    share: float
    time_left: float
    macs_left: float

    @property
    def most(self) -> float:
        """The speed-up if the pruned layers took no time at all."""
        return 1 / max(1 - self.share, 1e-9)


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
    started: dict[str, float] = {}
    current: dict[str, float] = {}

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return counter()

    def watch(name: str, module: nn.Module) -> list[RemovableHandle]:
        def before(layer: nn.Module, inputs: object) -> None:
            started[name] = now()

        def after(layer: nn.Module, inputs: object, output: object) -> None:
            current[name] = current.get(name, 0.0) + now() - started[name]

        kinds[name] = type(module).__name__
        return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]

    alone = {n: m for n, m in model.named_modules() if next(m.children(), None) is None}
    handles = [handle for name, module in alone.items() for handle in watch(name, module)]
    passes, number = _PASSES, 0
    try:
        with models.looking(model):
            while number < passes:
                start = counter()
                current.clear()
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
    return [LayerTime(n, kinds[n], 1e3 * float(np.median(t))) for n, t in times.items()]


def reach(
    layers: list[LayerTime],
    dense: list[LayerTime],
    dense_ms: float,
    *,
    macs: Mapping[str, float],
    dense_macs: Mapping[str, float],
    pruned: Mapping[str, bool],
) -> Reach | None:
    """How much of the dense form's time lies in pruned layers, and what is left of it in a form.

    Args:
        layers, dense: `layer_times` of the form and of the dense form.
        dense_ms: of a whole batch of the dense form.
        macs, dense_macs: layer -> multiply-accumulates in the form and in the dense form.
        pruned: layer -> whether the level has pruned it; layers not named have no weights.

    Returns:
        None where no layer that was timed is pruned.
    """
    touched = {layer.layer: layer.ms for layer in dense if pruned.get(layer.layer, False)}
    before = sum(touched.values())
    if not before:
        return None
    after = sum(layer.ms for layer in layers if layer.layer in touched)
    of_dense = sum(dense_macs.get(name, 0.0) for name in touched)
    of_form = sum(macs.get(name, 0.0) for name in touched)
    share = min(1.0, before / dense_ms)
    return Reach(share, after / before, of_form / of_dense if of_dense else 1.0)
