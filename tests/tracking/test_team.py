"""Several processes at once: on a fresh SQLite file, and on MLflow's server with PostgreSQL."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from mlflow.tracking import MlflowClient

WORKERS, RUNS = 3, 2
WORK = f"""
import sys
from pruneflow.tracking import store
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
store.check()
import records
for seed in range({RUNS}):
    records.prune(seed=10 * int(sys.argv[1]) + seed)
"""


def storm(uri: str, folder: Path) -> None:
    """Let processes record runs at the same time, and see that each is there, whole."""
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri, "PRUNEFLOW_STATE": str(folder / "s")}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WORK, str(number)],
            env=environment,
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(WORKERS)
    ]
    for process in started:
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said
        assert "duplicate column" not in said
        assert "locked" not in said
    client = MlflowClient(uri)
    found = client.search_runs(["0"])
    assert len(found) == WORKERS * RUNS
    assert {run.info.status for run in found} == {"FINISHED"}
    for run in found:
        history = client.get_metric_history(run.info.run_id, "accuracy/test_after")
        assert sorted(m.step for m in history) == [0, 1, 2]
        assert {f.path for f in client.list_artifacts(run.info.run_id)} >= {"levels.csv"}


def test_processes_share_a_fresh_sqlite_file(tmp_path: Path) -> None:
    storm(f"sqlite:///{tmp_path}/fresh.db", tmp_path)


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def programs() -> Path | None:
    """Where PostgreSQL's programs are."""
    found = shutil.which("initdb")
    places = [Path(found)] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return places[-1].parent if places else None


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[str]:
    """The address of a database of a PostgreSQL server of this test's own."""
    where = programs()
    if where is None:
        pytest.skip("PostgreSQL is not installed")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed")
    number = port()
    as_user: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        if not shutil.which("runuser"):
            pytest.skip("PostgreSQL does not run as root")
        as_user = ["runuser", "-u", "postgres", "--"]
        for folder in (tmp_path, *tmp_path.parents[:3]):
            folder.chmod(0o755)
        shutil.chown(tmp_path, "postgres")
    data, log = tmp_path / "data", tmp_path / "log.txt"
    options = f"-p {number} -k {tmp_path} -c listen_addresses=127.0.0.1"

    def call(name: str, *arguments: str) -> None:
        command = [*as_user, str(where / name), *arguments]
        subprocess.run(command, check=True, cwd=tmp_path, stdout=subprocess.DEVNULL, timeout=120)

    call("initdb", "-D", str(data), "-A", "trust", "-U", "postgres")
    call("pg_ctl", "-D", str(data), "-o", options, "-l", str(log), "-w", "start")
    try:
        yield f"postgresql+psycopg://postgres@127.0.0.1:{number}/postgres"
    finally:
        call("pg_ctl", "-D", str(data), "-m", "immediate", "stop")


@pytest.fixture
def server(postgres: str, tmp_path: Path) -> Iterator[str]:
    """The address of MLflow's server on that database."""
    number = port()
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(number)]
    command += ["--backend-store-uri", postgres, "--artifacts-destination", str(tmp_path / "kept")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with (tmp_path / "server.txt").open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    address = f"http://127.0.0.1:{number}"
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, (tmp_path / "server.txt").read_text()
            assert time.monotonic() < deadline
            try:
                if requests.get(f"{address}/health", timeout=2).ok:
                    break
            except requests.RequestException:
                time.sleep(0.3)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def test_processes_share_a_server_on_postgresql(server: str, tmp_path: Path) -> None:
    storm(server, tmp_path)
