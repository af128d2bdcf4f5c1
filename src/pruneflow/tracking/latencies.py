"""The records of a benchmark: a row per level, form, engine, device, threads and batch size.

To add a column, add its field to Latency; to add a metric, its name to METRICS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OK, OUT_OF_MEMORY = "ok", "out of memory"
CONTENDED = "contended"  # other work used the processors, so that too few rounds count
DIFFERENT = "outputs differ"  # by more than rounding: the time would be of something else
METRICS = ("p50_ms", "p95_ms")


@dataclass(frozen=True)
class Latency:
    """Times of one form at one batch size, as a row of `latency.csv`; None: not timed."""

    machine: str  # the processor, before it the GPU if that was timed
    level: int
    form: str  # dense, masked, compact, sparse
    engine: str  # eager (PyTorch), onnxruntime, openvino
    status: str  # only `ok` has times
    device: str
    threads: int
    batch_size: int
    n: int  # rounds that count: other work left the processors alone; each timed every form once
    p50_ms: float | None  # of a batch, as the next three
    p95_ms: float | None
    mean_ms: float | None
    sd_ms: float | None
    samples_per_second: float | None  # batch size / median time
    peak_memory_bytes: int | None  # weights, inputs, and the most that a batch held at a time
    params: int  # stored; of the sparse form those that are not left out
    macs: int  # of a sample, as the form does them
    params_left: float  # of the level, as in `levels.csv`
    weight_bytes: int  # parameters and buffers, indices of sparse ones included
    speedup: float | None  # median time of the dense form in eager PyTorch / the form's
    speedup_low: float | None  # 95 % interval; None of too few rounds
    speedup_high: float | None
    # largest difference of the logits from the masked form's (an engine's: from eager PyTorch's) /
    # the largest logit; None of that form itself and of compact ones of coupling=independent
    difference: float | None
    # share of the dense form's time that its pruned layers take: a bound of any speed-up; None
    # of the dense form, of engines, and where no pruned layer was timed
    pruned_share: float | None
    pruned_time_left: float | None  # of these layers, in the form / in the dense form
    pruned_macs_left: float | None
    # that packages and GPU use while the form runs over and over, by their own counters; None where
    # that was not asked for, and where no counter moved
    energy_joules_per_sample: float | None = None


@dataclass(frozen=True)
class LayerLatency:
    """Time of one layer in one forward pass, as a row of `profile.csv`: the slowest of a form."""

    level: int
    form: str
    device: str
    threads: int
    batch_size: int
    layer: str
    kind: str
    ms: float  # median over passes, all calls of the layer together, hooks included
    share: float  # of the time of all layers
    dense_ms: float | None  # of the layer in the dense form at the same batch size


def metrics(rows: Sequence[Latency], first: tuple[str, int]) -> dict[str, float]:
    """Metrics of a level: `latency/<form>_b<batch>_p50_ms` and the like.

    `first` are the device and threads that need no mention; others end in `_cuda`, `_t2`.
    """
    values = {}
    for row in rows:
        form = row.form if row.engine == "eager" else f"{row.form}_{row.engine}"
        where = f"_{row.device}" if row.device != first[0] else ""
        if row.device == "cpu" and row.threads != first[1]:
            where += f"_t{row.threads}"
        for name in METRICS:
            if (value := getattr(row, name)) is not None:
                values[f"latency/{form}_b{row.batch_size}{where}_{name}"] = value
    return values
