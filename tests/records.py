"""Records of runs that were never run: levels and times with plausible values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pruneflow.config import BenchmarkConfig, PruneConfig
from pruneflow.resolution import resolve
from pruneflow.tracking.latencies import Latency
from pruneflow.tracking.levels import Layer, Level
from pruneflow.tracking.run import open_run

_MACHINE = {"device": "cpu", "precision": "fp32", "threads": 1}


def level(number: int, left: float, after: float, **given: Any) -> Level:
    row: dict[str, Any] = {
        "level": number,
        "target_sparsity": 1 - left,
        "sparsity": 1 - left,
        "params": 1000,
        "params_left": left,
        "macs": 5000,
        "macs_left": left,
        "size_bytes": 10,
        "test_before": after - 0.1,
        "test_after": after,
        "train_before": after - 0.05,
        "train_after": after + 0.05,
        "val_after": after,
        "score_seconds": 0.1,
        "finetune_seconds": 1.0,
        "evaluate_seconds": 0.5,
        "channels_left": None,
        "conv_params_masked": 300,
        "conv_params_compact": 300,
        "params_compact": 1000,
        "macs_compact": 5000,
        "test_compact": None,
    }
    return Level(**(row | given))


def latency(level: int, form: str, batch: int, p50: float | None, **given: object) -> Latency:
    row: dict[str, object] = {
        "machine": "a processor",
        "level": level,
        "form": form,
        "device": "cpu",
        "threads": 2,
        "batch_size": batch,
        "n": 20,
        "p50_ms": p50,
        "p95_ms": None if p50 is None else 1.5 * p50,
        "mean_ms": p50,
        "sd_ms": 0.1,
        "samples_per_second": None,
        "peak_memory_bytes": 10,
        "params": 100,
        "macs": 1000,
        "engine": "eager",
        "status": "ok" if p50 else "out of memory",
        "params_left": 0.5**level,
        "weight_bytes": 400,
        "speedup": None,
        "speedup_low": None,
        "speedup_high": None,
        "difference": 0.0,
        "pruned_share": None,
        "pruned_time_left": None,
        "pruned_macs_left": None,
    }
    return Latency(**(row | given))  # type: ignore[arg-type]


LEVELS = (level(0, 1.0, 0.912345678), level(1, 0.5, 0.85), level(2, 0.25, 0.7))
LAYER = Layer(0, "conv.weight", "Conv2d", "2x2", 4, 1, 0.25)


def prune(
    levels: Sequence[Level] = LEVELS,
    layers: Sequence[Layer] = (LAYER,),
    *,
    stage: str = "prune_iterative",
    study: str | None = None,
    base: str = "b0",
    name: str | None = None,
    **given: object,
) -> str:
    """Id of a finished pruning run with these levels, and these layers at each."""
    config = resolve(PruneConfig, _MACHINE | given)
    tags = {"pruneflow.base_run": base, "pruneflow.fingerprint": "f"}
    if study is not None:
        tags["pruneflow.study"] = study
    with open_run(stage, config, name=name or config.run_name(stage), tags=tags) as run:
        for one in levels:
            run.record(one, [Layer(**{**vars(layer), "level": one.level}) for layer in layers])
    return run.id


def benchmark(pruned: str, rows: Sequence[Latency]) -> str:
    """Id of a finished benchmark of a pruning run, with these times."""
    config = resolve(BenchmarkConfig, {"run": pruned})
    tags = {"pruneflow.pruning_run": pruned}
    with open_run("benchmark_latency", config, name="latency", tags=tags) as run:
        for number in sorted({row.level for row in rows}):
            own = [row for row in rows if row.level == number]
            run.record_latencies(number, own, [], ("cpu", rows[0].threads))
    return run.id
