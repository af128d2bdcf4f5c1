"""The records of a benchmark: a row per level, form, engine, device, threads and batch size.

To add a column, add its field to Latency; to add a metric, its row to METRICS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OK, OUT_OF_MEMORY = "ok", "out of memory"
CONTENDED = "contended"
DIFFERENT = "outputs differ"


@dataclass(frozen=True)
class Latency:
    """Times of one form at one batch size, as a row of `latency.csv`.

    What could not be run or timed has None where there is nothing to say.

    Attributes:
        machine: name of the processor, and before it of the GPU if that was timed: times of two
            machines are never put together.
        level: of the pruning run.
        form: `dense`, `masked`, `compact` or `sparse`.
        engine: what ran it: `eager` (PyTorch), `onnxruntime`, `openvino`.
        status: `ok`; `out of memory`; `contended`: other work used the processors, so that too few
            rounds count; or `outputs differ` by more than rounding from those of the form that it
            stands for, so that its time would be of something else. Only `ok` has times.
        device: `cpu` or `cuda`.
        threads: CPU threads.
        batch_size: samples in a batch.
        n: rounds that count, each of which timed every form of the point once: those in which
            other work left the processors alone.
        p50_ms, p95_ms, mean_ms, sd_ms: of one batch.
        samples_per_second: batch size / median time.
        peak_memory_bytes: weights, inputs and the most that one batch held at a time.
        params: stored parameters; of the sparse form those that are not left out.
        macs: multiply-accumulates of one sample as the form does them.
        params_left: of the level, as in `levels.csv`.
        weight_bytes: of parameters and buffers, indices of sparse ones included.
        speedup: median time of the dense form, eager, in the same rounds / the form's own.
        speedup_low, speedup_high: ends of its 95 % interval; None of too few rounds.
        difference: largest difference of the logits from the masked form's (an engine's: from the
            same form's in eager PyTorch), relative to the largest logit; None for what is the
            reference itself, and for `compact` of `coupling=independent`, whose outputs are others.
        pruned_share: of the dense form's time, what the layers took that the level has pruned: more
            than 1 / (1 - that) times as fast nothing can become of it. None of the dense form, of
            engines, and where no layer that was timed is pruned.
        pruned_time_left, pruned_macs_left: of these layers, in the form / in the dense form.
    """

    machine: str
    level: int
    form: str
    engine: str
    status: str
    device: str
    threads: int
    batch_size: int
    n: int
    p50_ms: float | None
    p95_ms: float | None
    mean_ms: float | None
    sd_ms: float | None
    samples_per_second: float | None
    peak_memory_bytes: int | None
    params: int
    macs: int
    params_left: float
    weight_bytes: int
    speedup: float | None
    speedup_low: float | None
    speedup_high: float | None
    difference: float | None
    pruned_share: float | None
    pruned_time_left: float | None
    pruned_macs_left: float | None


@dataclass(frozen=True)
class LayerLatency:
    """Time of one layer in one forward pass, as a row of `profile.csv`: the slowest of a form.

    Attributes:
        ms: median over passes, all calls of the layer together, hooks included.
        share: of the time of all layers.
        dense_ms: of the same layer in the dense form at the same batch size.
    """

    level: int
    form: str
    device: str
    threads: int
    batch_size: int
    layer: str
    kind: str
    ms: float
    share: float
    dense_ms: float | None


METRICS = {"p50_ms": "p50_ms", "p95_ms": "p95_ms"}


def metrics(rows: Sequence[Latency], first: tuple[str, int]) -> dict[str, float]:
    """Metrics of a level: `latency/<form>_b<batch>_p50_ms` and the like.

    Args:
        rows: of the level.
        first: device and threads that need no mention; those of others end in `_cuda`, `_t2`.
    """
    values = {}
    for row in rows:
        form = row.form if row.engine == "eager" else f"{row.form}_{row.engine}"
        where = f"_{row.device}" if row.device != first[0] else ""
        if row.device == "cpu" and row.threads != first[1]:
            where += f"_t{row.threads}"
        for field, name in METRICS.items():
            value = getattr(row, field)
            if value is not None:
                values[f"latency/{form}_b{row.batch_size}{where}_{name}"] = value
    return values
