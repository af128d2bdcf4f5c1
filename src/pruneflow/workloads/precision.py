"""Precision: whether a model trains faster in bfloat16 here, measured on it and remembered."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pruneflow import measurements
from pruneflow.workloads import models
from pruneflow.workloads.training import Machine

# By so much a step has to be faster in bf16: near 1, noise would decide, and differently each time.
GAIN = 1.15
_SECONDS = 2.0  # of measuring, unless three rounds take longer
_ROUNDS = 9


@dataclass(frozen=True)
class Measured:
    """A training step in both precisions.

    Attributes:
        fp32_ms, bf16_ms: of its forward and backward pass, medians.
    """

    fp32_ms: float
    bf16_ms: float

    @property
    def choice(self) -> str:
        """`bf16` where it is clearly faster, else `fp32`."""
        return "bf16" if self.fp32_ms >= GAIN * self.bf16_ms else "fp32"

    def __str__(self) -> str:
        return (
            f"{self.choice}: a step takes {self.bf16_ms:.1f} ms in bf16, {self.fp32_ms:.1f} in fp32"
        )


def measure(
    name: str,
    build: Callable[[], tuple[nn.Module, Tensor | dict[str, Tensor]]],
    machine: Machine,
) -> Measured:
    """Time a training step of a model in fp32 and bf16, in turns, unless that is remembered.

    Args:
        name: says which model on which inputs ("alexnet 64x64x3x64"): it is remembered by that.
        build: makes the model and a batch of inputs, both on the machine.
        machine: the device and its threads; its precision does not matter.
    """
    path = measurements.file_of("precision")
    key = "; ".join([name, machine.device, *measurements.of_machine()])
    known = measurements.read(path).get(key)
    if (found := _read(known)) is not None:
        return found
    with torch.random.fork_rng(devices=[] if machine.device == "cpu" else None):
        model, inputs = build()
        measured = _time(model, inputs, machine)
    measurements.remember(path, {key: asdict(measured)})
    return measured


def _read(known: Any) -> Measured | None:
    """What is remembered, if it is of the right kind."""
    if not isinstance(known, Mapping):
        return None
    fp32, bf16 = known.get("fp32_ms"), known.get("bf16_ms")
    if not isinstance(fp32, float) or not isinstance(bf16, float) or min(fp32, bf16) <= 0:
        return None
    return Measured(fp32, bf16)


def _time(model: nn.Module, inputs: Tensor | dict[str, Tensor], machine: Machine) -> Measured:
    """The medians of forward and backward passes, on a copy of the model."""
    model = copy.deepcopy(model).train()
    first = inputs if isinstance(inputs, Tensor) else inputs["input_ids"]
    labels = torch.zeros(len(first), dtype=torch.int64, device=first.device)

    def step(precision: str) -> float:
        start = time.perf_counter()
        with replace(machine, precision=precision).autocast():
            logits = models.logits(model, inputs)
        functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        if machine.device == "cuda":
            torch.cuda.synchronize()
        model.zero_grad()
        return 1000 * (time.perf_counter() - start)

    times: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for precision in times:
        step(precision)  # kernels are chosen, memory is asked for
    end = time.monotonic() + _SECONDS
    for number in range(_ROUNDS):
        if number >= 3 and time.monotonic() > end:
            break
        for precision, found in times.items():
            found.append(step(precision))
    return Measured(*(statistics.median(found) for found in times.values()))
