"""Interrupted runs go on, to the last digit as if they had never stopped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from mlflow.tracking import MlflowClient

import pruneflow
from pruneflow.errors import InputError
from pruneflow.stages import experiment
from pruneflow.tracking import checkpoints, fingerprints, journal
from pruneflow.tracking.finished import load_checkpoint
from pruneflow.tracking.run import Run
from pruneflow.workloads import training

SMALL: dict[str, Any] = {
    "model": "shufflenet_v2_x0_5",
    "image_size": 32,
    "train_limit": 100,
    "batch_size": 50,
    "base_epochs": 1,
    "iterations": 3,
    "threads": 1,
    "precision": "fp32",
}
CHANNELS = {"granularity": "channel", "fraction": 0.3, "iterations": 2}
TIMES = ["score_seconds", "finetune_seconds", "evaluate_seconds"]
RUNNING = "attributes.status = 'RUNNING'"


class Stop(KeyboardInterrupt):
    """What a test interrupts a run with."""


def same_levels(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(
        one.drop(columns=TIMES), other.drop(columns=TIMES), check_exact=True
    )


def points(run_id: str) -> dict[str, list[int]]:
    """Steps of every metric of a run, as often as they are there."""
    client = MlflowClient()
    keys = client.get_run(run_id).data.metrics
    return {k: sorted(m.step for m in client.get_metric_history(run_id, k)) for k in keys}


def stop_at(monkeypatch: pytest.MonkeyPatch, level: int, when: str) -> None:
    """Interrupt a run at a level: once its checkpoint is written, or as soon as it is recorded."""
    record, log_checkpoint = Run.record, Run.log_checkpoint

    def recording(run: Run, one: Any, *rest: Any) -> None:
        record(run, one, *rest)
        if one.level == level:
            raise Stop

    def logging(run: Run, number: int, *rest: Any) -> int:
        size = log_checkpoint(run, number, *rest)
        if number == level:
            raise Stop
        return size

    if when == "recorded":
        monkeypatch.setattr(Run, "record", recording)
    else:
        monkeypatch.setattr(Run, "log_checkpoint", logging)


SLOW = pytest.mark.slow
INDEPENDENT = CHANNELS | {"coupling": "independent"}
BERT = {"model": "bert", "dataset": "reviews", "image_size": None}


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"iterations": 3}, id="weights"),
        pytest.param({"optimizer": "sgd", "finetune_epochs": 2}, id="sgd", marks=SLOW),
        pytest.param(CHANNELS, id="masked", marks=SLOW),
        pytest.param(CHANNELS | {"form": "compact"}, id="compact"),
        pytest.param(INDEPENDENT, id="independent", marks=SLOW),
        pytest.param(INDEPENDENT | {"form": "compact"}, id="compact-independent", marks=SLOW),
        pytest.param(
            INDEPENDENT | {"form": "compact", "model": "shufflenet_v2_x0_5"},
            id="not-removable",
            marks=SLOW,
        ),
        pytest.param(CHANNELS | BERT | {"form": "compact"}, id="bert", marks=SLOW),
    ],
)
def test_a_run_that_goes_on_has_the_levels_of_one_that_never_stopped(
    folder: Path, given: dict[str, Any]
) -> None:
    settings = SMALL | given
    whole = pruneflow.prune_iterative(**settings | {"resume": "never", "seed": 1})
    client = MlflowClient()
    client.delete_run(whole.run_id)
    for level, when in ((1, "recorded"), (2, "written")):
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, level, when)
            with pytest.raises(Stop):
                pruneflow.prune_iterative(**settings | {"seed": 1})
    done = pruneflow.prune_iterative(**settings | {"seed": 1})
    same_levels(done.levels, whole.levels)
    run = client.get_run(done.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["pruneflow.resumed_from"] == "level 1"
    assert "pruneflow.failure" not in run.data.tags
    assert points(done.run_id) == points(whole.run_id)
    assert not journal.folder_of(done.run_id).exists()
    last = int(whole.levels["level"].iloc[-1])
    states = [load_checkpoint(one.run_id, last).state for one in (whole, done)]
    for name, tensor in states[0].items():
        assert torch.equal(states[1][name], tensor)


def test_a_finished_run_is_reported_and_not_repeated_until_the_code_is_another(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pruneflow.prune_direct(**SMALL)
    again = pruneflow.prune_direct(**SMALL)
    assert again.run_id == first.run_id
    pd.testing.assert_frame_equal(again.levels, first.levels)
    assert "resume=never" in capsys.readouterr().out
    base = pruneflow.finetune(
        **{k: v for k, v in SMALL.items() if k in ("model", "threads")}
        | {"image_size": 32, "train_limit": 100, "batch_size": 50, "epochs": 1, "precision": "fp32"}
    )
    tags = MlflowClient().get_run(first.run_id).data.tags
    assert base.run_id == tags["pruneflow.base_run"]
    monkeypatch.setattr(fingerprints, "code", lambda: "edited")
    edited = pruneflow.prune_direct(**SMALL)
    tags = MlflowClient().get_run(edited.run_id).data.tags
    assert edited.run_id != first.run_id
    assert tags["pruneflow.base_run"] != base.run_id


def test_a_run_handed_over_gives_way_to_the_one_that_is_continued(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pruneflow.prune_direct(**SMALL)
    client = MlflowClient()
    handed = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", handed)
    again = pruneflow.prune_direct(**SMALL)
    assert again.run_id == first.run_id
    empty = client.get_run(handed)
    assert (empty.info.lifecycle_stage, empty.info.status) == ("deleted", "FINISHED")
    assert empty.data.tags["pruneflow.continued_in"] == first.run_id


def test_what_mlflow_run_made_is_there_when_it_ends(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pruneflow.prune_direct(**SMALL)
    client = MlflowClient()
    tags = {"mlflow.project.entryPoint": "prune_direct"}
    handed = client.create_run("0", tags=tags).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", handed)
    pruneflow.prune_direct(**SMALL)
    client.set_terminated(handed, "FINISHED")
    assert client.get_run(handed).info.run_name == f"see-{first.run_id[:8]}"
    assert client.get_run(handed).info.lifecycle_stage == "active"


@pytest.mark.parametrize(
    ("optimizer", "rates"),
    [
        ("adamw", "one_cycle"),
        pytest.param("adamw", "constant", marks=SLOW),
        pytest.param("sgd", "one_cycle", marks=SLOW),
        pytest.param("sgd", "constant", marks=SLOW),
    ],
)
def test_a_training_goes_on_between_two_epochs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, rates: str
) -> None:
    monkeypatch.setattr(experiment, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(experiment, "_SAVE_SHARE", 1e9)
    given = SMALL | {"finetune_epochs": 3, "optimizer": optimizer, "lr_schedule": rates}
    given |= {"model": "mobilenet_v3_small"}  # it has dropout
    whole = pruneflow.prune_direct(**given, resume="never")
    MlflowClient().delete_run(whole.run_id)
    snapshots: list[int] = []
    save = Run.save_training

    def saving(run: Run, level: int, snapshot: training.Snapshot) -> None:
        save(run, level, snapshot)
        snapshots.append(snapshot.epoch)
        if snapshot.epoch == 2:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save_training", saving)
        with pytest.raises(Stop):
            pruneflow.prune_direct(**given)
    assert snapshots == [1, 2]
    epochs = epochs_trained(monkeypatch)
    done = pruneflow.prune_direct(**given)
    assert epochs == [3]
    same_levels(done.levels, whole.levels)


def epochs_trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the epochs that are trained from now on."""
    seen: list[int] = []
    fit = training.fit

    def watched(*args: Any, **named: Any) -> Any:
        for epoch in fit(*args, **named):
            seen.append(epoch.number)
            yield epoch

    monkeypatch.setattr(training, "fit", watched)
    return seen


def test_an_interrupted_base_run_goes_on_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(experiment, "_SAVE_SHARE", 1e9)
    given = SMALL | {"base_epochs": 2, "seed": 7, "iterations": 1}
    save = Run.save_training

    def saving(run: Run, level: int, snapshot: training.Snapshot) -> None:
        save(run, level, snapshot)
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save_training", saving)
        with pytest.raises(Stop):
            pruneflow.prune_iterative(**given)
    client = MlflowClient()
    killed = {
        r.data.tags["pruneflow.stage"]: r.info.run_id
        for r in client.search_runs(["0"], "attributes.status = 'KILLED'")
    }
    epochs = epochs_trained(monkeypatch)
    done = pruneflow.prune_iterative(**given)
    assert epochs == [2, 1]
    assert killed == {
        "finetune": client.get_run(done.run_id).data.tags["pruneflow.base_run"],
        "prune_iterative": done.run_id,
    }
    assert points(killed["finetune"])["val/accuracy"] == [1, 2]


def damage_header(folder: Path) -> None:
    path = folder / "artifacts/checkpoints/level_02/model.safetensors"
    content = bytearray(path.read_bytes())
    content[content.index(b"running_mean")] ^= 1
    path.write_bytes(content)


def tear_checkpoint(folder: Path) -> None:
    path = folder / "artifacts/checkpoints/level_02/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def lose_checkpoint(folder: Path) -> None:
    shutil.rmtree(folder / "artifacts/checkpoints/level_02")
    (folder / "artifacts/checkpoints/level_02").mkdir()


def tear_journal(folder: Path) -> None:
    with (folder / "journal.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"metrics": [["accuracy/test_af')


def lose_count(folder: Path) -> None:
    (folder / "sent").write_text("?", "utf-8")


def lose_folder(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> pruneflow.FinishedRun:
    """A run that never stopped, and that none is found to be the same as."""
    whole = pruneflow.prune_iterative(**SMALL | {"seed": 3}, resume="never")
    MlflowClient().delete_run(whole.run_id)
    return whole


@pytest.mark.parametrize(
    ("harm", "redone"),
    [
        (damage_header, 1),
        pytest.param(tear_checkpoint, 1, marks=SLOW),
        pytest.param(lose_checkpoint, 1, marks=SLOW),
        (tear_journal, 0),
        pytest.param(lose_count, 0, marks=SLOW),
        (lose_folder, 0),
    ],
)
def test_what_is_damaged_is_seen_and_the_level_before_is_used(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    undisturbed: pruneflow.FinishedRun,
    harm: Callable[[Path], None],
    redone: int,
) -> None:
    given, whole, client = SMALL | {"seed": 3}, undisturbed, MlflowClient()
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 2, "recorded")
        with pytest.raises(Stop):
            pruneflow.prune_iterative(**given)
    (killed,) = client.search_runs(["0"], "attributes.status = 'KILLED'")
    harm(journal.folder_of(killed.info.run_id))
    capsys.readouterr()
    trained = epochs_trained(monkeypatch)
    done = pruneflow.prune_iterative(**given)
    client.delete_run(done.run_id)
    assert done.run_id == killed.info.run_id
    assert len(trained) == 1 + redone
    assert ("level 2 is done again" in capsys.readouterr().err) == bool(redone)
    same_levels(done.levels, whole.levels)
    assert points(done.run_id) == points(whole.run_id)


def test_a_damaged_snapshot_of_a_training_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(experiment, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(experiment, "_SAVE_SHARE", 1e9)
    given = SMALL | {"finetune_epochs": 2, "seed": 4, "iterations": 1}
    whole = pruneflow.prune_iterative(**given, resume="never")
    client = MlflowClient()
    client.delete_run(whole.run_id)
    save = checkpoints.save_training

    def saving(place: Path, snapshot: training.Snapshot) -> None:
        save(place, snapshot)
        os.truncate(place / "training.safetensors", 5000)

    save_of_run = Run.save_training

    def stopping(*args: Any) -> None:
        save_of_run(*args)
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "save_training", saving)
        patch.setattr(Run, "save_training", stopping)
        with pytest.raises(Stop):
            pruneflow.prune_iterative(**given)
    done = pruneflow.prune_iterative(**given)
    assert "training begins anew" in capsys.readouterr().err
    same_levels(done.levels, whole.levels)


@pytest.mark.parametrize("wanted", ["nothing", "other"])
def test_a_run_that_cannot_be_gone_on_with_is_refused(folder: Path, wanted: str) -> None:
    other = pruneflow.prune_direct(**SMALL).run_id
    resume = other if wanted == "other" else "0" * 32
    reason = "another configuration" if wanted == "other" else "pass auto, never or the id"
    with pytest.raises(InputError, match=reason):
        pruneflow.prune_direct(**SMALL | {"seed": 5, "finetune_epochs": 0}, resume=resume)
    assert not MlflowClient().search_runs(["0"], RUNNING)


def test_a_run_that_another_process_has_is_left_to_it(folder: Path) -> None:
    given = SMALL | {"seed": 6, "iterations": 1}
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 0, "recorded")
        with pytest.raises(Stop):
            pruneflow.prune_iterative(**given)
    (killed,) = MlflowClient().search_runs(["0"], "attributes.status = 'KILLED'")
    held = journal.Journal(journal.folder_of(killed.info.run_id))
    try:
        with pytest.raises(InputError, match="still running"):
            pruneflow.prune_iterative(**given, resume=killed.info.run_id)
        assert pruneflow.prune_iterative(**given).run_id != killed.info.run_id
    finally:
        held.close(remove=False)


def test_a_killed_process_leaves_a_run_that_goes_on(folder: Path) -> None:
    given = SMALL | {"seed": 8, "finetune_epochs": 1, "iterations": 2}
    whole = pruneflow.prune_iterative(**given, resume="never")
    client = MlflowClient()
    client.delete_run(whole.run_id)
    command = [sys.executable, "-m", "pruneflow", "prune_iterative"]
    command += [f"--{name}={value}" for name, value in given.items()]
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, start_new_session=True, env=os.environ
        )
        deadline = time.monotonic() + 120
        while "level 1/2" not in (folder / "output.txt").read_text():
            assert process.poll() is None, (folder / "output.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    (ghost,) = client.search_runs(["0"], RUNNING)
    done = pruneflow.prune_iterative(**given)
    assert done.run_id == ghost.info.run_id
    same_levels(done.levels, whole.levels)
    assert points(done.run_id) == points(whole.run_id)
