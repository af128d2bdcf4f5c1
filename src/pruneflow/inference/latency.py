"""Latency: several ways to do the same thing, timed side by side so that drift hits all alike."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from scipy import special
from torch import nn

from pruneflow.inference.load import Load

Call = Callable[[], object]
Clock = Callable[[Call], float]

_LEAST_ROUNDS = 3  # however little time there is: fewer say nothing of the spread
_MOST_ROUNDS = 2_000
_LEAST_SECONDS = 0.5  # short calls are repeated for at least this long
_LONG_CALL = 0.02  # seconds; a longer call does not feel what another left in the caches
_SETTLED = 1.05
LEAST_FOR_INTERVAL = 30  # rounds; fewer say nothing of how they hang together
_LEAST_BATCH, _MOST_BATCHES = 5, 20  # rounds in a batch, batches, of an interval
_UNSEEN = 2.0


@dataclass(frozen=True)
class Effort:
    """How long a point is measured.

    Attributes:
        rounds: at least so many that count, each timing every candidate once,
        seconds: unless they take longer than this; then what fits, of three that are tried.
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


@dataclass(frozen=True)
class Rounds:
    """Times of several calls, of the rounds that count.

    Attributes:
        seconds: name -> (rounds,); row i of every array is of round i.
        tried: rounds in all, those in which others used the processors included.
        others: the mean share of the processors that others took in those that do not count;
            None where all count.
        watched: whether the system's counters said anything of others.
    """

    seconds: dict[str, NDArray[np.float64]]
    tried: int
    others: float | None
    watched: bool

    @property
    def are_enough(self) -> bool:
        """Whether enough count to say anything."""
        return len(next(iter(self.seconds.values()))) >= _LEAST_ROUNDS


def interleaved(
    calls: Mapping[str, Call],
    timer: Clock,
    effort: Effort,
    *,
    load: Load | None = None,
    seed: int = 0,
) -> Rounds:
    """Times of several calls, in rounds that run every one of them once, in random order.

    A clock that drifts or a processor that throttles then hits all alike. Other work does not: a
    call whose threads wait for each other lasts until the last has been given a processor again,
    however little it does. So a round counts only if others left the processors alone, judged over
    windows that the system's counters can resolve. Where any of the calls is short, each runs once
    untimed before it is timed, so that it finds its own weights in the caches and not those of the
    one before.

    Args:
        calls: what to time, by name.
        timer: of their device.
        effort: how long.
        load: what others take; the system's counters by default.
        seed: of the orders.
    """
    warm = [settle(call, timer, effort.seconds / 10 / len(calls)) for call in calls.values()]
    short = min(warm) < _LONG_CALL
    order = np.random.default_rng(seed)
    names = list(calls)
    load = load or Load()
    load.others()
    counted: list[dict[str, float]] = []
    shares: list[float] = []
    tried, watched = 0, True
    start = time.perf_counter()
    spent = 0.0
    while len(counted) < _MOST_ROUNDS:
        window: list[dict[str, float]] = []
        opened = spent
        while not window or spent - opened < load.window_seconds:
            window.append(_round(calls, names, timer, order, short))
            spent = time.perf_counter() - start
        others = load.others()
        watched = watched and others is not None
        tried += len(window)
        if load.is_quiet(others):
            counted += window
        else:
            shares += [others or 0.0] * len(window)
        if len(counted) >= effort.rounds and spent >= min(_LEAST_SECONDS, effort.seconds):
            break
        if tried >= _LEAST_ROUNDS and spent >= effort.seconds:
            break
    seconds = {name: np.array([row[name] for row in counted]) for name in names}
    return Rounds(seconds, tried, float(np.mean(shares)) if shares else None, watched)


def _round(
    calls: Mapping[str, Call],
    names: Sequence[str],
    timer: Clock,
    order: np.random.Generator,
    short: bool,
) -> dict[str, float]:
    """Seconds of every call, once each in a random order."""
    row = {}
    for number in order.permutation(len(names)):
        name = names[number]
        if short:
            calls[name]()
        row[name] = timer(calls[name])
    return row


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
    baseline: NDArray[np.float64], other: NDArray[np.float64]
) -> tuple[float, float | None, float | None]:
    """How many times faster than the baseline, and a 95 % interval of that.

    The ratio of the medians. The interval is of that ratio's logarithm, by Student's t over batches
    of consecutive rounds (Law & Carson 1979): the log ratio of the medians of each, both of the
    same rounds, as they were measured together. Times that follow each other resemble each other,
    so batches count for fewer than they are: by their autocorrelation, which is raised by
    _UNSEEN / batches since few of them hide it. In simulation (`tests/inference/test_latency.py`)
    it covers 93 % or more wherever there is one, for independent times as for a first-order
    autocorrelation of 0.8 in each.

    Args:
        baseline, other: seconds (rounds,), of the same rounds.

    Returns:
        The ratio, and the lower and upper end of its interval; None of fewer rounds than
        LEAST_FOR_INTERVAL.
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
    reach = math.exp(float(special.stdtrit(effective - 1, 0.975)) * error)
    return ratio, ratio / reach, ratio * reach


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
