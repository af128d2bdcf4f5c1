"""Stages: each reads as its experiment does. `run` starts one by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from pruneflow.config import (
    BenchmarkConfig,
    Config,
    FinetuneConfig,
    PruneConfig,
    ReportConfig,
    SweepConfig,
    resolve,
)
from pruneflow.errors import unknown

if TYPE_CHECKING:
    import pandas as pd

    from pruneflow.stages.progress import Reporter
    from pruneflow.tracking.run import Ended


def _finetune(config: Any, reporter: Reporter) -> list[Ended]:
    from pruneflow.stages.finetune import finetune

    return [finetune(config, reporter)]


def _prune_iterative(config: Any, reporter: Reporter) -> list[Ended]:
    from pruneflow.stages.prune import prune_iterative

    return [prune_iterative(config, reporter)]


def _prune_direct(config: Any, reporter: Reporter) -> list[Ended]:
    from pruneflow.stages.prune import prune_direct

    return [prune_direct(config, reporter)]


def _benchmark_latency(config: Any, reporter: Reporter) -> list[Ended]:
    from pruneflow.stages.benchmark import benchmark_latency

    return benchmark_latency(config, reporter)


def _report(config: Any, reporter: Reporter) -> list[Ended]:
    from pruneflow.stages.report import report

    return [report(config, reporter)]


def _sweep(config: Any, reporter: Reporter) -> list[Ended]:
    from pruneflow.stages.sweep import sweep

    return sweep(config, reporter)


@dataclass(frozen=True)
class Stage:
    """An entry point: its configuration, what runs it (imported when called), its help line."""

    config: type[Config]
    start: Callable[[Any, Reporter], list[Ended]]
    help: str


STAGES: dict[str, Stage] = {
    "finetune": Stage(FinetuneConfig, _finetune, "Train a model, to be a base run for pruning."),
    "prune_iterative": Stage(
        PruneConfig, _prune_iterative, "Prune level by level, fine-tuning after each."
    ),
    "prune_direct": Stage(
        PruneConfig, _prune_direct, "Prune to the target in one level, then fine-tune."
    ),
    "benchmark_latency": Stage(
        BenchmarkConfig, _benchmark_latency, "Time the levels of pruning runs in every form."
    ),
    "report": Stage(ReportConfig, _report, "Figures, tables and verdicts from runs, as a page."),
    "sweep": Stage(SweepConfig, _sweep, "Run every configuration of a study."),
}


@dataclass(frozen=True)
class FinishedRun:
    """A run that a stage has finished.

    Attributes:
        run_id: its id in MLflow.
        experiment_id: of the MLflow experiment that holds it.
        address: where to see it in the UI.
        levels: a DataFrame with the columns of `levels.csv`; empty if nothing was pruned.
        latencies: one with the columns of `latency.csv`, and `run_id` before them: of
            all runs, if several were benchmarked, while the fields above are of the first.
    """

    run_id: str
    experiment_id: str
    address: str
    levels: pd.DataFrame
    latencies: pd.DataFrame


def run(stage: str, parameters: Mapping[str, Any]) -> FinishedRun | None:
    """Run a stage with the parameters of its entry point; the rest comes from the preset.

    Random states, threads and modes of the caller's PyTorch are afterwards as they were.

    Returns:
        Its run, the first if there are several; None of a dry run, which makes none.

    Raises:
        InputError: a stage, parameter or value that cannot be used. No run is left open.
        ExperimentError: the experiment could not go on; its run is FAILED and says why.
    """
    if stage not in STAGES:
        raise unknown("stage", stage, STAGES)
    config = resolve(STAGES[stage].config, parameters)

    import pandas as pd

    from pruneflow.stages.progress import Reporter
    from pruneflow.tracking import refusals, store
    from pruneflow.workloads.machine import callers_state_kept

    store.check()
    with callers_state_kept(), Reporter() as reporter, refusals.in_a_line():
        done = STAGES[stage].start(config, reporter)
        for one in done:
            reporter.say(f"run {one.id} finished: {one.address}")
    if not done:
        return None
    from pruneflow.tracking.latencies import Latency
    from pruneflow.tracking.levels import Level

    def table(rows: Sequence[Any], kind: type[Any]) -> pd.DataFrame:
        frame = pd.DataFrame(rows, columns=[field.name for field in fields(kind)])
        return frame.astype({f.name: float for f in fields(kind) if "float" in str(f.type)})

    latencies = pd.concat([table(one.latencies, Latency).assign(run_id=one.id) for one in done])
    latencies.insert(0, "run_id", latencies.pop("run_id"))
    first = done[0]
    levels = table(first.levels, Level)
    return FinishedRun(first.id, first.experiment_id, first.address, levels, latencies)
