"""Load: what other processes take of the processors, by the system's own counters."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple

import psutil

_SHARE = 0.05  # of the processors that others may take: daemons, and what the ticks leave open
_MOST_CORES = 0.5  # but of many processors no more than this: a barrier waits for the slowest


class Reading(NamedTuple):
    """Counters of the processors that this process may use, together, in processor seconds."""

    busy: float  # for whatever reason: other processes, this one, a hypervisor's other guests
    total: float  # busy or idle
    process: float  # of this process, all threads
    processors: int


def read() -> Reading:
    """The counters as they stand."""
    each = psutil.cpu_times(percpu=True)
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(each))
    if max(usable) < len(each):  # else some are offline, and numbers are no indices
        each = [each[number] for number in usable]
    idle = sum(times.idle + getattr(times, "iowait", 0.0) for times in each)
    # a guest's time is in `user` already
    guests = sum(getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0) for times in each)
    total = sum(map(sum, each)) - guests
    return Reading(total - idle, total, time.process_time(), len(each))


class Load:
    """What others take of the processors, from one call to the next."""

    # Counters advance in ticks of 10 ms: over this they are right to some 2 %.
    window_seconds = 0.5

    def __init__(self, reading: Callable[[], Reading] = read) -> None:
        self._read = reading
        self._last = reading()

    def others(self) -> float | None:
        """Share of the processors since the last call; None if counters stand still (sandboxes)."""
        last, self._last = self._last, self._read()
        total, process = self._last.total - last.total, self._last.process - last.process
        if total < process or total <= 0:
            return None
        return min(1.0, max(0.0, (self._last.busy - last.busy - process) / total))

    def is_quiet(self, others: float | None) -> bool:
        """Whether that share leaves times as they are; what nothing counts is taken for quiet."""
        return others is None or others <= min(_SHARE, _MOST_CORES / self._last.processors)
