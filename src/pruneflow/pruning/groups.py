"""Groups: units (filters, neurons, heads) that live and die together, and what a unit owns.

Pure data and arithmetic: `tracing` finds the groups of a model, selection chooses units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pruneflow.pruning.masks import Masks

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
FLOOR = 1  # units that every group keeps


@dataclass(frozen=True, eq=False)
class Tie:
    """The channels of one layer, on one side, that each unit of a group owns."""

    layer: str  # a convolution, linear layer or batch normalisation
    # `out` (rows of the weight, bias, normalisation), `in` (columns of the weight), or `filter`
    # (rows of the weight and nothing else, as `ln_structured` prunes)
    side: str
    index: Tensor  # channel numbers, (units, channels of a unit)


@dataclass(frozen=True, eq=False)
class Group:
    """Units that are alike: the same layers make them and read them."""

    name: str  # of the first layer that makes them; of the attention, for heads
    target: str  # a name in TARGETS
    ties: tuple[Tie, ...]  # with every layer that changes when a unit is removed, in model order

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.ties[0].index)

    def makers(self, model: nn.Module) -> dict[str, Tensor]:
        """The convolutions and linear layers that make the units -> rows, (units, rows of one)."""
        kinds = (*CONVOLUTIONS, nn.Linear)
        return {
            tie.layer: tie.index
            for tie in self.ties
            if tie.side != "in" and isinstance(model.get_submodule(tie.layer), kinds)
        }


def entries(model: nn.Module, tie: Tie) -> dict[str, int]:
    """The parameters that a tie cuts -> the dimension in which it does."""
    layer = model.get_submodule(tie.layer)
    if tie.side == "in":
        # the columns of a grouped convolution are numbered within a group, which goes as a whole
        return {} if getattr(layer, "groups", 1) > 1 else {f"{tie.layer}.weight": 1}
    names = ["weight"] if tie.side == "filter" else ["weight", "bias"]
    return {f"{tie.layer}.{name}": 0 for name in names if getattr(layer, name, None) is not None}


def keep_all(groups: Iterable[Group]) -> Masks:
    """Masks over units that prune none; a mask a group, of shape (units,)."""
    return Masks.keep_all({group.name: torch.empty(group.units) for group in groups})


def expand(model: nn.Module, groups: Sequence[Group], kept: Mapping[str, Tensor]) -> Masks:
    """Masks over parameters: an entry is kept if every unit that owns it is.

    `kept`: group name -> boolean (units,), True = kept.
    """
    names = {name for group in groups for tie in group.ties for name in entries(model, tie)}
    parameters = {name: p for name, p in model.named_parameters() if name in names}
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in parameters.items()}
    for group in groups:
        for tie in group.ties:
            gone = tie.index[~kept[group.name]].flatten()
            for name, dim in entries(model, tie).items():
                masks[name].index_fill_(dim, gone.to(masks[name].device), False)
    return Masks(parameters, masks)


def kept_entries(
    model: nn.Module, groups: Iterable[Group], kept: Mapping[str, Tensor]
) -> dict[str, int]:
    """Parameter -> how many entries `expand` keeps of it, of those that groups own entries of."""
    stay: dict[tuple[str, int], Tensor] = {}
    for group in groups:
        for tie in group.ties:
            gone = tie.index[~kept[group.name].cpu()].flatten()
            for name, dim in entries(model, tie).items():
                size = model.get_parameter(name).shape[dim]
                stay.setdefault((name, dim), torch.ones(size, dtype=torch.bool))[gone] = False
    counts: dict[str, int] = {}
    for (name, dim), mask in stay.items():  # rows and columns that stay, times each other
        parameter = model.get_parameter(name)
        before = counts.get(name, parameter.numel())
        counts[name] = before // parameter.shape[dim] * int(mask.count_nonzero())
    return counts


def kept_by(model: nn.Module, group: Group, masks: Mapping[str, Tensor]) -> Tensor:
    """Which units masks over parameters keep, (units,): what `expand` does backwards.

    A parameter without a mask keeps all.
    """
    layer, rows = next(iter(group.makers(model).items()))
    if (mask := masks.get(f"{layer}.weight")) is None:
        return torch.ones(group.units, dtype=torch.bool)
    return mask.flatten(1).any(1).cpu()[rows].any(1)


@dataclass(frozen=True, eq=False)
class Member:
    """A weight that units of a group own entries of."""

    weight: str  # name of the parameter
    dim: int  # of it, along which the channels lie
    index: Tensor  # channel numbers, (units, channels of a unit)
    normalises: bool  # the weight of a BatchNorm

    def of(self, tensor: Tensor) -> Tensor:
        """What each unit has of a tensor of the weight's shape: (units, entries of one)."""
        return tensor.transpose(0, self.dim)[self.index.to(tensor.device)].flatten(1)


def members(model: nn.Module, group: Group) -> list[Member]:
    """The weights that change when a unit of the group is removed.

    They are those of the layers that make it, normalise it, and read it.
    """
    return [
        Member(name, dim, tie.index, isinstance(model.get_submodule(tie.layer), BATCH_NORMS))
        for tie in group.ties
        for name, dim in entries(model, tie).items()
        if name == f"{tie.layer}.weight"
    ]


def relative(scores: Tensor, kept: Tensor) -> Tensor:
    """Scores (units,) by their mean over the kept units, float64: so that others can be added."""
    scores = scores.to(torch.float64)
    mean = scores[kept].abs().mean()
    return scores / mean if mean > 0 else scores


def filters(model: nn.Module, *, outputs: Sequence[str]) -> list[Group]:
    """Every Conv2d by itself, weight only: the units of `torch.nn.utils.prune.ln_structured`.

    The layers that make the model's outputs are left out; of layers that share a weight, all but
    the first, whose filters are theirs too.
    """
    weights = {name for name, _ in model.named_parameters()}  # names a shared one once
    return [
        Group(name, "conv", (Tie(name, "filter", torch.arange(conv.out_channels)[:, None]),))
        for name, conv in model.named_modules()
        if isinstance(conv, nn.Conv2d) and name not in outputs and f"{name}.weight" in weights
    ]


def removed(groups: Iterable[Group], kept: Mapping[str, Tensor]) -> dict[tuple[str, str], Tensor]:
    """The channels that go with the units that are not kept: (layer, side) -> their numbers."""
    gone: dict[tuple[str, str], list[Tensor]] = {}
    for group in groups:
        if group.name in kept:
            for tie in group.ties:
                channels = tie.index[~kept[group.name].cpu()].flatten()
                gone.setdefault((tie.layer, tie.side), []).append(channels)
    return {key: torch.cat(channels).sort().values for key, channels in gone.items()}


def without(groups: Sequence[Group], kept: Mapping[str, Tensor]) -> list[Group]:
    """All groups of the smaller model that compaction makes: channels numbered anew.

    A group that is not in `kept` stays whole.
    """
    gone = removed(groups, kept)
    nothing = torch.zeros(0, dtype=torch.int64)
    smaller = []
    for group in groups:
        stays = kept.get(group.name, torch.ones(group.units, dtype=torch.bool)).cpu()
        indices = [tie.index[stays] for tie in group.ties]
        ties = tuple(
            Tie(
                tie.layer,
                tie.side,
                index - torch.searchsorted(gone.get((tie.layer, tie.side), nothing), index),
            )
            for tie, index in zip(group.ties, indices, strict=True)
        )
        smaller.append(replace(group, ties=ties))
    return smaller
