"""Energy: joules by the machine's own counters, of all that ran on it; nothing is estimated.

Of processors these are the RAPL counters that Linux has under /sys/class/powercap, of a GPU NVML's.
A package's `core` and `uncore` are parts of it and `psys` counts packages again: they are left
out. `dram` is no part of a package and is added where there is one.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pruneflow.errors import InputError, first_line

POWERCAP = Path("/sys/class/powercap")
_PACKAGE = re.compile(r"package-\d+(-die-\d+)?")
_EVERY_SECONDS = 10.0  # between readings: a package counts to 65 kJ at the least, and begins anew
_STATE = "energy.joules"


@dataclass(frozen=True)
class Counter:
    """A counter that only rises, in joules, until it begins anew at `limit` (None: never)."""

    name: str  # "rapl package-0", "nvml 1"
    read: Callable[[], float]  # OSError or ValueError: not to be read
    limit: float | None


def counters(device: str) -> tuple[Counter, ...]:
    """The counters for work on a device: the packages', and of a GPU its own, which it must have.

    Raises:
        InputError: the device has no counter that this process can read.
    """
    if device == "cpu":
        return _rapl()
    gpu = _nvml(device)
    try:
        return (*_rapl(), gpu)
    except InputError:
        return (gpu,)


def _rapl() -> tuple[Counter, ...]:
    """Counters of packages and their memory; the memory-mapped twin of a package counts once."""
    found = {}
    for zone in sorted(POWERCAP.glob("*-rapl*:*")):  # `intel-rapl-mmio:0` before `intel-rapl:0`
        name, within = _name(zone), _name(zone.with_name(zone.name.rpartition(":")[0]))
        if _PACKAGE.fullmatch(name):
            found[name] = zone
        elif name == "dram" and _PACKAGE.fullmatch(within):
            found[f"{within} dram"] = zone
    if not found:
        raise InputError(
            f"energy=True is not possible here: {POWERCAP} has no RAPL counter of a processor: "
            "leave it out, or run on a machine that has one (Linux, and hardly ever virtual)"
        )
    try:
        packages = tuple(_rapl_counter(name, zone) for name, zone in found.items())
        for counter in packages:
            counter.read()
    except (OSError, ValueError) as error:
        raise InputError(
            f"energy=True is not possible here: a RAPL counter cannot be read "
            f"({first_line(error)}): leave it out, run as root, or let everybody read it "
            f"(chmod a+r {POWERCAP}/*rapl*/energy_uj)"
        ) from None
    return packages


def _rapl_counter(name: str, zone: Path) -> Counter:
    path, limit = zone / "energy_uj", _joules(zone / "max_energy_range_uj")
    return Counter(f"rapl {name}", lambda: _joules(path), limit)


def _joules(path: Path) -> float:
    return int(path.read_text("ascii")) / 1e6


def _name(zone: Path) -> str:
    try:
        return (zone / "name").read_text("ascii").strip()
    except (OSError, ValueError):
        return ""


def _nvml(device: str) -> Counter:
    """The counter of a GPU, which NVML is asked for by its UUID: CUDA may number GPUs otherwise."""
    try:
        import pynvml
    except ImportError:
        raise InputError(
            f"energy=True needs a package that reads the counter of {device}: "
            "pip install 'pruneflow[energy]'"
        ) from None

    def read() -> float:
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
        except pynvml.NVMLError as error:
            raise OSError(first_line(error)) from None

    try:
        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
        counter = Counter(f"nvml {pynvml.nvmlDeviceGetIndex(handle)}", read, None)
        counter.read()
    except (pynvml.NVMLError, OSError) as error:
        raise InputError(
            f"energy=True is not possible here: NVML gives no energy counter of {device} "
            f"({first_line(error)}): leave it out, or pass a whole NVIDIA GPU (Volta or newer)"
        ) from None
    return counter


class Meter:
    """Joules of some counters together; without any it measures nothing, and says None."""

    def __init__(self, counters: Sequence[Counter] = ()) -> None:
        self._counters, self._lock = tuple(counters), threading.Lock()
        self._before: list[float] | None = None  # values when they were last read
        self._joules = math.nan  # since `joules` was called; NaN: not known

    @property
    def names(self) -> str:
        """What is counted, as `rapl package-0; nvml 0`."""
        return "; ".join(counter.name for counter in self._counters)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Measure from here on; a thread reads the counters before they could begin anew twice."""
        if not self._counters:
            yield
            return
        self._before = None
        self._read()
        self._joules, stopped = 0.0, threading.Event()

        def read_on() -> None:
            while not stopped.wait(_EVERY_SECONDS):
                self._read()

        thread = threading.Thread(target=read_on, name="energy", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()

    def joules(self) -> float | None:
        """Joules since measuring began, or since the last call.

        None without counters, where one could not be read meanwhile, and where none has moved.
        """
        joules = self._read()
        with self._lock:
            self._joules = 0.0
        return joules if joules > 0 else None

    def joules_per_call(self, call: Callable[[], object], seconds: float) -> float | None:
        """Mean joules of a call that is repeated for so many seconds, or None as in `joules`.

        Repeated since counters tick: RAPL's every millisecond, NVML's every 20 to 100.
        """
        with self.measuring():
            calls, start = 0, time.perf_counter()
            while not calls or time.perf_counter() - start < seconds:
                call()
                calls += 1
            joules = self.joules()
        return None if joules is None else joules / calls

    def state(self) -> dict[str, Tensor]:
        """Joules since `joules` was called, for `go_on` in another process."""
        return {_STATE: torch.tensor(self._read(), dtype=torch.float64)} if self._counters else {}

    def go_on(self, state: Mapping[str, Tensor]) -> None:
        """Measure on from what `state` gave; what was measured until now is done a second time.

        Not known, as `joules` then says, where that process measured nothing.
        """
        self._read()
        self._joules = float(state.get(_STATE, math.nan))

    def _read(self) -> float:
        """Read the counters; joules until now."""
        with self._lock:
            try:
                now = [counter.read() for counter in self._counters]
            except (OSError, ValueError):
                self._before, self._joules = None, math.nan
                return math.nan
            before, self._before = self._before, now
            for counter, a, b in zip(self._counters, before or [], now, strict=before is not None):
                self._joules += b - a if b >= a else b - a + (counter.limit or math.nan)
            if before is None:
                self._joules = math.nan
            return self._joules
