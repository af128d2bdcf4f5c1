"""One writer: a run that was taken over is written to by nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

import pruneflow
from pruneflow.config import FinetuneConfig
from pruneflow.errors import InputError
from pruneflow.resolution import resolve
from pruneflow.tracking import journal, resume, sync, writers
from pruneflow.tracking.run import open_run
from pruneflow.tracking.store import check
from pruneflow.tracking.writers import HEARTBEAT, refuse_handed_over

CONFIG = resolve(FinetuneConfig, {"model": "resnet18"})
TAGS = {"pruneflow.fingerprint": "f"}
# A process that writes to a run until something stops it; no server answers while `down` is there.
FIRST = """
import sys, time
from pathlib import Path
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from pruneflow.config import FinetuneConfig
from pruneflow.resolution import resolve
from pruneflow.errors import ExperimentError
from pruneflow.tracking import publish, run

def cut(name):
    method = getattr(MlflowClient, name)
    def call(*args, **named):
        if Path("down").exists():
            raise MlflowException("API request to http://x failed")
        return method(*args, **named)
    setattr(MlflowClient, name, call)

for name in ("get_run", "set_tag", "log_batch", "log_artifact", "set_terminated", "update_run"):
    cut(name)
publish._PAUSE_SECONDS = 0.05
config = resolve(FinetuneConfig, {"model": "resnet18"})
try:
    with run.open_run("finetune", config, name="n", tags={"pruneflow.fingerprint": "f"}) as one:
        print(one.id, flush=True)
        for step in range(100_000):
            one.log_metrics({"first": 1.0}, step)
            time.sleep(0.02)
except ExperimentError as error:
    sys.exit(f"pruneflow: {error}")
"""


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def first(store: str, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The process, on a machine of its own."""
    (tmp_path / "first").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", FIRST],
        env=os.environ | {"PRUNEFLOW_STATE": str(tmp_path / "first")},
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "said.txt").open("w"),
        text=True,
    )
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    "how", ["its server is lost", pytest.param("it is suspended", marks=pytest.mark.slow)]
)
def test_a_process_whose_run_was_taken_over_stops_and_writes_no_more(
    first: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    assert first.stdout is not None
    run_id, client, said = first.stdout.readline().strip(), MlflowClient(), tmp_path / "said.txt"
    until(lambda: len(client.get_metric_history(run_id, "first")) > 3)
    if how == "it is suspended":
        first.send_signal(signal.SIGSTOP)
    else:
        (tmp_path / "down").touch()
        until(lambda: "does not answer" in said.read_text())

    # another machine: the run is silent, so it goes on there
    monkeypatch.setenv("PRUNEFLOW_STATE", str(tmp_path / "second"))
    assert resume.earlier("auto", "f") is None  # not for long enough
    monkeypatch.setattr(writers, "_SILENCE_SECONDS", 0.0)
    with open_run("finetune", CONFIG, name="n", tags=TAGS, interrupted=run_id) as second:
        second.go_on()
        second.log_metrics({"second": 2.0}, 0)
        written = client.get_metric_history(run_id, "first")
        beat = client.get_run(run_id).data.tags[HEARTBEAT]
        first.send_signal(signal.SIGCONT)
        (tmp_path / "down").unlink(missing_ok=True)
        assert first.wait(120) == 1
    assert "was taken over" in said.read_text()
    assert "Traceback" not in said.read_text()
    assert client.get_metric_history(run_id, "first") == written
    run = client.get_run(run_id)
    assert (run.info.status, run.data.metrics["second"]) == ("FINISHED", 2.0)
    assert run.data.tags[HEARTBEAT] == beat

    # what the first has recorded stays, and is not sent afterwards either
    monkeypatch.setenv("PRUNEFLOW_STATE", str(tmp_path / "first"))
    (sent,) = sync.send_all(sync.journals([]))
    assert (sent.entries, "taken over" in sent.reason) == (0, True)
    assert client.get_metric_history(run_id, "first") == written
    # and where the first machine goes on with the run, it goes on from what MLflow has
    client.update_run(run_id, "FAILED")
    with open_run("finetune", CONFIG, name="n", tags=TAGS, interrupted=run_id) as third:
        third.go_on()
    assert client.get_metric_history(run_id, "first") == written
    assert len(journal.folders()) == 1


def test_a_run_that_is_alive_elsewhere_is_not_taken_for_one_that_died_here(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNEFLOW_STATE", str(tmp_path / "here"))
    with pytest.raises(RuntimeError), open_run("finetune", CONFIG, name="n", tags=TAGS) as one:
        raise RuntimeError
    assert resume.earlier("auto", "f") is not None
    monkeypatch.setenv("PRUNEFLOW_STATE", str(tmp_path / "there"))
    with open_run("finetune", CONFIG, name="n", tags=TAGS, interrupted=one.id) as other:
        other.go_on()
        monkeypatch.setenv("PRUNEFLOW_STATE", str(tmp_path / "here"))
        assert resume.earlier("auto", "f") is None
        monkeypatch.setenv("PRUNEFLOW_STATE", str(tmp_path / "there"))


# ------------------------------------------------------------------- runs that are handed over


NOT_FREE: dict[str, Callable[[MlflowClient, str], object]] = {
    "is finished": lambda client, run: client.set_terminated(run),
    "is deleted": lambda client, run: client.delete_run(run),
    "has ended as KILLED": lambda client, run: client.set_terminated(run, "KILLED"),
    "written to by another process": lambda client, run: client.set_tag(
        run, HEARTBEAT, writers.heartbeat()
    ),
    "records of another experiment": lambda client, run: client.set_tag(
        run, "pruneflow.fingerprint", "other"
    ),
    "holds the records": lambda client, run: client.log_metric(run, "loss", 1.0),
    "was made for report": lambda client, run: client.set_tag(run, "pruneflow.stage", "report"),
}


@pytest.mark.parametrize("reason", NOT_FREE)
def test_a_run_handed_over_that_is_not_free_is_refused_and_left_as_it_is(
    store: str, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    client = MlflowClient()
    handed = client.create_run("0").info.run_id
    NOT_FREE[reason](client, handed)
    before = client.get_run(handed).to_dictionary()
    monkeypatch.setenv("MLFLOW_RUN_ID", handed)
    with (
        pytest.raises(InputError, match=f"MLFLOW_RUN_ID='{handed}' .*{reason}") as refused,
        open_run("finetune", CONFIG, name="n", tags=TAGS),
    ):
        pass
    assert "\n" not in str(refused.value)
    if reason != "was made for report":  # which is the one that refused bad input, then
        monkeypatch.setenv("MLFLOW_RUN_ID", handed)
        refuse_handed_over("bad input")
    assert client.get_run(handed).to_dictionary() == before


@pytest.mark.parametrize("given", [{"resume": "auto"}, {"resume": "never"}], ids=str)
def test_a_stage_refuses_a_run_of_another_configuration(
    store: str, monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    client = MlflowClient()
    handed = client.create_run("0", tags={"pruneflow.fingerprint": "other"}).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", handed)
    with pytest.raises(InputError, match="records of another experiment"):
        pruneflow.finetune(model="squeezenet1_1", train_limit=20, device="cpu", **given)
    assert [run.info.run_id for run in client.search_runs(["0"])] == [handed]
    assert client.get_run(handed).info.status == "RUNNING"


def test_a_finished_run_is_refused_before_anything_is_read(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient()
    handed = client.create_run("0").info.run_id
    client.set_terminated(handed)
    monkeypatch.setenv("MLFLOW_RUN_ID", handed)
    with pytest.raises(InputError, match="is finished"):
        check()
