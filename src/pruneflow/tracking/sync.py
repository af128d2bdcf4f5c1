"""Sync: what runs recorded while MLflow did not answer is sent to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pruneflow.errors import InputError, first_line
from pruneflow.tracking import journal, store
from pruneflow.tracking.journal import Owner
from pruneflow.tracking.publish import fail_soon, publish_folder
from pruneflow.tracking.refusals import TakenOverError


@dataclass(frozen=True)
class Sent:
    """What became of a run's folder.

    Attributes:
        owner: whose it is.
        entries: that were sent.
        reason: why nothing, or not all, was sent; empty if all was.
    """

    owner: Owner
    entries: int
    reason: str = ""


def journals(places: Sequence[Path]) -> list[Path]:
    """The runs' folders in places, or without any those of this machine, oldest first.

    Raises:
        InputError: a place that holds none.
    """
    if not places:
        return journal.folders()
    folders = []
    for place in places:
        inside = journal.folders(place)
        if not inside:
            raise InputError(f"{str(place)!r} holds no journal of a run")
        folders += inside
    return folders


def send_all(folders: Sequence[Path]) -> Iterator[Sent]:
    """Publish runs' folders to the current store, see `publish_folder`."""
    fail_soon()
    here = store.without_credentials(store.uri())
    for folder in folders:
        owner = journal.owner_of(folder)
        if journal.is_offline(folder):  # and published by `offline.copy_runs`
            continue
        if journal.is_held(folder):
            yield Sent(owner, 0, "its run is still going on, and sends it itself")
            continue
        try:
            yield Sent(owner, publish_folder(folder))
        except Exception as error:  # whatever a store, a driver or a network has to say
            reason = first_line(error)
            if isinstance(error, TakenOverError):
                reason += f": what is in {folder} does not count, and can be deleted"
            elif owner.store != here:
                reason += f" (it belongs to {owner.store}, this is {here}: see MLFLOW_TRACKING_URI)"
            yield Sent(owner, 0, reason)
