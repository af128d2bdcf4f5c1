"""Load: what other processes take of the processors, by the system's own counters."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

# Counters advance in ticks of 10 ms on every processor; over this they are right to some 2 %.
_WINDOW_SECONDS = 0.5
_SHARE = 0.05  # of the processors that others may take: daemons, and what the ticks leave open
_MOST_CORES = 0.5  # but of many processors no more than this: a barrier waits for the slowest


@dataclass(frozen=True)
class Reading:
    """Counters of the processors that this process may use, together, in processor seconds.

    Attributes:
        busy: not idle, for whatever reason: other processes, this one, a hypervisor's other guests.
        total: busy or idle.
        own: of this process, all threads.
        processors: how many there are.
    """

    busy: float
    total: float
    own: float
    processors: int


def read() -> Reading:
    """The counters as they stand."""
    each = psutil.cpu_times(percpu=True)
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(each))
    if max(usable) < len(each):  # else some are offline, and numbers are no places
        each = [each[number] for number in usable]
    idle = sum(times.idle + getattr(times, "iowait", 0.0) for times in each)
    # a guest's time is in `user` already
    fields = ("user", "nice", "system", "irq", "softirq", "steal", "interrupt", "dpc")
    busy = sum(getattr(times, field, 0.0) for times in each for field in fields)
    return Reading(busy, busy + idle, time.process_time(), len(each))


class Load:
    """What others take of the processors, from one call to the next.

    Attributes:
        window_seconds: how far apart two calls have to be for the counters to say it.
    """

    window_seconds = _WINDOW_SECONDS

    def __init__(self, reading: Callable[[], Reading] = read) -> None:
        self._read = reading
        self._last = reading()

    def others(self) -> float | None:
        """Share of the processors that others took since the last call; None if nothing counts.

        Some sandboxes have counters that stand still.
        """
        last, self._last = self._last, self._read()
        total = self._last.total - last.total
        own = self._last.own - last.own
        if total < own or total <= 0:
            return None
        return min(1.0, max(0.0, (self._last.busy - last.busy - own) / total))

    def is_quiet(self, others: float | None) -> bool:
        """Whether that share leaves times as they are; what nothing counts is taken for quiet."""
        return others is None or others <= min(_SHARE, _MOST_CORES / self._last.processors)


class Unwatched(Load):
    """Takes every round for quiet: for choices that are wanted at once, whoever else computes."""

    window_seconds = 0.0

    def others(self) -> float | None:
        """None: nothing is read."""
        return None
