"""The records of a pruning run: a row per level, a row per level and parameter tensor.

To add a metric, add its field to Level and its row to METRICS.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, fields

TAG_LIMIT = 8_000  # characters that MLflow keeps of a tag


@dataclass(frozen=True)
class Level:
    """One level of a pruning run, as a row of `levels.csv`. Accuracies are fractions.

    Attributes:
        target_sparsity, sparsity: asked for, and counted: zeros / prunable parameters.
        params: parameters of the unpruned model.
        params_left: fraction of them that is not zero.
        macs: multiply-accumulates of one sample through the unpruned model.
        macs_left: fraction of them whose weight is not zero.
        size_bytes: the level's checkpoint on disk.
        test_before, train_before: accuracy before this level's fine-tuning.
        test_after, train_after, val_after: after it. Level 0 has before and after equal.
        score_seconds: scoring and selection.
    """

    level: int
    target_sparsity: float
    sparsity: float
    params: int
    params_left: float
    macs: int
    macs_left: float
    size_bytes: int
    test_before: float
    test_after: float
    train_before: float
    train_after: float
    val_after: float
    score_seconds: float
    finetune_seconds: float
    evaluate_seconds: float


METRICS = {
    "test_before": "accuracy/test_before",
    "test_after": "accuracy/test_after",
    "train_before": "accuracy/train_before",
    "train_after": "accuracy/train_after",
    "val_after": "accuracy/val_after",
    "sparsity": "prune/sparsity",
    "target_sparsity": "prune/target_sparsity",
    "params": "prune/params",
    "params_left": "prune/params_left",
    "macs": "cost/macs",
    "macs_left": "cost/macs_left",
    "size_bytes": "cost/size_bytes",
    "score_seconds": "time/score_seconds",
    "finetune_seconds": "time/finetune_seconds",
    "evaluate_seconds": "time/evaluate_seconds",
}


@dataclass(frozen=True)
class Layer:
    """One parameter tensor at one level, as a row of `layers.csv`."""

    level: int
    layer: str
    kind: str
    shape: str
    params: int
    zeros: int
    sparsity: float


def to_csv(rows: Iterable[Level] | Iterable[Layer], kind: type[Level] | type[Layer]) -> str:
    """Rows as CSV text, the fields' names as its header."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(field.name for field in fields(kind))
    writer.writerows(astuple(row) for row in rows)
    return out.getvalue()


def curves(levels: Sequence[Level]) -> str:
    """The level curves as JSON of lists, short enough for a tag.

    Numbers have six significant digits. Columns are left out, the least telling first, if there
    are so many levels that they would not fit.
    """
    columns = [f.name for f in fields(Level) if not f.name.endswith("_seconds")]
    table = {c: [_short(asdict(level)[c]) for level in levels] for c in columns}
    for dropped in ("size_bytes", "macs", "params", "target_sparsity", "val_after", "train_before"):
        text = json.dumps(table, separators=(",", ":"))
        if len(text) < TAG_LIMIT:
            return text
        del table[dropped]
    return json.dumps(table, separators=(",", ":"))


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.6g}")


def to_markdown(levels: Sequence[Level]) -> str:
    """A small table of the levels, for the run's page."""
    lines = [
        "| level | sparsity | params left | test before | test after | train after | MACs left |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {v.level} | {v.sparsity:.4f} | {v.params_left:.4f} | {v.test_before:.4f} "
        f"| {v.test_after:.4f} | {v.train_after:.4f} | {v.macs_left:.4f} |"
        for v in levels
    ]
    return "\n".join(lines)
