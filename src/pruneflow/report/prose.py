"""Prose: what people are told of a pruning run, at the terminal and on its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from pruneflow.config import PruneConfig
from pruneflow.pruning.units import Units
from pruneflow.tracking.levels import Layer, Level, to_markdown

# A shortfall worth a sentence: further from the target than rounding to whole channels explains.
_SHORTFALL = 0.005
_SHOWN = 5  # names in a list; of the others their number


def method(config: PruneConfig) -> str:
    """How a run prunes, in a few words."""
    words = [config.criterion, config.scope]
    if config.granularity == "channel":
        words += ["channels", str(config.coupling), config.form]
    return ", ".join(words)


def level_line(level: Level, levels: int) -> str:
    """How a level of so many went."""
    channels = "" if level.channels_left is None else f"channels left {level.channels_left:.4f}, "
    return (
        f"level {level.level}/{levels}: {channels}sparsity {level.sparsity:.4f}, test "
        f"{level.test_before:.4f} -> {level.test_after:.4f}, train "
        f"{level.train_before:.4f} -> {level.train_after:.4f}"
    )


def notes(units: Units) -> list[str]:
    """What of the unpruned model is not pruned, and which channels cannot be removed, and why."""
    return [_not_pruned(units), *([_left_out(units.left_out)] if units.left_out else [])]


def _not_pruned(units: Units) -> str:
    """What is not pruned, by kind of layer, with its share of the model's parameters."""
    rest: dict[str, int] = {}
    for name, params in units.sizes.items():
        if name not in units.prunable:
            kind = _kind(units.model, name)
            rest[kind] = rest.get(kind, 0) + params
    total = sum(units.sizes.values())
    kinds = sorted(rest.items(), key=lambda item: -item[1])
    shown = [f"{kind} {100 * params / total:.3g} %" for kind, params in kinds]
    if len(shown) > _SHOWN + 1:
        others = sum(params for _, params in kinds[_SHOWN:])
        shown[_SHOWN:] = [f"{len(kinds) - _SHOWN} other kinds {100 * others / total:.3g} %"]
    share = 100 * sum(rest.values()) / total
    return f"not pruned: {share:.3g} % of the parameters" + (f": {', '.join(shown)}" * bool(shown))


def _kind(model: nn.Module, name: str) -> str:
    """The kind of layer that a parameter is of."""
    layer, _, parameter = name.rpartition(".")
    kind = type(model.get_submodule(layer)).__name__
    return f"biases of {kind}" if parameter == "bias" else kind


def _left_out(reasons: Mapping[str, str]) -> str:
    """Why channels of layers cannot be removed, with the number of layers for each reason."""
    layers: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        layers.setdefault(reason, []).append(name)
    return "channels cannot be removed from " + "; ".join(
        f"{names[0]}" + f" and {len(names) - 1} more" * (len(names) > 1) + f" ({reason})"
        for reason, names in sorted(layers.items(), key=lambda item: -len(item[1]))
    )


def warnings(config: PruneConfig, units: Units, level: Level, layers: Sequence[Layer]) -> list[str]:
    """What a person should know of a level: emptied layers, and where it fell short.

    Args:
        config: of the run.
        units: as the level left them.
        level: as it was recorded.
        layers: those of this level.
    """
    sentences = []
    if emptied := _emptied(units, layers):
        instead = "" if config.scope == "layer" else ", or prune by scope=layer"
        sentences.append(f"nothing is left of {emptied}: exclude them{instead}")
    for kind, pruned in units.pruned_shares().items():
        if abs(pruned - level.target_sparsity) > _SHORTFALL:
            sentences.append(
                f"asked to remove {level.target_sparsity:.4f} of {kind}, removed "
                f"{pruned:.4f}: {_why_short(config)}"
            )
    remaining = units.masks.total - units.masks.kept
    if config.form == "compact" and remaining:
        sentences.append(
            f"{remaining} of the pruned filters cannot be removed from the model: they stay in it "
            "as zeros"
        )
    return sentences


def _why_short(config: PruneConfig) -> str:
    """Why a level may prune another share than it was asked to."""
    if config.granularity == "weight":
        return "whole weights only in every layer"
    if config.coupling == "group":
        return "whole units only, and one is left in every group"
    if config.form == "compact":
        return "a filter goes with all that are tied to it"
    return "whole filters only"


def _emptied(units: Units, layers: Sequence[Layer]) -> str:
    """The pruned weights of which nothing is left: no signal passes their layers."""
    rows = [row for row in layers if row.layer in units.prunable and "weight" in row.layer]
    names = [row.layer for row in rows if row.zeros == row.params]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def summary(
    stage: str,
    config: PruneConfig,
    data: str,
    units: Units,
    levels: Sequence[Level],
    layers: Sequence[Layer],
) -> str:
    """The text on a pruning run's page, in Markdown.

    Args:
        stage, config: of the run.
        data: the data set's name, as people know it.
        units: as the last level left them.
        levels: all of them.
        layers: those of the last level.
    """
    first, last = levels[0], levels[-1]
    bold = "".join(f"**{_sentence(text)}**\n\n" for text in warnings(config, units, last, layers))
    plain = "".join(f"{_sentence(text)}.\n\n" for text in notes(units))
    return (
        f"**{config.model}** on **{data}**: `{stage}`, {method(config)}, "
        f"seed {config.seed}.\n\n"
        f"{100 * last.params_left:.3g} % of the parameters left: test accuracy "
        f"{first.test_after:.4f} -> {last.test_after:.4f} after fine-tuning.\n\n"
        f"{bold}{to_markdown(levels)}\n\n{plain}"
        "Sparsity is zeros / prunable parameters; MACs left counts weights that are not zero, "
        "MACs compact what a dense kernel does in the compact form."
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"
