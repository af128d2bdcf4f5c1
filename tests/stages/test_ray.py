"""sweep executor=ray: the same levels as on this machine alone, and what is lost goes on."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

import pruneflow
from pruneflow import query
from pruneflow.errors import InputError
from pruneflow.stages import ray_tasks

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install '.[ray]'"
)
STUDY = """
settings: {{train_limit: 60, batch_size: 20, base_epochs: 1, iterations: {iterations},
  finetune_epochs: 1, threads: 1, precision: fp32, device: cpu, model: resnet18}}
axes: {{criterion: [{criteria}]}}
"""


def _written(folder: Path, name: str, *, iterations: int = 1, criteria: str = "l1, random") -> str:
    """A study by a name of its own: the store is shared by these tests."""
    file = folder / f"{name}.yaml"
    file.write_text(STUDY.format(iterations=iterations, criteria=criteria))
    return str(file)


def _levels(study: str) -> pd.DataFrame:
    levels = query.levels(artifacts=True, study=study).sort_values(["criterion", "level"])
    timed = [name for name in levels if name.endswith(("_seconds", "_time"))]
    ids = ["run_id", "base_run", "name"]
    return levels.drop(columns=[*timed, *ids]).reset_index(drop=True)


@pytest.fixture
def ended() -> Iterator[None]:
    yield
    import ray

    ray.shutdown()


@needs_ray
def test_levels_are_those_of_a_local_sweep(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: None
) -> None:
    study = _written(tmp_path, "same")
    pruneflow.sweep(study=study, executor="ray", workers=2)
    on_ray = _levels("same")
    assert (
        query.runs(study="same")["stage"].value_counts()["prune_iterative"] == 2
    )  # a base made once
    other = f"sqlite:///{tmp_path / 'other.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    monkeypatch.setenv("PRUNEFLOW_STATE", str(tmp_path / "other"))
    import mlflow

    mlflow.set_tracking_uri(other)
    pruneflow.sweep(study=study)
    pd.testing.assert_frame_equal(on_ray, _levels("same"), check_exact=True)


@needs_ray
def test_a_run_whose_worker_is_killed_goes_on(store: str, tmp_path: Path, ended: None) -> None:
    import psutil

    killed: list[int] = []

    def kill() -> None:
        while not killed:
            time.sleep(0.1)
            levels = query.levels(study="killed")
            if not levels.empty and levels["level"].max() >= 1:
                for process in psutil.Process().children(recursive=True):
                    if process.name().startswith("ray::") and process.children():
                        killed.append(process.pid)
                        os.kill(process.pid, signal.SIGKILL)
                        return

    threading.Thread(target=kill, daemon=True).start()
    pruneflow.sweep(
        study=_written(tmp_path, "killed", iterations=6, criteria="l1"), executor="ray", workers=1
    )
    assert killed
    runs = query.runs(study="killed")
    (pruned,) = runs[runs["stage"] == "prune_iterative"].to_dict("records")
    assert pruned["status"] == "FINISHED"
    assert pruned["resumed_from"] != ""
    assert sorted(query.levels(study="killed")["level"]) == [*range(7)]


@needs_ray
@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:{port}", "ray://127.0.0.1:{port}"])
def test_no_cluster_at_an_address_is_refused_at_once(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(ray_tasks.store, "is_server", lambda: True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # that nothing listens at
        given = address.format(port=free.getsockname()[1])
        with pytest.raises(InputError, match=f"ray_address='{given}': no cluster answers"):
            ray_tasks.connect(given)


def test_other_nodes_cannot_write_to_a_file_of_this_one(store: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    with pytest.raises(InputError, match="set MLFLOW_TRACKING_URI to an MLflow server"):
        pruneflow.sweep(study=_written(tmp_path, "refused"), executor="ray", ray_address="auto")
    assert query.runs(study="refused").empty


def test_without_ray_its_extra_is_named(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'pruneflow\[ray\]'"):
        pruneflow.sweep(study=_written(tmp_path, "refused"), executor="ray")
    assert query.runs(study="refused").empty


def test_an_address_without_ray_has_no_effect(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ray_address=auto has no effect with executor=local"):
        pruneflow.sweep(study=_written(tmp_path, "refused"), ray_address="auto")


@needs_ray
def test_what_no_node_can_hold_is_refused_before_a_run(
    store: str, tmp_path: Path, ended: None
) -> None:
    study = Path(_written(tmp_path, "refused"))
    study.write_text(study.read_text().replace("threads: 1,", f"threads: {os.cpu_count()},"))
    import ray

    ray.shutdown()
    made = ray.init("local", num_cpus=0, include_dashboard=False, log_to_driver=False)
    assert made is not None
    from pruneflow.stages import study as studies

    with pytest.raises(InputError, match="on one node, and none of 1 has them"):
        ray_tasks.check(ray, studies.jobs(studies.read(str(study))))
