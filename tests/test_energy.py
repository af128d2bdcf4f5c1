"""Energy: which counters count, what they add up to, and what is refused."""

from __future__ import annotations

import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from counters import zone

from pruneflow import energy
from pruneflow.energy import Counter, Meter, counters
from pruneflow.errors import InputError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of /sys/class/powercap."""
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "powercap")
    return tmp_path / "powercap"


def names(device: str = "cpu") -> list[str]:
    return [counter.name for counter in counters(device)]


def add(file: Path, joules: float) -> None:
    file.write_text(f"{int(file.read_text()) + round(1e6 * joules)}\n")


def test_packages_and_memory_count_and_each_of_them_once(root: Path) -> None:
    (root / "intel-rapl").mkdir(parents=True)  # the kind of control, as Linux has it beside them
    for number in (0, 1):
        zone(root, f"intel-rapl:{number}", f"package-{number}", 1_000_000)
        zone(root, f"intel-rapl:{number}:0", "core")
        zone(root, f"intel-rapl:{number}:1", "uncore")
        zone(root, f"intel-rapl:{number}:2", "dram")
    zone(root, "intel-rapl:2", "psys")
    zone(root, "intel-rapl:2:0", "dram")  # within what is left out
    zone(root, "intel-rapl-mmio:0", "package-0", 7_000_000)  # the same package once more
    assert names() == [
        "rapl package-0", "rapl package-0 dram", "rapl package-1", "rapl package-1 dram",
    ]  # fmt: skip
    assert counters("cpu")[0].read() == 1.0


def test_dies_of_a_package_are_counted(root: Path) -> None:
    for number in (0, 1):
        zone(root, f"intel-rapl:{number}", f"package-0-die-{number}")
    assert names() == ["rapl package-0-die-0", "rapl package-0-die-1"]


def test_energy_is_that_of_all_counters_since_the_last_time(root: Path) -> None:
    first, second = (zone(root, f"intel-rapl:{n}", f"package-{n}", 5 + n) for n in (0, 1))
    meter = Meter(counters("cpu"))
    assert meter.names == "rapl package-0; rapl package-1"
    with meter.measuring():
        assert meter.joules() is None  # nothing has moved
        add(first, 1.5)
        add(second, 0.25)
        assert meter.joules() == pytest.approx(1.75)
        add(second, 2)
        assert meter.joules() == pytest.approx(2)
    add(second, 100)  # outside
    with meter.measuring():
        add(first, 1)
        assert meter.joules() == pytest.approx(1)


def test_a_counter_that_begins_anew_has_gone_on(root: Path) -> None:
    file = zone(root, "intel-rapl:0", "package-0", 8_000_000, limit=10_000_000)
    meter = Meter(counters("cpu"))
    with meter.measuring():
        file.write_text("1000000\n")
        assert meter.joules() == pytest.approx(3)


def test_a_counter_is_read_before_it_can_begin_anew_twice(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine tenths of its range between readings, ten times."""
    monkeypatch.setattr(energy, "_EVERY_SECONDS", 0.001)
    file = zone(root, "intel-rapl:0", "package-0", 0, limit=10_000_000)
    value, read, enough = 0, energy._joules, threading.Event()

    def reading(path: Path) -> float:
        nonlocal value
        if path == file and not enough.is_set():
            value += 9_000_000
            file.write_text(f"{value % 10_000_000}\n")
            if value >= 90_000_000:
                enough.set()
        return read(path)

    meter = Meter(counters("cpu"))
    monkeypatch.setattr(energy, "_joules", reading)
    with meter.measuring():
        assert enough.wait(60)
        assert meter.joules() == pytest.approx(90 - 9)  # the first reading is where it begins


@pytest.mark.parametrize("ends", [RuntimeError, KeyboardInterrupt])
def test_no_thread_is_left_however_measuring_ends(root: Path, ends: type[BaseException]) -> None:
    zone(root, "intel-rapl:0", "package-0")

    def measure() -> None:
        with Meter(counters("cpu")).measuring():
            assert "energy" in [thread.name for thread in threading.enumerate()]
            raise ends

    with pytest.raises(ends):
        measure()
    assert "energy" not in [thread.name for thread in threading.enumerate()]


def test_what_could_not_be_read_is_not_known_rather_than_too_little(root: Path) -> None:
    file = zone(root, "intel-rapl:0", "package-0")
    meter = Meter(counters("cpu"))
    with meter.measuring():
        file.unlink()
        assert meter.joules() is None
        file.write_text("5000000\n")
        assert meter.joules() is None  # when it was last read is not known
        add(file, 2)
        assert meter.joules() == pytest.approx(2)


def test_a_counter_that_falls_without_a_range_is_not_known() -> None:
    values = iter([5.0, 1.0])
    meter = Meter([Counter("nvml 0", lambda: next(values), None)])
    with meter.measuring():
        assert meter.joules() is None


def test_energy_of_a_call_is_the_mean_over_its_repetitions(root: Path) -> None:
    file = zone(root, "intel-rapl:0", "package-0")
    meter = Meter(counters("cpu"))
    assert meter.joules_per_call(lambda: add(file, 3), 0.01) == pytest.approx(3)
    assert meter.joules_per_call(lambda: None, 0.0) is None


def test_what_is_done_again_after_an_interruption_counts_once(root: Path) -> None:
    file = zone(root, "intel-rapl:0", "package-0")
    first, second, unmeasured = (Meter(counters("cpu")) for _ in range(3))
    with first.measuring():
        add(file, 4)
        state = first.state()
        add(file, 10)  # lost
    with second.measuring():
        add(file, 20)  # what leads up to where it goes on
        second.go_on(state)
        add(file, 1)
        assert second.joules() == pytest.approx(5)
    with unmeasured.measuring():
        unmeasured.go_on({})
        add(file, 1)
        assert unmeasured.joules() is None


def test_without_counters_nothing_is_measured() -> None:
    meter = Meter()
    with meter.measuring():
        assert (meter.joules(), meter.names, meter.state()) == (None, "", {})


def test_a_machine_without_counters_is_refused(root: Path) -> None:
    with pytest.raises(InputError, match=r"energy=True is not possible here: .* has no RAPL"):
        counters("cpu")


def test_counters_that_only_root_can_read_are_refused_with_what_helps(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone(root, "intel-rapl:0", "package-0")

    def denied(path: Path) -> float:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(energy, "_joules", denied)
    with pytest.raises(InputError, match=r"Permission denied.*run as root.*chmod a\+r"):
        counters("cpu")


class Nvml(types.ModuleType):
    """NVML of two GPUs, which CUDA numbers the other way round."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, supported: bool = True) -> None:
        super().__init__("pynvml")
        self.supported = supported

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid not in ("GPU-a", "GPU-b"):
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetIndex(self, handle: str) -> int:  # noqa: N802
        return {"GPU-a": 0, "GPU-b": 1}[handle]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        if not self.supported:
            raise self.NVMLError("Not Supported")
        return {"GPU-a": 1_500, "GPU-b": 2_500}[handle]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    uuids = {"cuda": "b", "cuda:0": "b", "cuda:1": "a", "cuda:2": "mig"}

    def properties(device: str) -> Any:
        return types.SimpleNamespace(uuid=uuids[device])

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())


@pytest.mark.usefixtures("gpus")
def test_the_gpu_that_counts_is_the_one_that_computes(root: Path) -> None:
    (counter,) = counters("cuda:1")
    assert (counter.name, counter.read()) == ("nvml 0", 1.5)
    zone(root, "intel-rapl:0", "package-0")
    assert names("cuda") == ["rapl package-0", "nvml 1"]
    assert names("cpu") == ["rapl package-0"]


@pytest.mark.usefixtures("gpus")
def test_a_gpu_without_a_counter_is_refused_whatever_packages_have(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone(root, "intel-rapl:0", "package-0")
    with pytest.raises(InputError, match=r"no energy counter of cuda:2 \(Not Found\)"):
        counters("cuda:2")
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(supported=False))
    with pytest.raises(InputError, match=r"no energy counter of cuda \(Not Supported\)"):
        counters("cuda")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(InputError, match=r"pip install 'pruneflow\[energy\]'"):
        counters("cuda")
