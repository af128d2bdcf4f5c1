"""The doctor finds what is wrong, says what to do, and leaves the living alone."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow.tracking import MlflowClient

from pruneflow.cli import group
from pruneflow.config import FinetuneConfig
from pruneflow.errors import ExperimentError
from pruneflow.resolution import resolve
from pruneflow.tracking import doctor, journal
from pruneflow.tracking.doctor import FINE, WRONG, Finding
from pruneflow.tracking.journal import Journal, Owner
from pruneflow.tracking.run import open_run
from pruneflow.tracking.writers import HEARTBEAT

CONFIG = resolve(FinetuneConfig, {"model": "resnet18"})
LONG_AGO = "2020-01-01T00:00:00+00:00 elsewhere 1"


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEFLOW_STATE", str(tmp_path / "state"))


def found(state: str) -> list[Finding]:
    return [one for one in doctor.examine() if one.state == state]


def made(minutes_ago: float = 0.0, **tags: str) -> str:
    """Id of a run that says RUNNING."""
    start = int((time.time() - 60 * minutes_ago) * 1000)
    named = {f"pruneflow.{name}": value for name, value in tags.items()}
    return str(MlflowClient().create_run("0", start_time=start, tags=named).info.run_id)


def status(run_id: str) -> str:
    return str(MlflowClient().get_run(run_id).info.status)


def test_all_is_well_on_a_fresh_store(store: str) -> None:
    assert found(WRONG) == []
    said = " ".join(one.what for one in found(FINE))
    assert "pruneflow" in said
    assert "GiB free" in said
    assert "answers" in said
    assert "artifacts of experiment 'Default'" in said


def test_runs_that_only_say_they_are_running_are_marked(store: str) -> None:
    silent = made(stage="finetune", heartbeat=LONG_AGO)
    never = made(60, stage="prune_iterative")
    owner = Owner(made(stage="prune_direct"), "0", store, "killed", "prune_direct", "here")
    Journal.make(owner).close(remove=False)
    wrong = found(WRONG)
    assert {status(one) for one in (silent, never, owner.run_id)} == {"KILLED"}
    said = {one.what.split()[1]: one for one in wrong}
    assert "nothing was heard of it for" in said[silent].what
    assert "nothing was heard of it for 60 minutes" in said[never].what
    assert "no process here has it" in said[owner.run_id].what
    assert all("it goes on" in one.advice for one in wrong)
    tags = MlflowClient().get_run(silent).data.tags
    assert tags["pruneflow.failure"].startswith("found dead")
    assert found(WRONG) == []


def test_living_runs_and_those_of_others_are_left_alone(store: str) -> None:
    young = made(1, stage="finetune")
    foreign = made(10_000)
    with open_run("finetune", CONFIG, name="n", tags={}) as one:
        assert HEARTBEAT in MlflowClient().get_run(one.id).data.tags
        assert found(WRONG) == []
        assert status(one.id) == "RUNNING"
    assert status(young) == status(foreign) == "RUNNING"


def test_records_that_were_not_sent_are_told_of(store: str) -> None:
    owner = Owner(made(stage="finetune"), "0", store, "n", "finetune", "here")
    own = Journal.make(owner)
    own.append(journal.Entry(tags={"a": "b"}))
    own.close(remove=False)
    (unsent,) = [one for one in found(WRONG) if "not been sent" in one.what]
    assert unsent.what.startswith("1 records of run")
    assert f"pruneflow sync {own.folder}" in unsent.advice


def test_an_artifact_root_that_cannot_be_written_to_is_found(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    MlflowClient().create_experiment("served", artifact_location="mlflow-artifacts:/x")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "served")
    (wrong,) = found(WRONG)
    assert "only a server can write to" in wrong.what
    assert "MLFLOW_EXPERIMENT_NAME" in wrong.advice


def test_little_space_is_told_of(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_LITTLE_SPACE", 2**80)
    assert len(found(WRONG)) == 2


def test_versions_that_are_not_enough_are_told_of(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = ["mlflow>=99", "no-such-package>=1", "pytest; extra == 'test'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: needed)
    first, second = found(WRONG)
    assert first.advice == "pip install 'mlflow>=99'"
    assert "no-such-package is not installed" in second.what


def test_a_store_that_does_not_answer_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (wrong,) = found(WRONG)
    assert "does not answer" in wrong.what


def test_the_command_fails_while_something_is_wrong(store: str) -> None:
    assert CliRunner().invoke(group, ["doctor"], catch_exceptions=False).exit_code == 0
    made(stage="finetune", heartbeat=LONG_AGO)
    result = CliRunner().invoke(group, ["doctor"])
    assert isinstance(result.exception, ExperimentError)
    assert "-> start the same configuration again" in result.output
