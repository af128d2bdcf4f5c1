"""Sync: what runs recorded while MLflow did not answer, or was not asked, is sent to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pruneflow.errors import InputError, first_line
from pruneflow.tracking import journal, store
from pruneflow.tracking.journal import Owner
from pruneflow.tracking.publish import RUN_TAGS, fail_soon, publish_folder
from pruneflow.tracking.refusals import TakenOverError

_COPY_OF = "pruneflow.copy_of"  # of a run there: its id in the store of this machine


@dataclass(frozen=True)
class Sent:
    """What became of a run's folder: entries that were sent, the reason why not all were, if so."""

    owner: Owner
    entries: int
    reason: str = ""


def journals(places: Sequence[Path]) -> list[Path]:
    """The runs' folders in places, or without any those of this machine, oldest first.

    Raises:
        InputError: a place that holds none.
    """
    for place in places:
        if not journal.folders(place):
            raise InputError(f"{str(place)!r} holds no journal of a run")
    return [folder for place in places or [None] for folder in journal.folders(place)]


def send_all(folders: Sequence[Path]) -> Iterator[Sent]:
    """Publish runs' folders to the current store, those made offline as new runs there.

    Interrupted and begun again, everything is there once: copies are found by a tag, and records
    have the times they had.
    """
    fail_soon()
    for folder in folders:
        owner = journal.owner_of(folder)
        try:
            if journal.is_held(folder):
                yield Sent(owner, 0, "its run is still going on")
            elif not owner.offline:
                yield Sent(owner, publish_folder(folder))
            elif entries := publish_folder(folder, copy=_copy(owner.run_id), renamed=_copy):
                yield Sent(owner, entries)
        except Exception as error:  # whatever a store, a driver or a network has to say
            reason = first_line(error)
            if isinstance(error, TakenOverError):
                reason += f": what is in {folder} does not count, and can be deleted"
            elif owner.store != store.shown_uri() and not owner.offline:
                reason += f" (it belongs to {owner.store}, this is {store.shown_uri()}: see "
                reason += "MLFLOW_TRACKING_URI)"
            yield Sent(owner, 0, reason)


def _copy(run_id: str) -> str:
    """The run of the current store that stands for one made offline, made if it is not there.

    A run that was not made offline stands for itself.
    """
    there, here = MlflowClient(), MlflowClient(tracking_uri=journal.offline_uri())
    experiments = [experiment.experiment_id for experiment in there.search_experiments()]
    found = there.search_runs(experiments, f"tags.`{_COPY_OF}` = '{run_id}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
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
