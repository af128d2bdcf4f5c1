"""Upkeep, no stages with runs of their own: `pruneflow sync` and `pruneflow doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pruneflow.errors import ExperimentError, InputError
from pruneflow.stages.progress import Reporter
from pruneflow.tracking import doctor, offline, store, sync


def send(folders: Sequence[Path]) -> None:
    """Send journals, and runs that were made offline, to the current store; tell of each.

    Raises:
        InputError: a folder without a journal, or a store that does not answer.
        ExperimentError: not everything could be sent.
    """
    if offline.wanted():
        raise InputError("PRUNEFLOW_OFFLINE is set: unset it, and name the store to send to")
    found = sync.journals(folders)
    store.check()
    left = sent = 0
    with Reporter() as reporter:
        for one in sync.send_all(found):
            name = f"{one.owner.name} ({one.owner.run_id})"
            reporter.say(f"{name}: {one.reason or f'{one.entries} records sent'}")
            sent += 1
            left += bool(one.reason)
        for name, copy in [] if folders else offline.copy_runs():
            reporter.say(f"{name}, made offline: run {copy}")
            sent += 1
        if not sent:
            reporter.say("there is nothing to send")
    if left:
        raise ExperimentError(f"{left} of {sent} journals were not sent, or not to the end")


def examine() -> None:
    """Tell what is found, with advice.

    Raises:
        ExperimentError: something is wrong.
    """
    wrong = 0
    with Reporter() as reporter:
        for one in doctor.examine():
            reporter.say(f"{one.state:5}  {one.what}")
            if one.advice:
                reporter.say(f"       -> {one.advice}")
            wrong += one.state == doctor.WRONG
    if wrong:
        raise ExperimentError(f"{wrong} things are wrong")
