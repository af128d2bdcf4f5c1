"""The records of a pruning run: a row per level, a row per level and parameter tensor.

To add a metric, add its field to Level.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:  # torch takes seconds to import; reading tables must not wait for it
    from torch import nn

    from pruneflow.pruning.units import Units

TAG_LIMIT = 8_000  # characters that MLflow keeps of a tag


def _metric(name: str, default: Any = MISSING) -> Any:
    return field(default=default, metadata={"metric": name})


@dataclass(frozen=True)
class Level:
    """One level of a pruning run, as a row of `levels.csv`. Accuracies are fractions."""

    level: int
    target_sparsity: float = _metric("prune/target_sparsity")  # of weights or of channels
    sparsity: float = _metric("prune/sparsity")  # zeros (compact: what is gone) / prunable
    params: int = _metric("prune/params")  # of the unpruned model, as `macs`
    params_left: float = _metric("prune/params_left")  # fraction that exists and is not zero
    macs: int = _metric("cost/macs")  # multiply-accumulates of a sample
    macs_left: float = _metric("cost/macs_left")  # fraction whose weight exists and is not zero
    size_bytes: int = _metric("cost/size_bytes")  # of the checkpoint
    test_before: float = _metric("accuracy/test_before")  # before the level's fine-tuning
    test_after: float = _metric("accuracy/test_after")  # level 0 has before and after equal
    train_before: float = _metric("accuracy/train_before")
    train_after: float = _metric("accuracy/train_after")
    val_after: float = _metric("accuracy/val_after")
    score_seconds: float = _metric("time/score_seconds")  # selection, removal, BatchNorm too
    finetune_seconds: float = _metric("time/finetune_seconds")
    evaluate_seconds: float = _metric("time/evaluate_seconds")
    channels_left: float | None = _metric("prune/channels_left")  # None for single weights
    conv_params_masked: int = _metric("prune/conv_params_masked")  # that the masks keep
    conv_params_compact: int = _metric("prune/conv_params_compact")  # of the compact form
    params_compact: int = _metric("prune/params_compact")
    macs_compact: int = _metric("cost/macs_compact")
    # where the compact form differs from what was fine-tuned (coupling=independent), else None
    test_compact: float | None = _metric("accuracy/test_compact")
    # of a budget: shares of the unpruned model's cost, asked for and reached; else None
    budget_target: float | None = _metric("prune/budget_target", None)
    budget_achieved: float | None = _metric("prune/budget_achieved", None)
    # that packages and GPU used from the level's beginning to its last measurement, by their own
    # counters; None where that was not asked for
    energy_joules: float | None = _metric("energy/level_joules", None)

    @classmethod
    def of(
        cls,
        units: Units,
        compact: nn.Module,
        layers: Sequence[Layer],
        uses: Mapping[str, float],
        **measured: Any,
    ) -> Self:
        """A level of a model, counted.

        `compact` is its compact form, `layers` its `Layer.of`, `uses` the `cost.positions` of the
        unpruned model, `measured` every field that is not counted.
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


METRICS = {f.name: f.metadata["metric"] for f in fields(Level) if f.metadata}


@dataclass(frozen=True)
class Layer:
    """One parameter tensor at one level, as a row of `layers.csv`."""

    level: int
    layer: str
    kind: str
    shape: str  # at this level, "64x3x11x11"
    params: int  # entries in the unpruned model
    zeros: int  # those of them that are zero, or gone
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
    "score_seconds", "evaluate_seconds", "finetune_seconds", "size_bytes", "macs", "params",
    "conv_params_masked", "conv_params_compact", "params_compact", "macs_compact",
    "target_sparsity", "val_after", "train_before", "test_compact", "budget_target",
    "energy_joules",
)  # fmt: skip


def curves(levels: Sequence[Level]) -> str:
    """The level curves as JSON of lists, short enough for a tag.

    Numbers have six significant digits. Columns are left out, the least telling first, if there
    are so many levels that they would not fit.
    """
    table = {f.name: [_short(getattr(level, f.name)) for level in levels] for f in fields(Level)}
    table = {name: values for name, values in table.items() if set(values) != {None}}
    for dropped in ("", *_LEAST_TELLING):
        table.pop(dropped, None)
        text = json.dumps(table, separators=(",", ":"))
        if len(text) < TAG_LIMIT:
            break
    return text


def _short(value: float | None) -> float | None:
    return value if value is None or isinstance(value, int) else float(f"{value:.6g}")


_READABLE = (
    "level", "budget_target", "budget_achieved", "channels_left", "sparsity", "params_left",
    "macs_left", "test_before", "test_after", "test_compact", "train_before", "train_after",
    "params_compact", "macs_compact",
)  # fmt: skip


def readable(levels: Sequence[Level], *, without: Collection[str] = ()) -> dict[str, list[str]]:
    """Heading -> a cell a level; without what was measured at no level, and some headings."""
    table = {}
    for name in _READABLE:
        heading = name.replace("_", " ").replace("macs", "MACs")
        table[heading] = [_cell(getattr(level, name)) for level in levels]
    table["MB"] = [f"{level.size_bytes / 1e6:.1f}" for level in levels]
    table["seconds"] = [
        f"{level.score_seconds + level.finetune_seconds + level.evaluate_seconds:.1f}"
        for level in levels
    ]
    return {h: cells for h, cells in table.items() if any(cells) and h not in without}


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def to_markdown(levels: Sequence[Level]) -> str:
    """A table of the levels, for the run's page."""
    table = readable(levels, without=("train before", "MB", "seconds"))
    rows = [table, ["---:"] * len(table), *zip(*table.values(), strict=True)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
