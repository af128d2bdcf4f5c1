"""Granularity: what a pruning run chooses among, single weights or whole channels.

Both kinds offer the same things, so that a level is the same few lines for either: names with a
mask each (`everything`), which of them compete (`pools`), scores by name, and parameter masks from
the masks chosen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from pruneflow.pruning import groups as grouping
from pruneflow.pruning.criteria import Criterion
from pruneflow.pruning.groups import Group
from pruneflow.pruning.masks import Masks
from pruneflow.pruning.selection import Scores


class Granularity(Protocol):
    """What selection chooses among."""

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that can be pruned, by name, in model order."""

    @property
    def laid_out_as_masks(self) -> dict[str, Tensor]:
        """Those of the parameters whose memory has the order of the masks it is chosen from."""

    def everything(self) -> Masks:
        """What is kept before anything is pruned."""

    def pools(self) -> list[list[str]]:
        """Names that compete with each other in scope `global`; each pool loses the fraction."""

    def scores(
        self, name: str, kept: Masks, criterion: Criterion, seed: tuple[object, ...]
    ) -> Scores:
        """Scores of what `name` stands for, an entry of its mask each; the same at every call."""

    def masks(self, kept: Masks) -> Masks:
        """Masks over parameters from what is kept."""


class Weights:
    """Every entry of every prunable parameter by itself (unstructured pruning)."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.parameters = parameters

    @property
    def laid_out_as_masks(self) -> dict[str, Tensor]:
        """All but those in channels_last memory, say."""
        return {n: p.detach() for n, p in self.parameters.items() if p.is_contiguous()}

    def everything(self) -> Masks:
        """One mask a parameter, of its shape."""
        return Masks.keep_all(self.parameters)

    def pools(self) -> list[list[str]]:
        """All weights compete."""
        return [list(self.parameters)]

    def scores(
        self, name: str, kept: Masks, criterion: Criterion, seed: tuple[object, ...]
    ) -> Scores:
        """Scores of a parameter's entries."""
        weights = self.parameters[name].detach().reshape(-1, 1)

        def scores(entries: slice) -> Tensor:
            place = (entries.start, entries.step)
            return criterion(weights[entries], _generator(weights, *seed, name, *place))

        return scores

    def masks(self, kept: Masks) -> Masks:
        """What is kept, as it is."""
        return kept


class Channels:
    """Units of groups of channels (structured pruning).

    Args:
        model: the model.
        groups: those that may be pruned.
        coupled: scores stand beside other groups' and no group is emptied; otherwise every group
            goes as `torch.nn.utils.prune.ln_structured` would do it.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Group], *, coupled: bool) -> None:
        self.parameters = grouping.parameters(model, groups)
        self.groups = {group.name: group for group in groups}
        self._model = model
        self._coupled = coupled

    @property
    def laid_out_as_masks(self) -> dict[str, Tensor]:
        """None: a mask here is of units."""
        return {}

    def everything(self) -> Masks:
        """One mask a group, of shape (units,)."""
        return grouping.keep_all(self.groups.values())

    def pools(self) -> list[list[str]]:
        """Units of one target compete: a head is no match for a hidden unit.

        Norms over many weights hardly differ, those over few do: among all, heads would never go.
        """
        targets = dict.fromkeys(group.target for group in self.groups.values())
        return [[n for n, g in self.groups.items() if g.target == target] for target in targets]

    def scores(
        self, name: str, kept: Masks, criterion: Criterion, seed: tuple[object, ...]
    ) -> Scores:
        """Scores of a group's units, from the weights that make them."""
        values = grouping.values(self._model, self.groups[name])
        scores = criterion(values, _generator(values, *seed, name)).cpu()
        scores = grouping.compete(scores, kept[name]) if self._coupled else scores
        return scores.__getitem__

    def masks(self, kept: Masks) -> Masks:
        """Masks over every parameter that the groups' units own entries of."""
        return grouping.expand(self._model, self.groups.values(), kept)


def _generator(like: Tensor, *parts: object) -> torch.Generator:
    """A generator seeded by the run, the level and the name, so that scores can be drawn again."""
    digest = hashlib.sha256(repr(parts).encode()).digest()[:8]
    return torch.Generator(like.device).manual_seed(int.from_bytes(digest, "big") >> 1)
