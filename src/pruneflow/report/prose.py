"""Prose: what people are told of a pruning run, at the terminal and on its page."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from pruneflow.config import PruneConfig
from pruneflow.pruning.budgets import CURRENCIES, MET
from pruneflow.pruning.units import Units
from pruneflow.tracking.levels import Layer, Level, to_markdown

# A shortfall worth a sentence: further from the target than rounding to whole channels explains.
_SHORTFALL = 0.005
_SHOWN = 5  # names in a list; of the others their number


def method(config: PruneConfig) -> str:
    """How a run prunes, in a few words."""
    words = [config.criterion, config.pattern or config.scope, *filter(None, [config.budget])]
    if config.granularity == "channel":
        words += ["channels", str(config.coupling), config.form]
    return ", ".join(words)


def scored_units(config: PruneConfig) -> str:
    """What a run scores and how, in a few words."""
    channels = f"channels, {config.coupling}"
    return f"{config.criterion}, {channels if config.granularity == 'channel' else 'weights'}"


def level_line(level: Level, levels: int) -> str:
    """How a level of so many went."""
    budget = ""
    if level.budget_target is not None and level.budget_achieved is not None:
        budget = f"budget {level.budget_target:.4f}, achieved {level.budget_achieved:.4f}, "
    channels = "" if level.channels_left is None else f"channels left {level.channels_left:.4f}, "
    return (
        f"level {level.level}/{levels}: {budget}{channels}sparsity {level.sparsity:.4f}, test "
        f"{level.test_before:.4f} -> {level.test_after:.4f}, train "
        f"{level.train_before:.4f} -> {level.train_after:.4f}"
    )


def notes(units: Units) -> list[str]:
    """What of the unpruned model is not pruned, and which channels cannot be removed, and why."""
    total, rest = sum(units.sizes.values()), Counter[str]()
    for name in [name for name in units.sizes if name not in units.prunable]:
        layer, _, parameter = name.rpartition(".")
        kind = type(units.model.get_submodule(layer)).__name__
        rest[f"biases of {kind}" if parameter == "bias" else kind] += units.sizes[name]
    kinds = rest.most_common()
    if len(kinds) > _SHOWN + 1:
        others = f"{len(kinds) - _SHOWN} other kinds"
        kinds[_SHOWN:] = [(others, sum(params for _, params in kinds[_SHOWN:]))]
    shown = ", ".join(f"{kind} {100 * params / total:.3g} %" for kind, params in kinds)
    share = f"not pruned: {100 * rest.total() / total:.3g} % of the parameters"
    layers = defaultdict[str, list[str]](list)
    for name, reason in units.left_out.items():
        layers[reason].append(name)
    kept = "; ".join(
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''} ({reason})"
        for reason, names in sorted(layers.items(), key=lambda item: -len(item[1]))
    )
    unremovable = [f"channels cannot be removed from {kept}"] if kept else []
    return [f"{share}: {shown}" if shown else share, *unremovable]


def warnings(
    config: PruneConfig, units: Units, level: Level, layers: Sequence[Layer]
) -> Iterator[str]:
    """What a person should know of a level: layers that it emptied, and where it fell short."""
    rows = [row for row in layers if row.layer in units.prunable and "weight" in row.layer]
    if emptied := [row.layer for row in rows if row.zeros == row.params]:
        more = f" and {len(emptied) - _SHOWN} more" if len(emptied) > _SHOWN else ""
        instead = "" if config.scope == "layer" else ", or pass scope=layer or max_layer_sparsity"
        yield f"nothing is left of {', '.join(emptied[:_SHOWN])}{more}: exclude them{instead}"
    yield from _off_budget(config, level)
    shares = {} if config.budget else units.pruned_shares()
    for kind, pruned in shares.items():
        if abs(pruned - level.target_sparsity) > _SHORTFALL:
            asked = f"asked to remove {level.target_sparsity:.4f} of {kind}"
            yield f"{asked}, removed {pruned:.4f}: {_why_short(config)}"
    remaining = units.masks.total - units.masks.kept
    if config.form == "compact" and remaining:
        yield (
            f"{remaining} of the pruned filters cannot be removed from the model: they stay in it "
            "as zeros"
        )


def _off_budget(config: PruneConfig, level: Level) -> Iterator[str]:
    """Where a level costs more or less than its budget says, and why."""
    budget, target, achieved = config.cost_budget, level.budget_target, level.budget_achieved
    if budget is None or target is None or achieved is None:
        return
    if abs(achieved - target) > MET * target:
        what = f"asked to leave {target:.4f} of the {CURRENCIES[budget.currency].of}"
        why = "two timings agree no better" if budget.measured else _why_short(config)
        yield f"{what}, left {achieved:.4f}: {why}"


def _why_short(config: PruneConfig) -> str:
    if config.pattern is not None:
        return "a whole number of each block of inputs, and nothing of what has no whole block"
    limit = f", and no layer further than max_layer_sparsity={config.max_layer_sparsity:g}"
    return _rounding(config) + (limit if config.max_layer_sparsity < 1 else "")


def _rounding(config: PruneConfig) -> str:
    if config.granularity == "weight":
        return "whole weights only in every layer"
    if config.coupling == "group":
        return "whole units only, and one is left in every group"
    if config.form == "compact":
        return "a filter goes with all that are tied to it"
    return "whole filters only"


def summary(
    stage: str,
    config: PruneConfig,
    data: str,
    units: Units,
    levels: Sequence[Level],
    layers: Sequence[Layer],
) -> str:
    """The text on a pruning run's page, in Markdown.

    `data` is the data set's name as people know it, `layers` are those of the last level.
    """
    first, last = levels[0], levels[-1]
    bold = [f"**{text[0].upper()}{text[1:]}**" for text in warnings(config, units, last, layers)]
    return "\n\n".join([
        f"**{config.model}** on **{data}**: `{stage}`, {method(config)}, seed {config.seed}.",
        f"{100 * last.params_left:.3g} % of the parameters left: test accuracy "
        f"{first.test_after:.4f} -> {last.test_after:.4f} after fine-tuning.",
        *bold,
        to_markdown(levels),
        *(f"{text[0].upper()}{text[1:]}." for text in notes(units)),
        "Sparsity is zeros / prunable parameters; MACs left counts weights that are not zero, "
        "MACs compact what a dense kernel does in the compact form.",
    ])  # fmt: skip
