"""Doctor: what stands in the way of runs on this machine, and what to do about it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from packaging.requirements import Requirement

from pruneflow.errors import InputError, first_line
from pruneflow.tracking import journal, offline, reader, resume, store, writers
from pruneflow.tracking.store import current_experiment

FINE, ODD, WRONG = "fine", "odd", "wrong"
_LITTLE_SPACE = 2 * 2**30  # bytes; a checkpoint of VGG16 takes half a GiB
_OLD_STORE = "mlruns"  # folder of MLflow's file store, which it no longer writes to
_SILENT_SECONDS = 900.0  # after which a run that never had a heartbeat counts as deserted


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        state: `fine`, `odd` (worth knowing) or `wrong` (runs fail, or are not what they say).
        what: was found.
        advice: what to do; empty if nothing is to be done.
    """

    state: str
    what: str
    advice: str = ""


def examine() -> Iterator[Finding]:
    """Look at versions, disk, store, runs and journals; mark runs that only say they are running.

    Yields:
        What was found, as it is found.
    """
    yield from _versions()
    yield from _disk()
    try:
        store.check()
    except InputError as error:
        yield Finding(WRONG, str(error), "the rest needs a store that answers")
        yield from _journals()
        return
    yield from _store()
    client = MlflowClient()
    yield from _artifacts(client)
    yield from _ghosts(client)
    yield from _journals()


def _versions() -> Iterator[Finding]:
    """Installed packages against what pruneflow says it needs."""
    bad = 0
    for text in metadata.requires("pruneflow") or []:
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            found = None
        if found is None or not needed.specifier.contains(found, prereleases=True):
            bad += 1
            yield Finding(
                WRONG,
                f"{needed.name} {found or 'is not installed'}, needed is {needed.specifier}",
                f"pip install '{needed.name}{needed.specifier}'",
            )
    if not bad:
        versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("pruneflow", "mlflow", "torch"))
        yield Finding(FINE, versions)


def _disk() -> Iterator[Finding]:
    """Room for journals and checkpoints."""
    folder = journal.state_folder()
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    for what, place in (("journals", there), ("the current folder", Path.cwd())):
        free = shutil.disk_usage(place).free
        said = f"{free / 2**30:.1f} GiB free for {what} ({place})"
        if free < _LITTLE_SPACE:
            yield Finding(WRONG, said, "make room, or set PRUNEFLOW_STATE to another disk")
        else:
            yield Finding(FINE, said)


def _store() -> Iterator[Finding]:
    """What kind of store there is."""
    address = store.uri()
    yield Finding(FINE, f"the store {store.without_credentials(address)} answers")
    if any(Path(_OLD_STORE).glob("*/meta.yaml")):
        yield Finding(
            ODD,
            f"{_OLD_STORE}/ here holds runs of MLflow's file store, which are not seen",
            f"mlflow migrate-filestore --source {_OLD_STORE} --target sqlite:///mlflow.db",
        )
    if offline.wanted():
        yield Finding(
            ODD,
            "PRUNEFLOW_OFFLINE is set: runs stay on this machine",
            "unset it and run pruneflow sync once the server is there",
        )


def _artifacts(client: MlflowClient) -> Iterator[Finding]:
    """Whether this process can write to where the current experiment keeps its artifacts."""
    try:
        experiment = client.get_experiment(current_experiment())
    except MlflowException as error:
        yield Finding(WRONG, f"the current experiment: {first_line(error)}", "name another one")
        return
    root = urlsplit(experiment.artifact_location)
    served = store.uri().startswith(("http://", "https://"))
    said = f"artifacts of experiment {experiment.name!r} go to {experiment.artifact_location}"
    if root.scheme == "mlflow-artifacts" and not served:
        yield Finding(
            WRONG,
            f"{said}, which only a server can write to, and the store is opened directly (mlflow "
            "ui was started in an empty folder)",
            "set MLFLOW_EXPERIMENT_NAME to a new experiment, or MLFLOW_TRACKING_URI to the server",
        )
        return
    if root.scheme in ("", "file"):
        folder = Path(unquote(root.path))
        there = next(place for place in (folder, *folder.parents) if place.exists())
        try:
            probe = there / f".pruneflow-{journal.this_host()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            yield Finding(WRONG, f"{said}: {first_line(error)}", "give this user the right to")
            return
    yield Finding(FINE, said)


def _ghosts(client: MlflowClient) -> Iterator[Finding]:
    """Runs that say RUNNING and are not: they are marked as KILLED."""
    running = list(reader.runs(None, "attributes.status = 'RUNNING'"))
    alive = 0
    for run in running:
        silence = _silence(run)
        if silence is None:
            alive += 1
            continue
        client.set_tag(run.info.run_id, "pruneflow.failure", f"found dead: {silence}")
        client.set_terminated(run.info.run_id, "KILLED")
        again = run.data.tags.get("pruneflow.stage", "").startswith(("prune", "finetune"))
        yield Finding(
            WRONG,
            f"run {run.info.run_id} ({run.info.run_name}) said RUNNING, but {silence}: it is "
            "marked as KILLED now",
            "start the same configuration again, and it goes on" if again else "",
        )
    if alive:
        yield Finding(FINE, f"{alive} runs are running")


def _silence(run: MlflowRun) -> str | None:
    """Why a run is taken for dead; None if it is alive, or no run of pruneflow."""
    tags = run.data.tags
    if "pruneflow.stage" not in tags and "mlflow.project.entryPoint" not in tags:
        return None
    if writers.is_alive(run):
        return None
    if journal.folder_of(run.info.run_id).exists():
        return "no process here has it any more"
    silent = writers.seconds_silent(run)
    if silent is not None:
        return f"nothing was heard of it for {silent / 60:.0f} minutes"
    started = resume.seconds_since(run.info.start_time)
    if started < _SILENT_SECONDS:
        return None
    return f"it was made {started / 60:.0f} minutes ago, and nothing was ever heard of it"


def _journals() -> Iterator[Finding]:
    """Journals that hold what MLflow has not, and runs that can go on."""
    for folder in journal.folders():
        if journal.is_held(folder):
            continue
        try:
            own = journal.Journal(folder)
        except InputError as error:
            yield Finding(WRONG, str(error), "look at it, and delete it if it is of no use")
            continue
        owed, status, owner = len(own.pending()), own.status, own.owner
        own.close(remove=False)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        of = f"run {owner.run_id} ({owner.name}) of {owner.store}"
        if owed:
            yield Finding(
                WRONG,
                f"{owed} records of {of} have not been sent",
                f"MLFLOW_TRACKING_URI={owner.store} pruneflow sync {folder}",
            )
        elif status != "FINISHED":
            yield Finding(
                ODD,
                f"{of} was interrupted; {size / 2**20:.0f} MiB in {folder} let it go on",
                "start the same configuration again, or delete that folder",
            )
