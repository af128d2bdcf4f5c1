"""The records of a pruning run: a row per level, a row per level and parameter tensor.

To add a metric, add its field to Level and its row to METRICS.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:  # torch takes seconds to import; reading tables must not wait for it
    from torch import nn

    from pruneflow.pruning.units import Units

TAG_LIMIT = 8_000  # characters that MLflow keeps of a tag


@dataclass(frozen=True)
class Level:
    """One level of a pruning run, as a row of `levels.csv`. Accuracies are fractions.

    Attributes:
        target_sparsity: the fraction asked for, of weights or of channels.
        sparsity: zeros (or, compact, what is gone) / prunable parameters.
        params: parameters of the unpruned model.
        params_left: fraction of them that exists and is not zero.
        macs: multiply-accumulates of one sample through the unpruned model.
        macs_left: fraction of them whose weight exists and is not zero.
        size_bytes: the level's checkpoint on disk.
        test_before, train_before: accuracy before this level's fine-tuning.
        test_after, train_after, val_after: after it. Level 0 has before and after equal.
        score_seconds: scoring and selection; physical removal and BatchNorm too, where asked for.
        channels_left: fraction of the prunable units that is left; None for single weights.
        conv_params_masked: parameters of convolutions that this level's masks keep.
        conv_params_compact, params_compact, macs_compact: counted in the compact form, in all.
        test_compact: accuracy of the compact form, where it differs from what was fine-tuned
            (`coupling=independent`); else None.
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
    channels_left: float | None
    conv_params_masked: int
    conv_params_compact: int
    params_compact: int
    macs_compact: int
    test_compact: float | None

    @classmethod
    def of(
        cls,
        units: Units,
        compact: nn.Module,
        layers: Sequence[Layer],
        uses: Mapping[str, float],
        **measured: Any,
    ) -> Self:
        """A level counted.

        Args:
            units: of the model, as they are left.
            compact: the compact form of the model.
            layers: `Layer.of` these units.
            uses: as `cost.positions` has them of the unpruned model.
            measured: every field that is not counted.
        """
        from pruneflow.pruning import cost

        zeros = {layer.layer: layer.zeros for layer in layers}
        params = sum(units.sizes.values())
        prunable = sum(units.sizes[name] for name in units.prunable)
        macs = round(sum(units.sizes[name] * uses[name] for name in uses))
        macs_left = round(sum((units.sizes[name] - zeros[name]) * uses[name] for name in uses))
        return cls(
            sparsity=sum(zeros[name] for name in units.prunable) / prunable,
            params=params,
            params_left=1 - sum(zeros.values()) / params,
            macs=macs,
            macs_left=macs_left / macs,
            size_bytes=0,  # known once its checkpoint is written
            channels_left=units.channels_left,
            conv_params_masked=units.conv_params,
            conv_params_compact=cost.conv_params(compact),
            params_compact=sum(p.numel() for p in compact.parameters()),
            macs_compact=cost.macs(compact, uses)[0],
            **measured,
        )


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
    "channels_left": "prune/channels_left",
    "conv_params_masked": "prune/conv_params_masked",
    "conv_params_compact": "prune/conv_params_compact",
    "params_compact": "prune/params_compact",
    "macs_compact": "cost/macs_compact",
    "test_compact": "accuracy/test_compact",
}


@dataclass(frozen=True)
class Layer:
    """One parameter tensor at one level, as a row of `layers.csv`.

    Attributes:
        shape: as it is at this level, "64x3x11x11".
        params: entries it has in the unpruned model.
        zeros: those of them that are zero, or gone.
    """

    level: int
    layer: str
    kind: str
    shape: str
    params: int
    zeros: int
    sparsity: float

    @classmethod
    def of(cls, units: Units, level: int) -> list[Self]:
        """A row for every parameter tensor of the model, pruned or not, in model order."""
        from pruneflow.pruning import cost

        rows = []
        for name, parameter in units.model.named_parameters():
            kind = type(units.model.get_submodule(name.rpartition(".")[0])).__name__
            params = units.sizes[name]
            zeros = params - cost.nonzeros(parameter)
            shape = "x".join(map(str, parameter.shape))
            rows.append(cls(level, name, kind, shape, params, zeros, zeros / params))
        return rows


_LEAST_TELLING = (
    "score_seconds",
    "evaluate_seconds",
    "finetune_seconds",
    "size_bytes",
    "macs",
    "params",
    "conv_params_masked",
    "conv_params_compact",
    "params_compact",
    "macs_compact",
    "target_sparsity",
    "val_after",
    "train_before",
    "test_compact",
)


def curves(levels: Sequence[Level]) -> str:
    """The level curves as JSON of lists, short enough for a tag.

    Numbers have six significant digits. Columns are left out, the least telling first, if there
    are so many levels that they would not fit.
    """
    columns = [f.name for f in fields(Level)]
    columns = [c for c in columns if any(getattr(level, c) is not None for level in levels)]
    table = {c: [_short(asdict(level)[c]) for level in levels] for c in columns}
    for dropped in _LEAST_TELLING:
        text = json.dumps(table, separators=(",", ":"))
        if len(text) < TAG_LIMIT:
            return text
        table.pop(dropped, None)
    return json.dumps(table, separators=(",", ":"))


def _short(value: float | None) -> float | None:
    return value if value is None or isinstance(value, int) else float(f"{value:.6g}")


_CELLS: dict[str, Callable[[Level], str]] = {
    "level": lambda v: str(v.level),
    "channels left": lambda v: _four(v.channels_left),
    "sparsity": lambda v: _four(v.sparsity),
    "params left": lambda v: _four(v.params_left),
    "MACs left": lambda v: _four(v.macs_left),
    "test before": lambda v: _four(v.test_before),
    "test after": lambda v: _four(v.test_after),
    "test compact": lambda v: _four(v.test_compact),
    "train before": lambda v: _four(v.train_before),
    "train after": lambda v: _four(v.train_after),
    "params compact": lambda v: f"{v.params_compact:,}",
    "MACs compact": lambda v: f"{v.macs_compact:,}",
    "MB": lambda v: f"{v.size_bytes / 1e6:.1f}",
    "seconds": lambda v: f"{v.score_seconds + v.finetune_seconds + v.evaluate_seconds:.1f}",
}


def _four(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def readable(levels: Sequence[Level], *, without: Collection[str] = ()) -> dict[str, list[str]]:
    """The levels as people read them: heading -> a cell a level.

    What was measured at no level is left out, and what `without` names.
    """
    table = {heading: [cell(level) for level in levels] for heading, cell in _CELLS.items()}
    return {h: cells for h, cells in table.items() if any(cells) and h not in without}


def to_markdown(levels: Sequence[Level]) -> str:
    """A table of the levels, for the run's page."""
    table = readable(levels, without=("train before", "MB", "seconds"))
    lines = ["| " + " | ".join(table) + " |", "|" + "---:|" * len(table)]
    lines += ["| " + " | ".join(row) + " |" for row in zip(*table.values(), strict=True)]
    return "\n".join(lines)
