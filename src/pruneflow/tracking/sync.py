"""Sync: what runs recorded while MLflow did not answer is sent to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.tracking import MlflowClient

from pruneflow.errors import InputError, first_line
from pruneflow.tracking import journal, store
from pruneflow.tracking.delivery import fail_soon, send
from pruneflow.tracking.journal import Journal, Owner
from pruneflow.tracking.refusals import TakenOverError
from pruneflow.tracking.writers import check_writer


@dataclass(frozen=True)
class Sent:
    """What became of a journal.

    Attributes:
        owner: whose it is.
        entries: that were sent.
        reason: why nothing, or not all, was sent; empty if all was.
    """

    owner: Owner
    entries: int
    reason: str = ""


def journals(places: Sequence[Path]) -> list[Path]:
    """The journals in folders, or without any those of this machine, oldest first.

    Raises:
        InputError: a folder that holds none.
    """
    if not places:
        return journal.folders()
    found = []
    for place in places:
        own = journal.folders(place)
        if not own:
            raise InputError(f"{str(place)!r} holds no journal of a run")
        found += own
    return found


def send_all(folders: Sequence[Path]) -> Iterator[Sent]:
    """Send journals to the current store, and end runs whose process was killed.

    A journal whose run has finished is removed, others stay: their runs can go on.
    """
    fail_soon()
    client = MlflowClient()
    for folder in folders:
        owner = journal.owner_of(folder)
        try:
            own = Journal(folder)
        except InputError:
            yield Sent(owner, 0, "its run is still going on, and sends it itself")
            continue
        owed, reason = len(own.pending()), ""
        try:
            _send(client, own)
        except Exception as error:  # whatever a store, a driver or a network has to say
            reason = first_line(error)
            here = store.without_credentials(store.uri())
            if isinstance(error, TakenOverError):
                reason += f": what is in {folder} does not count, and can be deleted"
            elif owner.store != here:
                reason += f" (it belongs to {owner.store}, this is {here}: see MLFLOW_TRACKING_URI)"
        left = len(own.pending())
        own.close(remove=not reason and own.last_status == "FINISHED")
        yield Sent(owner, owed - left, reason)


def send_journal(folder: Path) -> None:
    """Send a journal whose process has ended.

    Raises:
        InputError: it is open in another process.
        Exception: what the store, a driver or a network has to say.
    """
    own = Journal(folder)
    try:
        _send(MlflowClient(), own)
    finally:
        own.close(remove=own.last_status == "FINISHED" and not own.pending())


def _send(client: MlflowClient, own: Journal) -> None:
    run_id = own.owner.run_id
    check_writer(client, run_id, own)
    while send(client, run_id, own):
        pass
    if own.last_status in (None, "RUNNING"):
        client.set_tag(run_id, "pruneflow.failure", "its process ended without a word")
        client.set_terminated(run_id, "KILLED")
