"""Units: what can be pruned of a model, and what is left of it.

A unit is pruned as a whole: a single weight (`Weights`), or a channel with everything that makes
it (`Channels`). Either kind gives criteria the statistics they need, takes masks over units, sets
to zero what they prune, can say and build the compact form, and is restored from a checkpoint.
"""

from __future__ import annotations

import functools
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruneflow.errors import InputError
from pruneflow.pruning import compaction, cost, groups, tracing
from pruneflow.pruning.compaction import Forward
from pruneflow.pruning.criteria import CRITERIA, GENERATOR, OF_OUTPUTS, SCALE, Criterion, needs
from pruneflow.pruning.groups import Group
from pruneflow.pruning.keeper import Keeper
from pruneflow.pruning.masks import Masks
from pruneflow.pruning.prunable import prunable_groups, prunable_parameters
from pruneflow.pruning.selection import Scores
from pruneflow.pruning.statistics import NONE, Statistics, of_weight
from pruneflow.workloads import models


class Units(ABC):
    """The prunable units of a model, as it is now: what is pruned is zero in it, or gone."""

    def __init__(
        self, model: nn.Module, masks: Masks, removable: Callable[[], list[Group]]
    ) -> None:
        self.model = model
        # boolean by name, an entry a unit; entries are lost by `apply` and by nothing ever gained
        self.masks = masks
        self._numbers = {name: mask.numel() for name, mask in masks.items()}
        # of the unpruned model: entries of every parameter, names of those that units own entries
        # of, and group -> boolean (units,), False = physically gone
        self.sizes = {name: p.numel() for name, p in model.named_parameters()}
        self.prunable = frozenset(self.parameter_masks())
        self.existing: dict[str, Tensor] = {}
        self.left_out: Mapping[str, str] = {}  # layer -> why its channels cannot be removed
        # parameters of convolutions that masks keep; physical removal takes more
        self.conv_params = cost.conv_params(model)
        self._removable = removable

    @abstractmethod
    def pools(self) -> list[list[str]]:
        """Names that compete with each other in scope `global`; each pool loses the fraction."""

    @abstractmethod
    def scores(
        self, criterion: Criterion, *seed: object, statistics: Statistics = NONE
    ) -> Callable[[str], Scores]:
        """What gives a criterion's scores of the units of a name; the same at every call.

        Raises:
            InputError: units that lack what the criterion sees.
        """

    def least(self, share: float) -> dict[str, int]:
        """Units that each name keeps in any case: this share of all that it had, rounded up."""
        return {name: math.ceil(share * n) for name, n in self._numbers.items()}

    def check(self, name: str) -> None:  # noqa: B027
        """See that a criterion finds what it needs in all units; an InputError if it does not."""

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
    def _over_units(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Masks over units from those over parameters; a parameter without one keeps all."""

    def apply(self, masks: Mapping[str, Tensor]) -> None:
        """Prune what masks (of the names and shapes of `masks`) do not keep, from now on."""
        for name, mask in Masks(self.masks, masks).items():
            self.masks[name].logical_and_(mask)
        over_parameters = self.parameter_masks()
        over_parameters.apply(self.model)
        self.conv_params = cost.conv_params(self.model, over_parameters)

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

    def structure(self, kept: Mapping[str, Tensor]) -> dict[str, object]:
        """What `structure.json` says of the model's shapes, and of the compact form's units."""
        return {"sizes": compaction.structure(self.model), "units": as_text(kept)}

    def restore(
        self,
        structure: Mapping[str, Any],
        state: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
    ) -> None:
        """Bring unpruned units to where a checkpoint was saved: sizes, weights and masks."""
        if structure["sizes"] != compaction.structure(self.model):
            self._shrink(from_text(structure["units"]))
        models.load_state(self.model, state)
        self.apply(self._over_units(masks))

    def _shrink(self, kept: Mapping[str, Tensor]) -> None:
        raise ValueError("single weights cannot be removed")

    def _without(self, kept: Mapping[str, Tensor]) -> nn.Module:
        """A smaller copy of the model, in the memory order that its convolutions like."""
        return models.channels_last(compaction.compact(self.model, self._removable(), kept))


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
            return _score(criterion, some, *seed, name, entries.start, entries.step)

        def compared(name: str) -> Scores:
            every = {need: of.reshape(-1, 1) for need, of in seen(name).items()}
            return _score(criterion, every, *seed, name).__getitem__

        if "layer_values" in needs(criterion):
            return compared
        return lambda name: functools.partial(scores, name)

    def parameter_masks(self) -> Masks:
        return self.masks

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


class Channels(Units):
    """Units of the chosen groups of channels (structured pruning).

    Coupled, scores stand beside other groups' and no group is emptied; otherwise every group is a
    Conv2d's filters, and pruned as `torch.nn.utils.prune.ln_structured` would do it.
    """

    def __init__(
        self,
        model: nn.Module,
        chosen: Sequence[Group],
        removable: list[Group],
        left_out: Mapping[str, str],
        *,
        head: str,
        coupled: bool,
    ) -> None:
        self.groups = {group.name: group for group in chosen}
        super().__init__(model, groups.keep_all(chosen), lambda: removable)
        self.existing = dict(groups.keep_all(removable))
        self.left_out = left_out
        self._head = head
        self._coupled = coupled
        self._totals = self._kept()

    def least(self, share: float) -> dict[str, int]:
        least = super().least(share)
        return {n: max(groups.FLOOR, k) for n, k in least.items()} if self._coupled else least

    def pools(self) -> list[list[str]]:
        """Units of one target compete: a head is no match for a hidden unit.

        Norms over many weights hardly differ, those over few do: among all, heads would never go.
        """
        targets = dict.fromkeys(group.target for group in self.groups.values())
        return [[n for n, g in self.groups.items() if g.target == target] for target in targets]

    def check(self, name: str) -> None:
        for group in self.groups.values():
            for need in needs(CRITERIA[name]):
                lacks = ""
                if need == SCALE and groups.scales(self.model, group) is None:
                    lacks = "a BatchNorm"
                elif need in OF_OUTPUTS and not groups.readers(self.model, group):
                    lacks = "a layer that reads each"
                if lacks:
                    raise InputError(
                        f"criterion={name} needs {lacks}, and the channels of {group.name} have "
                        f"none: pass another criterion, or exclude={group.name}"
                    )

    def scores(
        self, criterion: Criterion, *seed: object, statistics: Statistics = NONE
    ) -> Callable[[str], Scores]:
        parameters = {n: p.detach() for n, p in self.model.named_parameters()}

        def seen(need: str, group: Group) -> Tensor:
            if need == SCALE:
                scales = groups.scales(self.model, group)
                assert scales is not None  # `check` has seen to it
                return scales
            if need in OF_OUTPUTS:
                readers = groups.readers(self.model, group)
                columns = [statistics.of_columns(need, n)[k] for n, k in readers.items()]
                return torch.cat(columns, dim=1).mean(1)
            weights = [f"{layer}.weight" for layer in group.makers(self.model)]
            tensors = {n: of_weight(need, n, parameters[n], statistics) for n in weights}
            return groups.gather(self.model, group, tensors)

        def scores(name: str) -> Scores:
            group = self.groups[name]
            every = {n: seen(n, group) for n in needs(criterion) if n != GENERATOR}
            units = _score(criterion, every, *seed, name).cpu()
            units = groups.compete(units, self.masks[name]) if self._coupled else units
            return units.__getitem__

        return scores

    def parameter_masks(self) -> Masks:
        return groups.expand(self.model, list(self.groups.values()), self.masks)

    def pruned_shares(self) -> dict[str, float]:
        return {target: 1 - kept / self._totals[target] for target, kept in self._kept().items()}

    @property
    def channels_left(self) -> float:
        return sum(self._kept().values()) / sum(self._totals.values())

    def _kept(self) -> dict[str, int]:
        """Target -> number of its units that are kept."""
        kept = dict.fromkeys((group.target for group in self.groups.values()), 0)
        for name, group in self.groups.items():
            kept[group.target] += int(self.masks[name].count_nonzero())
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
        candidates = after if self._coupled else groups.filters(self.model, outputs=[self._head])
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

    def _over_units(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: groups.kept_by(self.model, group, masks) for n, group in self.groups.items()}


def find_units(
    model: nn.Module,
    forward: Forward,
    *,
    head: str,
    granularity: str,
    coupling: str | None,
    targets: Sequence[str],
    include: Sequence[str],
    exclude: Sequence[str],
    biases: bool,
    products: Collection[str],
) -> Units:
    """The units of an unpruned model that may be pruned, by the names of a configuration.

    `head` makes the outputs; `biases` and `products` are as for `prunable_parameters`.

    Raises:
        InputError: patterns, targets or a model that leave nothing to prune.
    """

    @functools.cache
    def traced() -> tracing.Removable:
        return tracing.find_groups(model, forward, outputs=[head])

    if granularity == "weight":
        parameters = prunable_parameters(
            model, include=include, exclude=exclude, biases=biases, products=products
        )
        return Weights(model, parameters, lambda: traced().groups, forward)
    coupled = coupling != "independent"
    candidates = traced().groups if coupled else groups.filters(model, outputs=[head])
    if not candidates and coupled:
        reasons = "; ".join(sorted(set(traced().left_out.values()))) or "it has no such layers"
        raise InputError(f"no channels can be removed from this model: {reasons}")
    if not candidates:
        raise InputError(
            "coupling=independent prunes Conv2d filters, and this model has none to prune: pass "
            "coupling=group"
        )
    chosen = prunable_groups(model, candidates, targets=targets, include=include, exclude=exclude)
    found = traced()
    return Channels(model, chosen, found.groups, found.left_out, head=head, coupled=coupled)


def as_text(units: Mapping[str, Tensor]) -> dict[str, str]:
    """Which units are kept, by group, as `structure.json` has them: "1101", a digit a unit."""
    return {name: "".join(map(str, mask.int().tolist())) for name, mask in units.items()}


def from_text(units: Mapping[str, str]) -> dict[str, Tensor]:
    """What `as_text` wrote."""
    return {name: torch.tensor([digit == "1" for digit in text]) for name, text in units.items()}


def _score(criterion: Criterion, statistics: Mapping[str, Tensor], *seed: object) -> Tensor:
    """Scores of units by a criterion, from its statistics and random numbers of this seed."""
    if GENERATOR not in needs(criterion):
        return criterion(**statistics)
    # seeded by the run, the level and the name, so that scores can be drawn again
    digest = hashlib.sha256(repr(seed).encode()).digest()[:8]
    generator = torch.Generator(next(iter(statistics.values())).device)
    generator.manual_seed(int.from_bytes(digest, "big") >> 1)
    return criterion(**statistics, generator=generator)


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
