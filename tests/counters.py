"""Counters of energy that are none: a folder as Linux has /sys/class/powercap."""

from __future__ import annotations

from pathlib import Path

import pytest

from pruneflow import energy


def zone(root: Path, folder: str, name: str, microjoules: int = 0, limit: int = 10**9) -> Path:
    """A domain of RAPL in a folder; the file of its counter."""
    place = root / folder
    place.mkdir(parents=True)
    (place / "name").write_text(f"{name}\n")
    (place / "max_energy_range_uj").write_text(f"{limit}\n")
    (place / "energy_uj").write_text(f"{microjoules}\n")
    return place / "energy_uj"


def one_joule_a_reading(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that has used another joule whenever it is read, and is read when asked alone."""
    zone(root, "intel-rapl:0", "package-0")
    monkeypatch.setattr(energy, "POWERCAP", root)
    monkeypatch.setattr(energy, "_EVERY_SECONDS", 1e6)
    read = energy._joules

    def reading(path: Path) -> float:
        value = read(path)
        if path.name == "energy_uj":
            path.write_text(f"{round(1e6 * value) + 10**6}\n")
        return value

    monkeypatch.setattr(energy, "_joules", reading)
