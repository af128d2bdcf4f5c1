"""Sync: what runs recorded while MLflow did not answer, or was not asked, is sent to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pruneflow.errors import ExperimentError, InputError, first_line
from pruneflow.tracking import journal, store
from pruneflow.tracking.journal import Owner
from pruneflow.tracking.publish import RUN_TAGS, publish_folder
from pruneflow.tracking.refusals import TakenOverError

_COPY_OF = "pruneflow.copy_of"  # of a run there: its id in the store of this machine


@dataclass(frozen=True)
class Sent:
    """What became of a run's folder: entries that were sent, the reason why not all were, if so."""

    owner: Owner
    entries: int
    reason: str = ""


def send(places: Sequence[Path]) -> None:
    """Send journals, and runs that were made offline, to the current store; tell of each.

    Raises:
        InputError: a folder without a journal, or a store that does not answer.
        ExperimentError: not everything could be sent.
    """
    if store.is_offline():
        raise InputError("PRUNEFLOW_OFFLINE is set: unset it, and name the store to send to")
    folders = journals(places)
    store.check()
    results = []
    for sent in send_all(folders):
        results.append(sent)
        outcome = sent.reason or f"{sent.entries} records sent"
        print(f"{sent.owner.name} ({sent.owner.run_id}): {outcome}", flush=True)
    if not results:
        print("there is nothing to send")
    if failed := [sent for sent in results if sent.reason]:
        raise ExperimentError(
            f"{len(failed)} of {len(results)} journals were not sent, or not to the end"
        )


def journals(places: Sequence[Path]) -> list[Path]:
    """The runs' folders in places, or without any those of this machine, oldest first."""
    for place in places:
        if not journal.folders(place):
            raise InputError(f"{str(place)!r} holds no journal of a run")
    return [folder for place in places for folder in journal.folders(place)] or journal.folders()


def send_all(folders: Sequence[Path]) -> Iterator[Sent]:
    """Publish runs' folders to the current store, those made offline as new runs there.

    Interrupted and begun again, everything is there once: copies are found by a tag, and records
    have the times they had.
    """
    for folder in folders:
        owner = journal.owner_of(folder)
        try:
            if journal.is_held(folder):
                yield Sent(owner, 0, "its run is still going on")
            elif entries := publish_folder(folder, _copy if owner.offline else None):
                yield Sent(owner, entries)
        except Exception as error:  # whatever a store, a driver or a network has to say
            reason, here = first_line(error), store.shown_uri()
            if isinstance(error, TakenOverError):
                reason += f": what is in {folder} does not count, and can be deleted"
            elif owner.store != here and not owner.offline:
                reason += f" (it belongs to {owner.store}, this is {here}: see MLFLOW_TRACKING_URI)"
            yield Sent(owner, 0, reason)


def _copy(run_id: str) -> str:
    """The run of the current store that stands for one made offline, made if it is not there.

    A run that was not made offline stands for itself.
    """
    there, here = MlflowClient(), MlflowClient(tracking_uri=journal.offline_uri())
    experiments = [experiment.experiment_id for experiment in there.search_experiments()]
    copies = there.search_runs(experiments, f"tags.`{_COPY_OF}` = '{run_id}'", max_results=1)
    if copies:
        return str(copies[0].info.run_id)
    try:
        run = here.get_run(run_id)
    except MlflowException:
        return run_id
    # what is in no folder: times, names and study
    name = here.get_experiment(run.info.experiment_id).name
    named = there.get_experiment_by_name(name)
    experiment = there.create_experiment(name) if named is None else named.experiment_id
    tags = {k: v for k, v in run.data.tags.items() if k not in RUN_TAGS} | {_COPY_OF: run_id}
    copy = there.create_run(experiment, run.info.start_time, tags, run.info.run_name)
    return str(copy.info.run_id)
