"""What every test runs with: no network, one thread, and a tracking store of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from pruneflow.inference import latency, sparse
from pruneflow.inference.load import Load

# Read by the libraries when they are first used, which is after this file.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
os.environ.pop("MLFLOW_RUN_ID", None)
for _name in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_TRACKING_URI"):
    os.environ.pop(_name, None)

# A test's own settings go before these; `--hypothesis-profile=long` is for looking long.
settings.register_profile("short", max_examples=40, deadline=None, derandomize=True)
settings.register_profile(
    "long", max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("short")

ROOT = Path(__file__).resolve().parents[1]


class Quiet(Load):
    """Nobody else uses the processors: no test hangs on what else the machine does."""

    window_seconds = 0.0

    def others(self) -> float | None:
        return 0.0


@pytest.fixture(autouse=True, scope="session")
def _quiet_machine(tmp_path_factory: pytest.TempPathFactory) -> None:
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    os.environ["PRUNEFLOW_STATE"] = str(tmp_path_factory.mktemp("state"))
    latency.Load = sparse.Load = Quiet  # type: ignore[misc]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Sums are split up by threads, and a run in this process sets their number."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store with MLflow's tables and nothing else; making one takes seconds."""
    from mlflow.tracking import MlflowClient

    folder = tmp_path_factory.mktemp("store")
    previous = Path.cwd()
    os.chdir(folder)
    try:
        MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db").search_experiments()
    finally:
        os.chdir(previous)
    return folder / "mlflow.db"


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tracking URI of a fresh store, in force for this test."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture(scope="module")
def folder(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a fresh store and a cache of measurements, in force for a module's tests."""
    path = tmp_path_factory.mktemp("module")
    with pytest.MonkeyPatch.context() as patch:
        shutil.copy(empty_store, path / "mlflow.db")
        patch.chdir(path)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}/mlflow.db")
        patch.setenv("PRUNEFLOW_CACHE", str(path))
        yield path
