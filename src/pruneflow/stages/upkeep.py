"""Upkeep, no stages with runs of their own: `pruneflow sync` and `pruneflow doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pruneflow.errors import ExperimentError, InputError
from pruneflow.stages.progress import Reporter
from pruneflow.tracking import doctor, store, sync


def send(folders: Sequence[Path]) -> None:
    """Send journals, and runs that were made offline, to the current store; tell of each.

    Raises:
        InputError: a folder without a journal, or a store that does not answer.
        ExperimentError: not everything could be sent.
    """
    if store.is_offline():
        raise InputError("PRUNEFLOW_OFFLINE is set: unset it, and name the store to send to")
    found = sync.journals(folders)
    store.check()
    with Reporter() as reporter:
        results = []
        for sent in sync.send_all(found):
            results.append(sent)
            outcome = sent.reason or f"{sent.entries} records sent"
            reporter.say(f"{sent.owner.name} ({sent.owner.run_id}): {outcome}")
        if not results:
            reporter.say("there is nothing to send")
    failed = [sent for sent in results if sent.reason]
    if failed:
        raise ExperimentError(
            f"{len(failed)} of {len(results)} journals were not sent, or not to the end"
        )


def examine() -> None:
    """Tell what is found, with advice.

    Raises:
        ExperimentError: something is wrong.
    """
    findings = []
    with Reporter() as reporter:
        for finding in doctor.examine():
            findings.append(finding)
            reporter.say(f"{finding.state:5}  {finding.what}")
            if finding.advice:
                reporter.say(f"       -> {finding.advice}")
    wrong = [finding for finding in findings if finding.state == doctor.WRONG]
    if wrong:
        raise ExperimentError(f"{len(wrong)} things are wrong")
