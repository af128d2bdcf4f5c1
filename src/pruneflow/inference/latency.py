"""Latency: calls timed side by side, how they compare, and the memory they hold."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor, nn

from pruneflow.inference.load import Load

Call = Callable[[], object]
Times = NDArray[np.float64]  # (rounds,) of one call

LEAST_ROUNDS = 3  # however little time there is: fewer say nothing of the spread
LEAST_FOR_INTERVAL = 30  # rounds; fewer say nothing of how they depend on each other
_LEAST_SECONDS = 0.5  # short calls are repeated for at least this long
_LONG_CALL = 0.02  # seconds; a longer call does not feel what another left in the caches
_WARM = 1.05  # times that fall by less than this have come to rest
_LEAST_BATCH, _MOST_BATCHES = 5, 20  # rounds in a batch, batches, of an interval
_UNSEEN = 2.0


def cpu_seconds(call: Call) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def cuda_seconds(call: Call, device: str) -> float:
    """Seconds of one call by CUDA's own events, to its very end."""
    with torch.cuda.device(device):  # whose events they are
        torch.cuda.synchronize()  # or this call's launches would hide behind the one before
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def timer(device: str) -> Callable[[Call], float]:
    """What gives the seconds of one call on a device."""
    return cpu_seconds if device == "cpu" else functools.partial(cuda_seconds, device=device)


def warm_up(call: Call, timer: Callable[[Call], float], seconds: float) -> float:
    """Call until times no longer fall, or the seconds are spent; the last time."""
    start = time.perf_counter()
    times = [timer(call), timer(call)]
    while time.perf_counter() - start < seconds:
        times.append(timer(call))
        half = len(times) // 2
        if len(times) >= 6 and min(times[:half]) <= _WARM * min(times[half:]):
            break
    return times[-1]


@dataclass(frozen=True)
class Rounds:
    """Times of several calls, in seconds."""

    seconds: dict[str, Times]  # of the rounds that count, the same of each call
    tried: int  # rounds in all
    others: float | None  # mean share of the processors that others took in those that do not count
    watched: bool  # whether the system's counters said anything of others


def interleaved(
    calls: Mapping[str, Call],
    timer: Callable[[Call], float],
    rounds: int,
    seconds: float,
    *,
    load: Load | None = None,
) -> Rounds:
    """Time calls in rounds that run each of them once, in random order: drift hits all alike.

    Other work does not: a call whose threads wait for each other lasts until the last has been
    given a processor again. So a round counts only if others left the processors alone, judged
    over windows that the system's counters can resolve. Where any call is short, each runs once
    untimed before it is timed, so that it finds its own weights in the caches. There are `rounds`
    that count at least, unless `seconds` are over first: then what fits, of three that are tried.
    """
    warm = [warm_up(call, timer, seconds / 10 / len(calls)) for call in calls.values()]
    order, load = np.random.default_rng(0), load or Load()
    load.others()
    counted: list[dict[str, float]] = []
    disturbed: list[float] = []
    tried, watched, spent, start = 0, True, 0.0, time.perf_counter()
    while (len(counted) < rounds or spent < min(_LEAST_SECONDS, seconds)) and (
        tried < LEAST_ROUNDS or spent < seconds
    ):
        window: list[dict[str, float]] = []
        opened = spent
        while not window or spent - opened < load.window_seconds:
            window.append({})
            for name in order.permutation(list(calls)).tolist():
                if min(warm) < _LONG_CALL:
                    calls[name]()
                window[-1][name] = timer(calls[name])
            spent = time.perf_counter() - start
        others = load.others()
        watched = watched and others is not None
        tried += len(window)
        if load.is_quiet(others):
            counted += window
        else:
            disturbed += [others or 0.0] * len(window)
    times = {name: np.array([row[name] for row in counted]) for name in calls}
    return Rounds(times, tried, float(np.mean(disturbed)) if disturbed else None, watched)


def spread(seconds: Times) -> dict[str, float]:
    """Median, 95th percentile, mean and standard deviation (of a sample), in milliseconds."""
    ms = seconds * 1e3
    return {
        "p50_ms": float(np.median(ms)),
        "p95_ms": float(np.percentile(ms, 95)),
        "mean_ms": float(ms.mean()),
        "sd_ms": float(ms.std(ddof=1)) if len(ms) > 1 else 0.0,
    }


def speedup(baseline: Times, other: Times) -> tuple[float, float | None, float | None]:
    """How many times faster than the baseline, both timed in the same rounds, and a 95 % interval.

    The ratio of the medians. The interval is of its logarithm, by Student's t over batches of
    consecutive rounds (Law & Carson 1979): the log ratio of the medians of each. Times that follow
    each other resemble each other, so batches count for fewer than they are: by their
    autocorrelation, raised by _UNSEEN / batches since few of them hide it. In simulation
    (`tests/inference/test_latency.py`) it covers 93 % or more, of independent times as of a
    first-order autocorrelation of 0.8. Under LEAST_FOR_INTERVAL rounds there is none.
    """
    ratio = float(np.median(baseline) / np.median(other))
    if len(other) < LEAST_FOR_INTERVAL:
        return ratio, None, None
    batches = min(_MOST_BATCHES, len(other) // _LEAST_BATCH)
    size = len(other) // batches
    first, second = (
        np.median(times[-batches * size :].reshape(batches, size), axis=1)
        for times in (baseline, other)
    )
    logs = np.log(first / second)
    deviations = logs - logs.mean()
    squares = float((deviations**2).sum())
    if squares == 0:
        return ratio, ratio, ratio
    seen = float((deviations[1:] * deviations[:-1]).sum()) / squares
    correlation = min(0.9, max(0.0, seen) + _UNSEEN / batches)
    effective = max(2.0, batches * (1 - correlation) / (1 + correlation))
    # the spread of what is correlated is too small by as much as `effective - 1` makes good
    error = float(logs.std(ddof=1)) / math.sqrt(effective - 1)
    factor = math.exp(float(special.stdtrit(effective - 1, 0.975)) * error)
    return ratio, ratio / factor, ratio * factor


def stored(tensor: Tensor) -> list[Tensor]:
    """What is stored of a tensor: itself, or a sparse one's values and then its indices."""
    if tensor.layout == torch.sparse_csr:
        return [tensor.values(), tensor.crow_indices(), tensor.col_indices()]
    return [tensor]


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers, of sparse ones what is stored of them."""
    tensors = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    return sum(part.nbytes for tensor in tensors.values() for part in stored(tensor))


def working_bytes(call: Call, device: str) -> int:
    """The most memory that one call holds at a time for what it makes itself.

    As PyTorch's allocators report it: what libraries below it take on a CPU is not seen.
    """
    if device != "cpu":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it writes a line at every start and stop
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return int(np.cumsum([0, *(change for _, change in changes)]).max())


def free_bytes(device: str) -> int:
    """Memory that is there to be taken on a device."""
    if device != "cpu":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    return int(psutil.virtual_memory().available)
