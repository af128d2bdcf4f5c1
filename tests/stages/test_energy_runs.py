"""Energy of runs: of epochs, levels and latency points, and of runs that were interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from counters import one_joule_a_reading
from mlflow.tracking import MlflowClient

import pruneflow
from pruneflow import energy
from pruneflow.errors import InputError
from pruneflow.stages import benchmark_point, experiment
from pruneflow.tracking.run import Run

SMALL: dict[str, Any] = {
    "model": "shufflenet_v2_x0_5",
    "image_size": 32,
    "train_limit": 100,
    "batch_size": 50,
    "threads": 1,
    "precision": "fp32",
    "device": "cpu",
}
TOTAL = "energy/total_joules"


class Stop(KeyboardInterrupt):
    """What a test interrupts a run with."""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_joule_a_reading(tmp_path / "powercap", monkeypatch)


def joules(run_id: str, name: str) -> list[tuple[int, float]]:
    history = MlflowClient().get_metric_history(run_id, name)
    return sorted((metric.step, round(metric.value, 6)) for metric in history)


def interrupt(stage: str, settings: dict[str, Any]) -> None:
    """Start a stage, and interrupt it as soon as its training is saved, after the first epoch."""
    save = Run.save_training

    def saving(run: Run, *what: Any) -> None:
        save(run, *what)
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "SAVE_SECONDS", 0.0)
        patch.setattr(Run, "save_training", saving)
        with pytest.raises(Stop):
            getattr(pruneflow, stage)(**settings)


@pytest.mark.usefixtures("store", "package")
def test_epochs_levels_and_points_have_their_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_point, "_ENERGY_SECONDS", 0.0)  # one call: a joule a batch
    base = pruneflow.finetune(epochs=2, energy=True, **SMALL)
    assert joules(base.run_id, "energy/epoch_joules") == [(1, 1), (2, 1)]
    assert joules(base.run_id, TOTAL) == [(2, 3)]  # with what is measured in the end
    pruned = pruneflow.prune_direct(base_run=base.run_id, finetune_epochs=1, energy=True, **SMALL)
    assert pruned.levels["energy_joules"].tolist() == pytest.approx([1, 1])
    assert joules(pruned.run_id, "energy/level_joules") == [(0, 1), (1, 1)]
    assert joules(pruned.run_id, TOTAL) == [(1, 2)]
    timed = pruneflow.benchmark_latency(
        run=pruned.run_id, batch_sizes=[1, 4], rounds=3, seconds=0.2, device="cpu", threads=1,
        forms="masked", energy=True,
    )  # fmt: skip
    rows = timed.latencies
    expected = 1 / rows["batch_size"]
    assert rows["energy_joules_per_sample"].tolist() == pytest.approx(expected.tolist())
    for run_id in (base.run_id, pruned.run_id, timed.run_id):
        assert MlflowClient().get_run(run_id).data.tags["pruneflow.energy"] == "rapl package-0"


@pytest.mark.usefixtures("store", "package")
def test_epochs_of_a_run_that_was_interrupted_count_once() -> None:
    settings = SMALL | {"epochs": 3, "energy": True}
    interrupt("finetune", settings)
    done = pruneflow.finetune(**settings)
    # the second has been saved of, and read once more, in the process that was interrupted
    assert joules(done.run_id, "energy/epoch_joules") == [(1, 1), (2, 2), (3, 1)]
    assert joules(done.run_id, TOTAL) == [(3, 5)]


@pytest.mark.usefixtures("store", "package")
def test_a_level_that_was_interrupted_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SMALL | {"base_epochs": 1, "finetune_epochs": 2, "energy": True}
    interrupt("prune_direct", settings)
    done = pruneflow.prune_direct(**settings)
    monkeypatch.setattr(experiment, "SAVE_SECONDS", 0.0)  # as often as there, and as much is read
    whole = pruneflow.prune_direct(**settings | {"resume": "never"})
    for run in (done, whole):
        assert joules(run.run_id, "energy/level_joules") == [(0, 1), (1, 2)]
        assert joules(run.run_id, TOTAL) == [(1, 3)]


@pytest.mark.usefixtures("store", "package")
def test_a_run_that_measured_only_later_has_no_total() -> None:
    settings = SMALL | {"epochs": 3}
    interrupt("finetune", settings)
    done = pruneflow.finetune(**settings, energy=True)
    assert joules(done.run_id, "energy/epoch_joules") == [(3, 1)]
    assert joules(done.run_id, TOTAL) == []


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("stage", ["finetune", "prune_direct", "prune_gradual"])
def test_what_cannot_be_measured_is_refused_before_there_is_a_run(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "none")
    with pytest.raises(InputError, match="energy=True is not possible here"):
        getattr(pruneflow, stage)(energy=True, **SMALL)
    assert MlflowClient().search_runs(["0"]) == []


@pytest.mark.usefixtures("store")
def test_a_benchmark_that_cannot_be_measured_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "none")
    with pytest.raises(InputError, match="energy=True is not possible here"):
        pruneflow.benchmark_latency(energy=True, device="cpu")
