"""Latency: several ways to do the same thing, timed side by side so that drift hits all alike."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import nn

Call = Callable[[], object]
Clock = Callable[[Call], float]

_LEAST_ROUNDS = 3  # however little time there is: fewer say nothing of the spread
_MOST_ROUNDS = 2_000
_LEAST_SECONDS = 0.5  # short calls are repeated for at least this long
_LONG_CALL = 0.02  # seconds; a longer call does not feel what another left in the caches
_SETTLED = 1.05
_RESAMPLES = 2_000


@dataclass(frozen=True)
class Effort:
    """How long a point is measured.

    Attributes:
        rounds: at least so many, each timing every candidate once,
        seconds: unless they take longer than this; then three, or what fits.
    """

    rounds: int
    seconds: float


@dataclass(frozen=True)
class Spread:
    """What the times of one candidate look like, in milliseconds."""

    n: int
    p50_ms: float
    p95_ms: float
    mean_ms: float
    sd_ms: float


def clock(device: str) -> Clock:
    """What times one call on a device, in seconds: CUDA by its own events, to its very end."""
    return _cuda_seconds if device == "cuda" else _cpu_seconds


def _cpu_seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _cuda_seconds(call: Call) -> float:
    torch.cuda.synchronize()  # or this call's launches would hide behind the one before
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def settle(call: Call, timer: Clock, seconds: float) -> float:
    """Warm up: call until its times no longer fall, or the seconds are spent.

    Returns:
        The last time, in seconds.
    """
    start = time.perf_counter()
    times = [timer(call), timer(call)]
    while time.perf_counter() - start < seconds:
        times.append(timer(call))
        half = len(times) // 2
        if len(times) >= 6 and min(times[:half]) <= _SETTLED * min(times[half:]):
            break
    return times[-1]


def interleaved(
    calls: Mapping[str, Call], timer: Clock, effort: Effort, *, seed: int = 0
) -> dict[str, NDArray[np.float64]]:
    """Times of several calls, in rounds that run every one of them once, in random order.

    A clock that drifts, a neighbour that wakes up or a processor that throttles then hits all
    alike, and ratios within a round stay true. Where any of the calls is short, each runs once
    untimed before it is timed, so that it finds its own weights in the caches and not those of the
    one before.

    Args:
        calls: what to time, by name.
        timer: of their device.
        effort: how long.
        seed: of the orders.

    Returns:
        name -> seconds (rounds,); row i of every array is of round i.
    """
    warm = [settle(call, timer, effort.seconds / 10 / len(calls)) for call in calls.values()]
    short = min(warm) < _LONG_CALL
    order = np.random.default_rng(seed)
    names = list(calls)
    rows: list[dict[str, float]] = []
    start = time.perf_counter()
    while len(rows) < _MOST_ROUNDS:
        row = {}
        for number in order.permutation(len(names)):
            name = names[number]
            if short:
                calls[name]()
            row[name] = timer(calls[name])
        rows.append(row)
        spent = time.perf_counter() - start
        if len(rows) >= effort.rounds and spent >= min(_LEAST_SECONDS, effort.seconds):
            break
        if len(rows) >= _LEAST_ROUNDS and spent >= effort.seconds:
            break
    return {name: np.array([row[name] for row in rows]) for name in names}


def spread(seconds: NDArray[np.float64]) -> Spread:
    """Median, 95th percentile, mean and standard deviation (of a sample) of times in seconds."""
    ms = seconds * 1e3
    return Spread(
        n=len(ms),
        p50_ms=float(np.median(ms)),
        p95_ms=float(np.percentile(ms, 95)),
        mean_ms=float(ms.mean()),
        sd_ms=float(ms.std(ddof=1)) if len(ms) > 1 else 0.0,
    )


def speedup(
    baseline: NDArray[np.float64], other: NDArray[np.float64], *, seed: int = 0
) -> tuple[float, float, float]:
    """How many times faster than the baseline, and a 95 % interval of that.

    The ratio of the medians; the interval by the percentile bootstrap over rounds (Efron 1979), in
    which both times of a round are drawn together, as they were measured together.

    Args:
        baseline, other: seconds (rounds,), of the same rounds.
        seed: of the resampling.

    Returns:
        The ratio, and the lower and upper end of its interval.
    """
    drawn = np.random.default_rng(seed).integers(len(other), size=(_RESAMPLES, len(other)))
    ratios = np.median(baseline[drawn], axis=1) / np.median(other[drawn], axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(np.median(baseline) / np.median(other)), float(low), float(high)


# ------------------------------------------------------------------------------------- memory


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers, of sparse ones what is stored of them."""
    tensors = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    return sum(_bytes(tensor) for tensor in tensors.values())


def _bytes(tensor: torch.Tensor) -> int:
    if tensor.layout == torch.sparse_csr:
        parts: Sequence[torch.Tensor] = (
            tensor.crow_indices(),
            tensor.col_indices(),
            tensor.values(),
        )
        return sum(part.nbytes for part in parts)
    return tensor.nbytes


@dataclass(frozen=True)
class Trace:
    """What one call did.

    Attributes:
        working_bytes: the most memory it held at a time for what it made itself: on a CPU what
            PyTorch's allocator handed out (what libraries below it take for themselves is not
            seen), on CUDA what its caching allocator reports.
        operations: operations of PyTorch it started, those inside others not counted.
    """

    working_bytes: int
    operations: int


def trace(call: Call, device: str) -> Trace:
    """Watch one call by PyTorch's profiler."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells of every start and stop
    before = 0
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        call()
    events = profiler.events() or []
    operations = sum(1 for e in events if e.cpu_parent is None and e.name.startswith("aten::"))
    if device == "cuda":
        torch.cuda.synchronize()
        return Trace(int(torch.cuda.max_memory_allocated() - before), operations)
    recorded = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in recorded if e.name() == "[memory]")
    held = np.cumsum([change for _, change in changes]) if changes else np.zeros(1)
    return Trace(max(0, int(held.max())), operations)


def free_bytes(device: str) -> int:
    """Memory that is there to be taken on a device."""
    if device == "cuda":
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0]) + cached
    return int(psutil.virtual_memory().available)
