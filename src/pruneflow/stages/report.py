"""Stage `report`: every figure, table and verdict of an experiment or study, from its runs."""

from __future__ import annotations

import os
from pathlib import Path

from pruneflow import paper
from pruneflow.config import ReportConfig
from pruneflow.errors import InputError, user_path
from pruneflow.report import evidence, page
from pruneflow.report.figures import FIGURES
from pruneflow.stages.progress import Reporter
from pruneflow.tracking.run import Ended, open_run


def report(config: ReportConfig, reporter: Reporter) -> Ended:
    """Read the runs, write the report and keep it as a run.

    Raises:
        InputError: an experiment that is not there, runs that are not there, or a folder that
            cannot be written to.
    """
    of = config.study or config.experiment or "the current experiment"
    folder = _folder(config)
    found = evidence.read(of, experiment=config.experiment, study=config.study)
    if found.pruning.empty:
        asked = {"study": config.study, "experiment": config.experiment}
        what = next((f"{name}={value!r}" for name, value in asked.items() if value), of)
        raise InputError(
            f"{what} has no finished pruning runs whose levels can be read ({len(found.runs)} runs "
            "in all): run prune_iterative or sweep first, or pass another experiment or study"
        )
    with open_run("report", config, name=f"report-{of.replace(' ', '-')}", tags={}) as run:
        reporter.say(f"report of {of}: run {run.id}, of {len(found.runs)} runs")
        compared = paper.addition(found) if config.reference else None
        missing = page.write(found, folder, compared)
        run.log_folder(folder, ("report.html", "report.md", "figures", "tables"))
        drawn = len(FIGURES) - len(missing)
        for name in missing:
            figure = FIGURES[name]
            reporter.say(f"  no runs for: {figure.title} ({figure.command})")
        run.describe(
            f"Report of **{of}**: {len(found.pruning)} finished pruning runs, {drawn} figures. "
            "Open the artifact `report.html`."
        )
        reporter.say(f"  {drawn} figures: {folder / 'report.html'}")
    return run.ended


def _folder(config: ReportConfig) -> Path:
    """Where the report is written; it is made only once there is something to write.

    Raises:
        InputError: a file, or a place that cannot be written to.
    """
    folder = user_path("output_dir", config.output_dir)
    there = next(place for place in (folder, *folder.resolve().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "is not a folder" if not there.is_dir() else "may not be written to"
        raise InputError(f"output_dir={config.output_dir!r} is not valid: {there} {reason}")
    return folder
