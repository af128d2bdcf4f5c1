"""Stages: each reads as its experiment does. `run` starts one by its name."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pruneflow.config import (
    BenchmarkConfig,
    Config,
    DirectConfig,
    ExportConfig,
    FinetuneConfig,
    GradualConfig,
    PruneConfig,
    ReportConfig,
    SensitivityConfig,
    SweepConfig,
)
from pruneflow.errors import unknown
from pruneflow.resolution import resolve
from pruneflow.workloads import factories

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Stage:
    """An entry point: its configuration, the module with the function of its name, its help."""

    config: type[Config]
    module: str  # imported only when the stage is run: torch takes seconds
    help: str


STAGES = {
    "finetune": Stage(FinetuneConfig, "finetune", "Train a model, to be a base run for pruning."),
    "prune_iterative": Stage(PruneConfig, "prune", "Prune level by level, fine-tuning after each."),
    "prune_direct": Stage(
        DirectConfig, "prune", "Prune to the target in one level, then fine-tune."
    ),
    "prune_gradual": Stage(
        GradualConfig, "prune", "Prune by and by within one training, then train on."
    ),
    "sensitivity": Stage(
        SensitivityConfig, "sensitivity", "Prune each layer alone and measure what that costs."
    ),
    "benchmark_latency": Stage(BenchmarkConfig, "benchmark", "Time pruned levels in every form."),
    "export": Stage(ExportConfig, "export", "Write a level as files that others read."),
    "report": Stage(ReportConfig, "report", "Figures, tables and verdicts from runs, as a page."),
    "sweep": Stage(SweepConfig, "sweep", "Run every configuration of a study."),
}


@dataclass(frozen=True)
class FinishedRun:
    """A run that a stage has finished, with its records in DataFrames."""

    run_id: str
    experiment_id: str
    address: str  # where to see it in the UI
    levels: pd.DataFrame  # with the columns of levels.csv; empty if nothing was pruned
    # with the columns of latency.csv, after run_id: of all runs, if several were benchmarked
    latencies: pd.DataFrame


def run(stage: str, parameters: Mapping[str, Any]) -> FinishedRun | None:
    """Run a stage with the parameters of its entry point; the rest comes from the preset.

    A factory of a model or data set may be the callable itself, where a module has its name.

    Random states, threads and modes of the caller's PyTorch are afterwards as they were. Gives its
    run, the first if there are several; None after a dry run, which makes none.

    Raises:
        InputError: a stage, parameter or value that cannot be used. No run is left open.
        ExperimentError: the experiment could not go on; its run is FAILED and says why.
    """
    if stage not in STAGES:
        raise unknown("stage", stage, STAGES)
    named = {
        name: factories.name_of(name, value) if callable(value) else value
        for name, value in parameters.items()
    }
    config = resolve(STAGES[stage].config, named)

    import pandas as pd

    from pruneflow.stages.progress import Reporter
    from pruneflow.tracking import refusals, store, tables
    from pruneflow.tracking.latencies import Latency
    from pruneflow.tracking.levels import Level
    from pruneflow.workloads.machine import callers_state_kept

    store.check()
    with callers_state_kept(), Reporter() as reporter, refusals.in_a_line():
        start = pkgutil.resolve_name(f"{__name__}.{STAGES[stage].module}:{stage}")
        ended = start(config, reporter)
        runs = ended if isinstance(ended, list) else [ended]
        for finished in runs:
            reporter.say(f"run {finished.id} finished: {finished.address}")
    if not runs:
        return None
    first = runs[0]
    levels = tables.frame(first.levels, Level)
    times = {r.id: tables.frame(r.latencies, Latency) for r in runs}
    latencies = pd.concat(times, names=["run_id"]).reset_index("run_id")
    return FinishedRun(first.id, first.experiment_id, first.address, levels, latencies)
