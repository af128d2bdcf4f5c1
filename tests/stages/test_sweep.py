"""sweep: what it runs, shares, skips and goes on past."""

from __future__ import annotations

import csv
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow.artifacts import load_text
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from own_models import WORDS

import pruneflow
from pruneflow import query
from pruneflow.config import BenchmarkConfig, PruneConfig, SweepConfig
from pruneflow.errors import ExperimentError, InputError
from pruneflow.resolution import resolve
from pruneflow.stages import processes, sweep
from pruneflow.stages.study import Job
from pruneflow.tracking import publish

STUDY = """
settings:
  {train_limit: 60, batch_size: 20, base_epochs: 1, iterations: 1, finetune_epochs: 0,
   threads: 1, precision: fp32, device: cpu, model: resnet18}
axes: {criterion: [l1]}
include:
  - {include: "nothing*"}
"""


class Outages:
    """MLflow's client of this process, without the server: the next `failing` calls fail."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.failing, self.failed = 0, 0
        for name in ("search_runs", "get_run", "create_run", "set_tag", "log_batch"):
            patch.setattr(MlflowClient, name, self._cut(getattr(MlflowClient, name)))

    def _cut(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            if self.failing > 0:
                self.failing -= 1
                self.failed += 1
                raise MlflowException("API request to http://x failed")
            return method(*args, **named)

        return call

    def at_every_process(self, patch: pytest.MonkeyPatch, calls: int) -> None:
        """Let them begin whenever the process of a job has begun."""

        def start(command: Any, *args: Any, **named: Any) -> Any:
            process = popen(command, *args, **named)
            if "pruneflow" in command:
                self.failing = calls
            return process

        popen = subprocess.Popen
        patch.setattr(processes.subprocess, "Popen", start)


def test_a_sweep_shares_bases_goes_on_past_failures_and_outages_and_skips_what_is_finished(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(STUDY, "utf-8")

    assert pruneflow.sweep(study=str(path), dry_run=True) is None
    assert query.runs().empty

    monkeypatch.setattr(processes, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(publish, "_PAUSE_SECONDS", 0.05)
    with monkeypatch.context() as patch:
        outages = Outages(patch)
        outages.at_every_process(patch, 12)
        with pytest.raises(ExperimentError, match=r"1 of 3 runs .*nothing\*"):
            pruneflow.sweep(study=str(path))
        assert outages.failed == 36
    assert "MLflow does not answer" in capsys.readouterr().out
    runs = query.runs(study="tiny")
    by_stage = runs.groupby("stage")["status"].apply(sorted).to_dict()
    assert by_stage == {
        "finetune": ["FINISHED"],
        "prune_iterative": ["FAILED", "FINISHED"],
        "sweep": ["FAILED"],
    }
    base = runs.loc[runs["stage"] == "finetune", "run_id"].iloc[0]
    pruned = runs[(runs["stage"] == "prune_iterative") & (runs["status"] == "FINISHED")]
    assert set(pruned["base_run"]) == {base}

    its = runs[runs["stage"] == "sweep"].iloc[0]
    uri = MlflowClient().get_run(its["run_id"]).info.artifact_uri
    plan = list(csv.DictReader(io.StringIO(load_text(f"{uri}/plan.csv"))))
    assert [row["state"] for row in plan] == ["finished", "finished", "failed"]
    assert "nothing*" in plan[-1]["failure"]

    path.write_text(STUDY.replace('- {include: "nothing*"}', "- {}"), "utf-8")
    done = pruneflow.sweep(study=str(path))  # all that is left is finished already
    assert done is not None
    assert len(query.runs()) == len(runs) + 1  # the sweep's own run

    # a server that is gone at the end: what its process says has become of the last one
    path.write_text(STUDY.replace('- {include: "nothing*"}', "- {scope: layer}"), "utf-8")
    monkeypatch.setitem(publish._PATIENCE_SECONDS, "FINISHED", 0.1)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        Outages(patch).at_every_process(patch, 10**9)
        pruneflow.sweep(study=str(path))
    said = capsys.readouterr()
    assert "3 runs: 3 finished" in said.out
    assert "pruneflow sync" in said.err  # its own records
    assert set(query.runs(study="tiny")["base_run"].dropna()) == {base}


def test_a_sweep_does_not_wait_for_ever(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text("settings: {device: cpu, threads: 1}\naxes: {seed: [0, 1]}", "utf-8")
    monkeypatch.setattr(processes, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(processes, "_OUTAGE_SECONDS", 0.2)
    monkeypatch.setitem(publish._PATIENCE_SECONDS, "FAILED", 0.1)
    outages, run_all = Outages(monkeypatch), sweep._run_all

    def gone(*args: Any) -> Any:
        outages.failing = 10**9
        return run_all(*args)

    monkeypatch.setattr(sweep, "_run_all", gone)
    with pytest.raises(ExperimentError, match=r"4 of 4 runs .*MLflow did not answer"):
        pruneflow.sweep(study=str(path))


class Recorder:
    """An executor that takes a moment for each job, and fails those that it is told to."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.closed = fails, False
        self.running: set[str] = set()
        self.together: list[set[str]] = []

    def run(self, job: Job) -> None:
        if job.needs is not None and job.needs.state != "finished":
            job.state = "skipped"
            return
        self.running.add(job.name)
        self.together.append(set(self.running))
        time.sleep(0.05)
        self.running.discard(job.name)
        job.state = "failed" if job.name == self.fails else "finished"

    def close(self) -> None:
        self.closed = True


def planned(needs: dict[str, str | None]) -> list[Job]:
    """Jobs by name, each after another; those called `latency` are benchmarks."""
    jobs: dict[str, Job] = {}
    for name, before in needs.items():
        kind = BenchmarkConfig if name.startswith("latency") else PruneConfig
        config = resolve(kind, {})
        jobs[name] = Job("x", {}, config, name, None if before is None else jobs[before])
    return list(jobs.values())


NEEDS = {"a": None, "a1": "a", "a2": "a", "b": None, "b1": "b", "latency": "b1", "latency2": "a2"}


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_jobs_run_side_by_side_after_what_they_need_and_benchmarks_alone(workers: int) -> None:
    executor, jobs, ended = Recorder(), planned(NEEDS), list[Job]()
    sweep._run_all(jobs, workers, executor, lambda _: None, ended.extend)  # type: ignore[arg-type]
    assert {job.state for job in jobs} == {"finished"}
    assert sorted(job.name for job in ended) == sorted(NEEDS)
    assert max(map(len, executor.together)) == workers
    for group in executor.together:
        assert not any(NEEDS[name] in group for name in group)
        assert len(group) == 1 or not any(name.startswith("latency") for name in group)
    assert executor.closed


def test_what_needs_a_failed_job_is_skipped_and_the_rest_runs() -> None:
    jobs = planned(NEEDS)
    sweep._run_all(jobs, 2, Recorder("b"), lambda _: None, lambda _: None)  # type: ignore[arg-type]
    states = {job.name: job.state for job in jobs}
    assert states == dict.fromkeys(NEEDS, "finished") | {
        "b": "failed",
        "b1": "skipped",
        "latency": "skipped",
    }


@pytest.mark.parametrize("error", [None, OSError("the disk is full")])
def test_what_is_not_carried_out_has_failed_and_holds_up_no_sweep(error: OSError | None) -> None:
    class Idle(Recorder):
        def run(self, job: Job) -> None:
            if job.name != "b":
                super().run(job)
            elif error is not None:
                raise error

    jobs = planned(NEEDS)
    sweep._run_all(jobs, 2, Idle(), lambda _: None, lambda _: None)  # type: ignore[arg-type]
    of = {job.name: job for job in jobs}
    assert of["b"].state == "failed"
    assert of["b"].failure == str(error or "it was not carried out")
    assert [of[name].state for name in ("b1", "latency", "latency2")] == [
        "skipped",
        "skipped",
        "finished",
    ]


def test_an_interrupted_sweep_closes_its_executor() -> None:
    executor = Recorder()

    def interrupt(_: list[Job]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep._run_all(planned(NEEDS), 2, executor, lambda _: None, interrupt)  # type: ignore[arg-type]
    assert executor.closed
    assert len(executor.together) <= 2


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def serve(folder: Path, number: int) -> subprocess.Popen[bytes]:
    """MLflow's server on a SQLite file, once it answers."""
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(number)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "kept")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with (folder / "server.txt").open("a") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    while True:
        assert process.poll() is None, (folder / "server.txt").read_text()
        try:
            if requests.get(f"http://127.0.0.1:{number}/health", timeout=2).ok:
                return process
        except requests.RequestException:
            time.sleep(0.3)


def stop(server: subprocess.Popen[bytes]) -> None:
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


@pytest.mark.slow
def test_a_sweep_outlives_its_server(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, output = tmp_path / "tiny.yaml", tmp_path / "output.txt"
    path.write_text(STUDY.replace('- {include: "nothing*"}', "- {scope: layer}"), "utf-8")
    number = port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{number}")
    monkeypatch.setenv("PRUNEFLOW_STATE", str(tmp_path / "state"))
    server = serve(tmp_path, number)
    command = [sys.executable, "-m", "pruneflow", "sweep", f"--study={path}"]
    with output.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        for run in ("1/3", "3/3"):  # while the base is trained, and in the midst of the others
            while f"[{run}]" not in output.read_text():
                assert process.poll() is None, output.read_text()
                time.sleep(0.2)
            stop(server)
            time.sleep(20)
            assert process.poll() is None, output.read_text()
            server = serve(tmp_path, number)
        assert process.wait(600) == 0, output.read_text()
        assert "3 runs: 3 finished" in output.read_text()
        runs = query.runs(study="tiny")
        assert set(runs["status"]) == {"FINISHED"}
        assert sorted(runs["stage"]) == ["finetune", *["prune_iterative"] * 2, "sweep"]
    finally:
        process.kill()
        stop(server)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"study": "smoek"}, "did you mean smoke?"),
        ({"data_dir": "nowhere"}, "data_dir='nowhere' is not a folder"),
        ({"study": "paper_small", "data_dir": "."}, "has no folder cifar10"),
        ({"workers": 1000}, "workers=1000 is not valid"),
        ({"dry_run": "perhaps"}, "dry_run='perhaps'"),
    ],
)
def test_bad_input_is_refused_before_a_run_is_made(
    store: str, given: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError) as refused:
        pruneflow.sweep(**given)
    assert said in str(refused.value)
    assert query.runs().empty


def test_a_benchmark_is_not_another_run_that_has_no_fingerprint(folder: Path) -> None:
    """Sweeps and reports have none, and a benchmark none yet while what it times is not there."""
    run = MlflowClient().create_run("0", tags={"pruneflow.stage": "sweep"})
    MlflowClient().set_terminated(run.info.run_id)
    config = resolve(SweepConfig, {"study": "smoke"})
    _, jobs = sweep._jobs(config)
    assert {job.state for job in jobs} == {"to do"}


def test_a_finished_run_of_texts_with_named_columns_is_found_again(
    store: str, tmp_path: Path
) -> None:
    (tmp_path / "texts").mkdir()
    rows = "\n".join(f"{('good', 'bad')[n % 2]} film {n},other,{n % 2}" for n in range(40))
    (tmp_path / "texts" / "train.csv").write_text(f"said,note,kind\n{rows}\n", "utf-8")
    (tmp_path / "words.py").write_text(WORDS, "utf-8")
    given = {
        "model": "words.py:Words",
        "dataset": f"hf:{tmp_path / 'texts'}",
        "columns": "said,kind",
        "device": "cpu",
        "threads": 1,
    }
    base = pruneflow.finetune(epochs=1, **given)
    pruned = pruneflow.prune_direct(base_epochs=1, finetune_epochs=0, **given)
    path = tmp_path / "texts.yaml"
    path.write_text(
        f"settings: {{base_epochs: 1, finetune_epochs: 0, stage: prune_direct, threads: 1, "
        f"device: cpu, model: 'words.py:Words', dataset: '{given['dataset']}', "
        "columns: 'said,kind'}\naxes: {seed: [0]}\n",
        "utf-8",
    )
    pruneflow.sweep(study=str(path))
    assert set(query.runs(study="texts")["run_id"]) >= {base.run_id, pruned.run_id}
    assert len(query.runs()) == 3  # and the sweep's own
