"""Units: what can be pruned of a model, and what is left of it.

A unit is pruned as a whole: a single weight (`Weights`), or a channel with everything that makes
it (`Channels`). Either kind gives criteria the statistics they need, takes masks over units, sets
to zero what they prune, can say and build the compact form, and is restored from a checkpoint.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pruneflow.pruning import compaction, cost
from pruneflow.pruning.criteria import GENERATOR, Criterion, needs
from pruneflow.pruning.groups import Group
from pruneflow.pruning.keeper import Keeper
from pruneflow.pruning.masks import Masks
from pruneflow.pruning.selection import Scores
from pruneflow.pruning.statistics import NONE, Statistics
from pruneflow.workloads import models


class Units(ABC):
    """The prunable units of a model, as it is now: what is pruned is zero in it, or gone."""

    def __init__(
        self, model: nn.Module, masks: Masks, removable: Callable[[], list[Group]]
    ) -> None:
        self.model = model
        # boolean by name, an entry a unit; entries are lost by `apply` and by nothing ever gained
        self.masks = masks
        # of the unpruned model: units of each name, entries of every parameter, names of those that
        # units own entries of, and group -> boolean (units,), False = physically gone
        self.numbers = {name: mask.numel() for name, mask in masks.items()}
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

    @property
    def input_axes(self) -> Mapping[str, int]:
        """Of single weights that multiply, by name: the axis along which their inputs lie."""
        return {}

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
        return {name: math.ceil(share * n) for name, n in self.numbers.items()}

    def check(self, name: str) -> None:  # noqa: B027
        """See that a criterion finds what it needs in all units; an InputError if it does not."""

    @abstractmethod
    def layers(self) -> dict[str, list[str]]:
        """Layer, or group of channels -> the names in `masks` that are of it, in model order."""

    @abstractmethod
    def over_parameters(self, masks: Mapping[str, Tensor]) -> Masks:
        """Masks over the entries of parameters from masks over units, of all or some names."""

    def parameter_masks(self) -> Masks:
        """Masks over the entries of parameters that say what is kept so far."""
        return self.over_parameters(self.masks)

    @abstractmethod
    def _kept_entries(self, masks: Mapping[str, Tensor]) -> dict[str, int]:
        """As `kept_entries`, of the parameters that units own entries of."""

    def kept_entries(self, masks: Mapping[str, Tensor]) -> dict[str, int]:
        """Parameter of the model, pruned or not -> how many of its entries masks over units keep.

        With `coupling=group` the compact form has just as many.
        """
        every = {name: p.numel() for name, p in self.model.named_parameters()}
        return every | self._kept_entries(masks)

    def fewest(self, share: float) -> Masks:
        """Masks that keep of each name the `least` of this share, whichever these are."""
        least, masks = self.least(share), Masks.keep_all(self.masks)
        for name, mask in masks.items():
            mask.view(-1)[least[name] :] = False
        return masks

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
            held = self.masks[name]
            held.logical_and_(mask.to(held.device))
        over_parameters = self.parameter_masks()
        over_parameters.apply(self.model)
        self.conv_params = cost.conv_params(self.model, over_parameters)

    def rewind(self, state: Mapping[str, Tensor]) -> None:
        """Give what is kept the values of a state of the unpruned model; what is pruned stays zero.

        The model has to have all its channels.
        """
        models.load_state(self.model, state)
        self.parameter_masks().apply(self.model)

    def keeper(self) -> Keeper:
        """What keeps pruned entries at zero while the model is trained."""
        return Keeper(self.model, self.parameter_masks())

    def compact(self) -> tuple[nn.Module, dict[str, Tensor]]:
        """The compact form as a copy, where anything can be removed, and which units it has."""
        kept = self.in_compact()
        return (self.smaller(kept) if kept else self.model), kept

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

    def smaller(self, kept: Mapping[str, Tensor]) -> nn.Module:
        """The compact copy of the model that these units make: group -> boolean (units,).

        It is in the memory order that its convolutions like.
        """
        return models.channels_last(compaction.compact(self.model, self._removable(), kept))


def as_text(units: Mapping[str, Tensor]) -> dict[str, str]:
    """Which units are kept, by group, as `structure.json` has them: "1101", a digit a unit."""
    return {name: "".join(map(str, mask.int().tolist())) for name, mask in units.items()}


def from_text(units: Mapping[str, str]) -> dict[str, Tensor]:
    """What `as_text` wrote."""
    return {name: torch.tensor([digit == "1" for digit in text]) for name, text in units.items()}


def score(criterion: Criterion, statistics: Mapping[str, Tensor], *seed: object) -> Tensor:
    """Scores of units by a criterion, from its statistics and random numbers of this seed."""
    if GENERATOR not in needs(criterion):
        return criterion(**statistics)
    # seeded by the run, the level and the name, so that scores can be drawn again
    digest = hashlib.sha256(repr(seed).encode()).digest()[:8]
    generator = torch.Generator(next(iter(statistics.values())).device)
    generator.manual_seed(int.from_bytes(digest, "big") >> 1)
    return criterion(**statistics, generator=generator)
