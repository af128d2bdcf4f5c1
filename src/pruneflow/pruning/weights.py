"""Weights: the units of unstructured pruning."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pruneflow.pruning import compaction
from pruneflow.pruning.compaction import Forward
from pruneflow.pruning.cost import nonzeros
from pruneflow.pruning.criteria import GENERATOR, Criterion, needs
from pruneflow.pruning.groups import Group
from pruneflow.pruning.masks import Masks
from pruneflow.pruning.selection import Scores
from pruneflow.pruning.statistics import NONE, Statistics, input_axes, of_weight
from pruneflow.pruning.units import Units, score

# Their weights are (outputs, inputs, ...).
OUTPUTS_FIRST = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.MultiheadAttention)


class Weights(Units):
    """Every entry of every prunable parameter by itself (unstructured pruning)."""

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        removable: Callable[[], list[Group]],
        forward: Forward,
    ) -> None:
        super().__init__(model, Masks.keep_all(parameters), removable)
        self._forward = forward

    def pools(self) -> list[list[str]]:
        return [list(self.masks)]

    @functools.cached_property
    def input_axes(self) -> Mapping[str, int]:
        weights = [name for name, mask in self.masks.items() if mask.dim() > 1]
        layers = {name: self.model.get_submodule(name.rpartition(".")[0]) for name in weights}
        axes = {name: 1 for name in weights if isinstance(layers[name], OUTPUTS_FIRST)}
        if len(axes) < len(weights):  # what else multiplies may have it either way
            seen = input_axes(self.model, self._forward)
            axes |= {name: seen[name] for name in weights if name in seen}
        return axes

    def scores(
        self, criterion: Criterion, *seed: object, statistics: Statistics = NONE
    ) -> Callable[[str], Scores]:
        parameters = {n: p.detach() for n, p in self.model.named_parameters() if n in self.masks}

        @functools.cache
        def seen(name: str) -> dict[str, Tensor]:
            return {
                need: of_weight(need, name, parameters[name], statistics)
                for need in needs(criterion)
                if need != GENERATOR
            }

        def scores(name: str, entries: slice) -> Tensor:
            some = {need: _entries(of, entries)[:, None] for need, of in seen(name).items()}
            return score(criterion, some, *seed, name, entries.start, entries.step)

        def compared(name: str) -> Scores:
            every = {need: of.reshape(-1, 1) for need, of in seen(name).items()}
            return score(criterion, every, *seed, name).__getitem__

        if "layer_values" in needs(criterion):
            return compared
        return lambda name: functools.partial(scores, name)

    def layers(self) -> dict[str, list[str]]:
        layers: dict[str, list[str]] = {}
        for name in self.masks:
            layers.setdefault(name.rpartition(".")[0], []).append(name)
        return layers

    def over_parameters(self, masks: Mapping[str, Tensor]) -> Masks:
        return masks if isinstance(masks, Masks) else Masks(masks, masks)

    def _kept_entries(self, masks: Mapping[str, Tensor]) -> dict[str, int]:
        return {name: nonzeros(mask) for name, mask in masks.items()}

    def pruned_shares(self) -> dict[str, float]:
        return {"weights": self.masks.sparsity}

    def in_compact(self) -> dict[str, Tensor]:
        """Without what zeros have emptied, which changes no output."""
        if not compaction.has_empty_channels(self.model):
            return {}
        kept = compaction.emptied(self.model, self._removable(), self._forward)
        return {name: units for name, units in kept.items() if not units.all()}

    def _over_units(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: masks.get(name, kept) for name, kept in self.masks.items()}


def _entries(weight: Tensor, entries: slice) -> Tensor:
    """Entries of a weight in the order of its shape, whatever the order of its memory."""
    if weight.is_contiguous():
        return weight.view(-1)[entries]
    if entries.step is not None:  # few of many
        numbers = torch.arange(*entries.indices(weight.numel()), device=weight.device)
        return weight[torch.unravel_index(numbers, weight.shape)]
    row = weight[0].numel()
    first, last = entries.start // row, -(-entries.stop // row)  # these are copied
    return weight[first:last].reshape(-1)[entries.start - first * row : entries.stop - first * row]
