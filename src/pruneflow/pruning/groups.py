"""Groups: units (filters, neurons, heads) that live and die together, and what a unit owns.

Pure data and arithmetic: `compaction` finds the groups of a model, selection chooses units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruneflow.errors import InputError
from pruneflow.pruning import TARGETS, patterns
from pruneflow.pruning.masks import Masks

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
FLOOR = 1  # units that every group keeps


@dataclass(frozen=True, eq=False)
class Tie:
    """The channels of one layer, on one side, that each unit of a group owns.

    Attributes:
        layer: name of a convolution, linear layer or batch normalisation.
        side: `out` (rows of the weight, bias, normalisation), `in` (columns of the weight), or
            `filter` (rows of the weight and nothing else, as `ln_structured` prunes).
        index: channel numbers, shape (units, channels of a unit).
    """

    layer: str
    side: str
    index: Tensor


@dataclass(frozen=True, eq=False)
class Group:
    """Units that are alike: the same layers make them and read them.

    Attributes:
        name: of the first layer, in model order, that makes them; of the attention, for heads.
        target: `conv`, `linear`, `heads` or `ffn`.
        ties: every layer that has to change when a unit is removed.
    """

    name: str
    target: str
    ties: tuple[Tie, ...]

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.ties[0].index)

    def makers(self, model: nn.Module) -> list[str]:
        """Names of the convolutions and linear layers whose rows make the units."""
        kinds = (*CONVOLUTIONS, nn.Linear)
        ties = (tie for tie in self.ties if tie.side != "in")
        return [tie.layer for tie in ties if isinstance(model.get_submodule(tie.layer), kinds)]


def entries(model: nn.Module, tie: Tie) -> dict[str, tuple[int, Tensor]]:
    """Parameters that a tie cuts: name -> (dimension, channel numbers (units, k))."""
    layer = model.get_submodule(tie.layer)
    grouped = getattr(layer, "groups", 1) > 1
    if tie.side == "in":
        # the columns of a grouped convolution are numbered within a group, which goes as a whole
        return {} if grouped else {f"{tie.layer}.weight": (1, tie.index)}
    names = ["weight"] if tie.side == "filter" else ["weight", "bias"]
    return {
        f"{tie.layer}.{name}": (0, tie.index)
        for name in names
        if getattr(layer, name, None) is not None
    }


def parameters(model: nn.Module, groups: Iterable[Group]) -> dict[str, nn.Parameter]:
    """The parameters that the groups' units own entries of, in model order."""
    names = {name for group in groups for tie in group.ties for name in entries(model, tie)}
    return {name: p for name, p in model.named_parameters() if name in names}


def keep_all(groups: Iterable[Group]) -> Masks:
    """Masks over units that prune none; a mask a group, of shape (units,)."""
    return Masks.keep_all({group.name: torch.empty(group.units) for group in groups})


def expand(model: nn.Module, groups: Iterable[Group], kept: Mapping[str, Tensor]) -> Masks:
    """Masks over parameters: an entry is kept if every unit that owns it is.

    Args:
        model: the model the groups are of.
        groups: some of its groups.
        kept: group name -> boolean (units,), True = kept.
    """
    groups = list(groups)
    prunable = parameters(model, groups)
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in prunable.items()}
    for group in groups:
        gone = ~kept[group.name]
        if gone.any():
            for tie in group.ties:
                for name, (dim, index) in entries(model, tie).items():
                    channels = index[gone].flatten().to(masks[name].device)
                    masks[name].index_fill_(dim, channels, False)
    return Masks(prunable, masks)


def kept_by(model: nn.Module, group: Group, masks: Mapping[str, Tensor]) -> Tensor:
    """Which units masks over parameters keep, (units,): those that anything makes.

    What `expand` does backwards; a parameter without a mask keeps all.
    """
    maker = group.makers(model)[0]
    mask = masks.get(f"{maker}.weight")
    if mask is None:
        return torch.ones(group.units, dtype=torch.bool)
    index = next(tie.index for tie in group.ties if tie.layer == maker and tie.side != "in")
    return mask.flatten(1).any(1).cpu()[index].any(1)


def values(model: nn.Module, group: Group) -> Tensor:
    """The weights that make each unit: rows of every tied layer, shape (units, weights of one)."""
    rows = []
    for tie in group.ties:
        if tie.side != "in" and tie.layer in group.makers(model):
            weight = model.get_submodule(tie.layer).get_parameter("weight").detach()
            rows.append(weight[tie.index.to(weight.device)].flatten(1))
    return torch.cat(rows, dim=1)


def compete(scores: Tensor, kept: Tensor) -> Tensor:
    """Scores that can stand beside another group's: their mean over kept units is 1.

    The best `FLOOR` units get infinity, which selection never prunes.

    Args:
        scores: not negative, shape (units,).
        kept: boolean, shape (units,).
    """
    scores = scores.to(torch.float64)
    mean = scores[kept].mean()
    scaled = scores / mean if mean > 0 else scores
    best = torch.where(kept, scaled, -1.0).topk(min(FLOOR, len(scores))).indices
    return scaled.to(torch.float32).index_fill(0, best, torch.inf)


def filters(model: nn.Module, *, outputs: Sequence[str]) -> list[Group]:
    """Every Conv2d by itself, weight only: the units of `torch.nn.utils.prune.ln_structured`.

    Args:
        model: any module.
        outputs: layers whose outputs are the model's (the classifier); they are left out.
    """
    return [
        Group(name, "conv", (Tie(name, "filter", torch.arange(conv.out_channels)[:, None]),))
        for name, conv in model.named_modules()
        if isinstance(conv, nn.Conv2d) and name not in outputs
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


def without(groups: Iterable[Group], kept: Mapping[str, Tensor]) -> list[Group]:
    """The groups of the smaller model that compaction makes: channels numbered anew.

    Args:
        groups: all groups of the model.
        kept: group name -> boolean (units,), True = kept; a group that is not there stays whole.
    """
    groups = list(groups)
    gone = removed(groups, kept)

    def renumber(tie: Tie, mask: Tensor | None) -> Tie:
        index = tie.index if mask is None else tie.index[mask]
        before = gone.get((tie.layer, tie.side), torch.zeros(0, dtype=torch.int64))
        return Tie(tie.layer, tie.side, index - torch.searchsorted(before, index))

    return [
        Group(g.name, g.target, tuple(renumber(tie, kept.get(g.name)) for tie in g.ties))
        for g in groups
    ]


def choose(
    model: nn.Module,
    groups: Sequence[Group],
    *,
    targets: Sequence[str],
    include: Sequence[str],
    exclude: Sequence[str],
) -> list[Group]:
    """The groups that may be pruned.

    A pattern (`layer1.*`) is matched against the names of the layers that make a group's units,
    and the group's own; a group goes as a whole, with every layer that is tied to a matching one.

    Args:
        model: the model they are of.
        groups: those it has.
        targets: kinds of units; none means every kind there is.
        include, exclude: patterns; no `include` means all.

    Raises:
        InputError: a target the model has not, a pattern that matches nothing, nothing left.
    """
    there = [target for target in TARGETS if any(g.target == target for g in groups)]
    for target in targets:
        if target not in there:
            raise InputError(
                f"targets={target} is not in this model: what can be removed from it is "
                f"{', '.join(there) or 'nothing'}"
            )
    candidates = [group for group in groups if not targets or group.target in targets]

    chosen = patterns.choose(
        {group.name: (group.name, *group.makers(model)) for group in candidates},
        [group.name for group in candidates],
        include=include,
        exclude=exclude,
    )
    if not chosen:
        raise InputError("include, exclude and targets leave no channels to prune")
    return [group for group in candidates if group.name in chosen]
