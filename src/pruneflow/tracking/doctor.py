"""Doctor: what stands in the way of runs on this machine, and what to do about it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from packaging.requirements import Requirement

from pruneflow.errors import ExperimentError, InputError, first_line
from pruneflow.tracking import journal, reader, store, writers
from pruneflow.tracking.checkpoints import size_bytes

FINE, ODD, WRONG = "fine", "odd", "wrong"
_LITTLE_SPACE = 2 * 2**30  # bytes; a checkpoint of VGG16 takes half a GiB
_SILENT_SECONDS = 900.0  # after which a run that never had a heartbeat counts as dead


@dataclass(frozen=True)
class Finding:
    """What was found: `fine`, `odd` (worth knowing) or `wrong`, and what to do about it."""

    state: str
    what: str
    advice: str = ""


def report() -> None:
    """Tell what is found, with advice; ExperimentError: something is wrong."""
    findings = []
    for finding in examine():
        findings.append(finding)
        advice = f"\n       -> {finding.advice}" if finding.advice else ""
        print(f"{finding.state:5}  {finding.what}{advice}", flush=True)
    if wrong := [finding for finding in findings if finding.state == WRONG]:
        raise ExperimentError(f"{len(wrong)} things are wrong")


def examine() -> Iterator[Finding]:
    """Look at versions, disk, store, runs and journals; mark runs that are dead."""
    yield from _versions()
    yield from _disk()
    try:
        store.check()
        yield Finding(FINE, f"the store {store.shown_uri()} answers")
        yield _artifacts()
        yield from _dead_runs()
    except (InputError, ExperimentError, MlflowException) as error:
        yield Finding(WRONG, first_line(error), "the rest needs a store that answers")
    yield from _journals()


def _versions() -> Iterator[Finding]:
    """Installed packages against what pruneflow says it needs."""
    fine = True
    for needed in map(Requirement, metadata.requires("pruneflow") or []):
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            version = ""
        if not version or not needed.specifier.contains(version, prereleases=True):
            fine = False
            what = f"{needed.name} {version or 'is not installed'}, needed is {needed.specifier}"
            yield Finding(WRONG, what, f"pip install '{needed.name}{needed.specifier}'")
    if fine:
        names = ("pruneflow", "mlflow", "torch")
        yield Finding(FINE, ", ".join(f"{name} {metadata.version(name)}" for name in names))


def _disk() -> Iterator[Finding]:
    try:
        folders = {"journals": journal.made_state_folder(), "this folder": Path.cwd()}
    except InputError as error:
        yield Finding(WRONG, str(error), "set PRUNEFLOW_STATE to a folder that can be written to")
        return
    for what, folder in folders.items():
        free = shutil.disk_usage(folder).free
        state = WRONG if free < _LITTLE_SPACE else FINE
        advice = "make room, or set PRUNEFLOW_STATE to another disk" if state == WRONG else ""
        yield Finding(state, f"{free / 2**30:.1f} GiB free for {what} ({folder})", advice)


def _artifacts() -> Finding:
    """Where the current experiment keeps its artifacts: `mlflow ui` may have made it first."""
    experiment = MlflowClient().get_experiment(store.current_experiment())
    what = f"artifacts of experiment {experiment.name!r} go to {experiment.artifact_location}"
    if store.is_server() or not experiment.artifact_location.startswith("mlflow-artifacts:"):
        return Finding(FINE, what)
    advice = "set MLFLOW_EXPERIMENT_NAME to a new one, or MLFLOW_TRACKING_URI to the server"
    return Finding(WRONG, f"{what}, which only a server can write to", advice)


def _dead_runs() -> Iterator[Finding]:
    """Runs of pruneflow that say RUNNING and are not: they are marked as KILLED."""
    for run in list(reader.runs(None, "attributes.status = 'RUNNING'")):
        run_id, tags = run.info.run_id, run.data.tags
        known = "pruneflow.stage" in tags or "mlflow.project.entryPoint" in tags
        silent = writers.seconds_silent(run)
        age = silent if silent is not None else time.time() - run.info.start_time / 1000
        here = journal.folder_of(run_id).exists()
        if not known or writers.is_alive(run) or (not here and age < _SILENT_SECONDS):
            continue
        silence = f"nothing was heard of it for {age / 60:.0f} minutes"
        reason = "no process here has it any more" if here else silence
        writers.end(run_id, "KILLED", f"found dead: {reason}")
        again = tags.get("pruneflow.stage", "").startswith(("prune", "finetune"))
        advice = "start the same configuration again, and it goes on" if again else ""
        what = f"run {run_id} ({run.info.run_name}) said RUNNING, but {reason}"
        yield Finding(WRONG, f"{what}: it is marked as KILLED now", advice)


def _journals() -> Iterator[Finding]:
    """Journals that hold what MLflow has not, and runs that can go on."""
    for folder in journal.folders():
        if journal.is_held(folder):
            continue
        try:
            with closing(journal.Journal(folder)) as records:
                owed, status, owner = len(records.pending()), records.status, records.owner
        except InputError as error:
            yield Finding(WRONG, str(error), "look at it, and delete it if it is of no use")
            continue
        run = f"run {owner.run_id} ({owner.name}) of {owner.store}"
        if owed:
            advice = f"MLFLOW_TRACKING_URI={owner.store} pruneflow sync {folder}"
            yield Finding(WRONG, f"{owed} records of {run} have not been sent", advice)
        elif status != "FINISHED":
            what = f"{run} was interrupted; {size_bytes(folder) / 2**20:.0f} MiB in {folder}"
            advice = "start the same configuration again, or delete that folder"
            yield Finding(ODD, f"{what} let it go on", advice)
