"""Stage `report`: every figure, table and verdict of an experiment or study, from its runs."""

from __future__ import annotations

from pruneflow import paper
from pruneflow.config import ReportConfig
from pruneflow.errors import InputError, output_folder
from pruneflow.report import evidence, page, summaries
from pruneflow.report.figures import FIGURES
from pruneflow.stages.progress import Reporter
from pruneflow.tracking.run import Ended, open_run


def report(config: ReportConfig, reporter: Reporter) -> Ended:
    """Read the runs, write the report and keep it as a run."""
    subject = config.study or config.experiment or "the current experiment"
    folder = output_folder("output_dir", config.output_dir)
    runs = evidence.read(subject, experiment=config.experiment, study=config.study)
    if runs.pruning.empty:
        raise InputError(
            f"{subject} has no finished pruning runs whose levels can be read "
            f"({len(runs.runs)} runs in all): run prune_iterative or sweep first, or pass another"
        )
    with open_run("report", config, name=f"report-{subject.replace(' ', '-')}", tags={}) as run:
        reporter.say(f"report of {subject}: run {run.id}, of {len(runs.runs)} runs")
        missing = page.write(runs, folder, paper.addition(runs, reference=config.reference))
        run.log_folder(folder, ("report.html", "report.md", "figures", "tables"))
        for name in missing:
            reporter.say(f"  no runs for: {FIGURES[name].title} ({FIGURES[name].command})")
        drawn = f"{len(FIGURES) - len(missing)} figures"
        run.describe(
            f"Report of **{subject}**: {len(runs.pruning)} finished pruning runs, {drawn}. "
            "Open the artifact `report.html`."
        )
        reporter.say(f"  {drawn}: {folder / 'report.html'}")
    studies = [config.study] if config.study else sorted(runs.runs["study"].dropna().unique())
    for study in studies:
        summaries.update(study, config.experiment, reporter.say)
    return run.ended
