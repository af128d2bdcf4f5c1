"""pruneflow: pruning experiments as MLflow runs.

Every stage can be called from here, with the parameters of its entry point:

    import pruneflow
    run = pruneflow.prune_iterative(model="alexnet", iterations=3)
    run.levels  # a DataFrame, one row a level
    model = pruneflow.load_model(run.run_id, level=3)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pruneflow.errors import ExperimentError, InputError
from pruneflow.version import __version__

if TYPE_CHECKING:  # what follows imports torch and mlflow: seconds, so only once it is called
    from torch import nn

    from pruneflow.stages import FinishedRun

__all__ = [
    "ExperimentError", "InputError", "__version__", "benchmark_latency", "export", "finetune",
    "load_model", "prune_direct", "prune_gradual", "prune_iterative", "sensitivity", "sweep",
    "write_report",
]  # fmt: skip


def _run(stage: str, parameters: dict[str, Any]) -> FinishedRun:
    from pruneflow.stages import run

    done = run(stage, parameters)
    assert done is not None  # only a dry run makes none
    return done


def finetune(**parameters: Any) -> FinishedRun:
    """Train a model on a data set, as a run; the same as the entry point `finetune`."""
    return _run("finetune", parameters)


def prune_iterative(**parameters: Any) -> FinishedRun:
    """Prune a model level by level, fine-tuning between; as the entry point `prune_iterative`."""
    return _run("prune_iterative", parameters)


def prune_direct(**parameters: Any) -> FinishedRun:
    """Prune a model to its target at once, then fine-tune; as the entry point `prune_direct`."""
    return _run("prune_direct", parameters)


def prune_gradual(**parameters: Any) -> FinishedRun:
    """Prune a model by and by within one training; as the entry point `prune_gradual`."""
    return _run("prune_gradual", parameters)


def sensitivity(**parameters: Any) -> FinishedRun:
    """Prune each layer alone and measure what that costs; as the entry point `sensitivity`.

    `pruneflow.query.sensitivity(run_ids=...)` has what it measured.
    """
    return _run("sensitivity", parameters)


def benchmark_latency(**parameters: Any) -> FinishedRun:
    """Time the levels of pruning runs in every form; as the entry point `benchmark_latency`."""
    return _run("benchmark_latency", parameters)


def export(**parameters: Any) -> FinishedRun:
    """Write a level of a pruning run as files that others read; as the entry point `export`."""
    return _run("export", parameters)


def write_report(**parameters: Any) -> FinishedRun:
    """Write every figure, table and verdict of runs; as the entry point `report`."""
    return _run("report", parameters)


def sweep(**parameters: Any) -> FinishedRun | None:
    """Run every configuration of a study; as the entry point `sweep`. None after a dry run."""
    from pruneflow.stages import run

    return run("sweep", parameters)


def load_model(run_id: str, level: int = 0) -> nn.Module:
    """The model of a run's level, in eval mode on the CPU: dense, masked or compact as it was.

    Raises:
        InputError: a run or level that is not there, or cannot be read.
    """
    from pruneflow.tracking import checkpoints, finished
    from pruneflow.workloads.machine import callers_state_kept

    with callers_state_kept():
        return checkpoints.restore(finished.load_checkpoint(run_id, level))


def __getattr__(name: str) -> Any:
    if name == "query":  # imports pandas and mlflow, so only once it is asked for
        return importlib.import_module("pruneflow.query")
    raise AttributeError(f"module 'pruneflow' has no attribute {name!r}")
