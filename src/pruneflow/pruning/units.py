"""Units: what can be pruned of a model, and what is left of it.

A unit is pruned as a whole: a single weight (`Weights`), or a channel with everything that makes
it (`Channels`). Either kind gives criteria the values they see, takes masks over units, sets to
zero what they prune, can say and build the compact form, and is restored from a checkpoint.
"""

from __future__ import annotations

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pruneflow.errors import InputError
from pruneflow.pruning import compaction, cost, groups
from pruneflow.pruning.compaction import Found
from pruneflow.pruning.criteria import Criterion
from pruneflow.pruning.groups import Group
from pruneflow.pruning.keeper import Keeper
from pruneflow.pruning.masks import Masks
from pruneflow.pruning.selection import Scores, prunable_parameters
from pruneflow.workloads import models

Forward: TypeAlias = Callable[[nn.Module], Tensor]  # logits of a few samples by a model


class Units(ABC):
    """The prunable units of a model.

    Attributes:
        model: as it is now: what is pruned is zero in it, or physically gone.
        masks: boolean by name, True = kept, an entry a unit. Entries are lost by `apply` and by
            nothing ever gained.
        sizes: entries of every parameter of the unpruned model, by name.
        prunable: names of the parameters that units own entries of.
        existing: group -> boolean (units of the unpruned model,), False = physically gone.
        left_out: layer -> why its channels cannot be removed.
        conv_params: parameters of convolutions that masks keep; physical removal takes more.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Iterable[str],
        masks: Masks,
        removable: Callable[[], list[Group]],
    ) -> None:
        self.model = model
        self.masks = masks
        self.sizes = {name: p.numel() for name, p in model.named_parameters()}
        self.prunable = frozenset(parameters)
        self.existing: dict[str, Tensor] = {}
        self.left_out: Mapping[str, str] = {}
        self.conv_params = cost.conv_params(model)
        self._removable = removable

    @abstractmethod
    def pools(self) -> list[list[str]]:
        """Names that compete with each other in scope `global`; each pool loses the fraction."""

    @abstractmethod
    def scores(self, criterion: Criterion, *seed: object) -> Callable[[str], Scores]:
        """What gives a criterion's scores of the units of a name; the same at every call."""

    @abstractmethod
    def parameter_masks(self) -> Masks:
        """Masks over the entries of parameters."""

    @abstractmethod
    def pruned_shares(self) -> dict[str, float]:
        """Kind of unit -> fraction of them that is pruned."""

    @property
    def channels_left(self) -> float | None:
        """Fraction of the prunable channels that is kept; None of single weights."""
        return None

    @abstractmethod
    def in_compact(self) -> dict[str, Tensor]:
        """Which units the compact form has: group -> boolean (units,); a group not there, all."""

    @abstractmethod
    def _of_parameters(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Masks over units from those over parameters; a parameter without one keeps all."""

    def apply(self, masks: Mapping[str, Tensor]) -> None:
        """Prune what masks do not keep: it is zero from now on, with all pruned before.

        Args:
            masks: of the names and shapes of `masks`.
        """
        for name, mask in Masks(self.masks, masks).items():
            self.masks[name].logical_and_(mask)
        of_parameters = self.parameter_masks()
        of_parameters.apply(self.model)
        self.conv_params = cost.conv_params(self.model, of_parameters)

    def keeper(self) -> Keeper:
        """What keeps pruned entries at zero while the model is trained."""
        return Keeper(self.model, self.parameter_masks())

    def compact(self) -> tuple[nn.Module, dict[str, Tensor]]:
        """The compact form as a copy, where anything can be removed, and which units it has."""
        kept = self.in_compact()
        return (self._without(kept) if kept else self.model), kept

    def remove(self) -> None:
        """Make `model` the compact form: what is pruned and can be removed is physically gone."""
        self._shrink(self.in_compact())

    def restore(
        self,
        structure: Mapping[str, Any],
        state: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
    ) -> None:
        """Bring unpruned units to where a checkpoint was saved: sizes, weights and masks.

        Raises:
            RuntimeError: tensors that do not fit.
        """
        if structure["sizes"] != compaction.structure(self.model):
            self._shrink(from_text(structure["units"]))
        models.load_state(self.model, state)
        self.apply(self._of_parameters(masks))

    def _shrink(self, kept: Mapping[str, Tensor]) -> None:
        raise ValueError("single weights cannot be removed")

    def _without(self, kept: Mapping[str, Tensor]) -> nn.Module:
        """A smaller copy of the model, in the memory order that its convolutions like."""
        smaller = compaction.compact(self.model, self._removable(), kept)
        return smaller.to(memory_format=torch.channels_last)


class Weights(Units):
    """Every entry of every prunable parameter by itself (unstructured pruning)."""

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        removable: Callable[[], list[Group]],
        forward: Forward,
    ) -> None:
        super().__init__(model, parameters, Masks.keep_all(parameters), removable)
        self._parameters = parameters
        self._forward = forward

    def pools(self) -> list[list[str]]:
        """All weights compete."""
        return [list(self._parameters)]

    def scores(self, criterion: Criterion, *seed: object) -> Callable[[str], Scores]:
        """Scores of a parameter's entries, in the order of its shape, a piece at a time."""

        def scores(name: str, entries: slice) -> Tensor:
            weight = self._parameters[name].detach()
            generator = _generator(weight, *seed, name, entries.start, entries.step)
            return criterion(_entries(weight, entries)[:, None], generator)

        return lambda name: functools.partial(scores, name)

    def parameter_masks(self) -> Masks:
        """The masks themselves."""
        return self.masks

    def pruned_shares(self) -> dict[str, float]:
        """Fraction of the prunable weights that is pruned."""
        return {"weights": self.masks.sparsity}

    def in_compact(self) -> dict[str, Tensor]:
        """Without what zeros have emptied, which changes no output."""
        if not compaction.has_empty_channels(self.model):
            return {}
        kept = compaction.emptied(self.model, self._removable(), self._forward)
        return {name: units for name, units in kept.items() if not units.all()}

    def _of_parameters(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: masks.get(name, kept) for name, kept in self.masks.items()}


class Channels(Units):
    """Units of groups of channels (structured pruning).

    Args:
        model: the model.
        chosen: groups that may be pruned.
        removable: groups that can be removed from the model.
        left_out: layer -> why its channels cannot be.
        head: name of the layer that makes the logits.
        coupled: scores stand beside other groups' and no group is emptied; otherwise every group
            is a Conv2d's filters, and pruned as `torch.nn.utils.prune.ln_structured` would do it.
    """

    def __init__(
        self,
        model: nn.Module,
        chosen: Iterable[Group],
        removable: list[Group],
        left_out: Mapping[str, str],
        *,
        head: str,
        coupled: bool,
    ) -> None:
        self.groups = {group.name: group for group in chosen}
        names = groups.parameters(model, self.groups.values())
        masks = groups.keep_all(self.groups.values())
        super().__init__(model, names, masks, lambda: removable)
        self.existing = dict(groups.keep_all(removable))
        self.left_out = left_out
        self._head = head
        self._coupled = coupled
        self._totals = self._kept()

    def pools(self) -> list[list[str]]:
        """Units of one target compete: a head is no match for a hidden unit.

        Norms over many weights hardly differ, those over few do: among all, heads would never go.
        """
        targets = dict.fromkeys(group.target for group in self.groups.values())
        return [[n for n, g in self.groups.items() if g.target == target] for target in targets]

    def scores(self, criterion: Criterion, *seed: object) -> Callable[[str], Scores]:
        """Scores of a group's units, from the weights that make them."""

        def scores(name: str) -> Scores:
            values = groups.values(self.model, self.groups[name])
            units = criterion(values, _generator(values, *seed, name)).cpu()
            units = groups.compete(units, self.masks[name]) if self._coupled else units
            return units.__getitem__

        return scores

    def parameter_masks(self) -> Masks:
        """Masks over every parameter that the groups' units own entries of."""
        return groups.expand(self.model, self.groups.values(), self.masks)

    def pruned_shares(self) -> dict[str, float]:
        """Target -> fraction of its units that is pruned."""
        return {target: 1 - kept / self._totals[target] for target, kept in self._kept().items()}

    @property
    def channels_left(self) -> float:
        """Fraction of the prunable channels that is kept."""
        return sum(self._kept().values()) / sum(self._totals.values())

    def _kept(self) -> dict[str, int]:
        """Target -> number of its units that are kept."""
        kept: dict[str, int] = {}
        for name, group in self.groups.items():
            kept[group.target] = kept.get(group.target, 0) + int(self.masks[name].count_nonzero())
        return kept

    def in_compact(self) -> dict[str, Tensor]:
        """Without the pruned units; of independent filters, without the union over tied layers."""
        if self._coupled:
            return dict(self.masks)
        return compaction.without_empty_filters(self.model, self._removable())

    def _shrink(self, kept: Mapping[str, Tensor]) -> None:
        """Remove units from the model, and number those of the smaller model anew."""
        before, masks = self._removable(), self.masks
        self.model = self._without(kept)
        after = groups.without(before, kept)
        self._removable = lambda: after
        candidates = after if self._coupled else self._filters()
        self.groups = {group.name: group for group in candidates if group.name in self.groups}
        self.masks = groups.keep_all(self.groups.values())
        if not self._coupled:  # what is masked and could not be removed stays so
            gone = groups.removed(before, kept)
            for name, mask in self.masks.items():
                stays = torch.ones(len(masks[name]), dtype=torch.bool)
                stays[gone.get((name, "out"), [])] = False
                mask.copy_(masks[name][stays])
        for name, mask in kept.items():
            self.existing[name][self.existing[name].clone()] = mask.cpu()

    def _filters(self) -> list[Group]:
        return groups.filters(self.model, outputs=[self._head])

    def _of_parameters(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: groups.kept_by(self.model, group, masks) for name, group in self.groups.items()
        }


def find_units(
    model: nn.Module,
    forward: Forward,
    *,
    name: str,
    head: str,
    granularity: str,
    coupling: str | None,
    targets: tuple[str, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    biases: bool,
    products: Iterable[str],
) -> Units:
    """The units of an unpruned model that may be pruned.

    Args:
        model, forward, head: as for `compaction.find_groups`; `head` makes the outputs.
        name: of the model, for messages.
        granularity, coupling, targets, include, exclude: by their names in a configuration.
        biases, products: of weights, as for `prunable_parameters`.

    Raises:
        InputError: patterns, targets or a model that leave nothing to prune.
    """

    @functools.cache
    def traced() -> Found:
        return compaction.find_groups(model, forward, outputs=[head])

    if granularity == "weight":
        parameters = prunable_parameters(
            model, include=include, exclude=exclude, biases=biases, products=set(products)
        )
        return Weights(model, parameters, lambda: traced().groups, forward)
    independent = coupling == "independent"
    candidates = groups.filters(model, outputs=[head]) if independent else traced().groups
    if not candidates and independent:
        raise InputError(
            f"coupling=independent prunes Conv2d filters, and {name} has none to prune: pass "
            "coupling=group"
        )
    if not candidates:
        reasons = "; ".join(sorted(set(traced().left_out.values()))) or "it has no such layers"
        raise InputError(f"no channels can be removed from {name}: {reasons}")
    chosen = groups.choose(model, candidates, targets=targets, include=include, exclude=exclude)
    coupled, left_out = not independent, traced().left_out
    return Channels(model, chosen, traced().groups, left_out, head=head, coupled=coupled)


def as_text(units: Mapping[str, Tensor]) -> dict[str, str]:
    """Which units are kept, by group, as `structure.json` has them: "1101", a digit a unit."""
    return {name: "".join(map(str, mask.int().tolist())) for name, mask in units.items()}


def from_text(units: Mapping[str, str]) -> dict[str, Tensor]:
    """What `as_text` wrote."""
    return {name: torch.tensor([digit == "1" for digit in text]) for name, text in units.items()}


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


def _generator(like: Tensor, *parts: object) -> torch.Generator:
    """A generator seeded by the run, the level and the name, so that scores can be drawn again."""
    digest = hashlib.sha256(repr(parts).encode()).digest()[:8]
    return torch.Generator(like.device).manual_seed(int.from_bytes(digest, "big") >> 1)
