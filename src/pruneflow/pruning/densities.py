"""Densities: how the kept share is spread over layers, the parameter `scope`.

A scope says which units compete with each other and how many of these go, and may rescale the
scores of a layer first. To add one, write the function and its row in SCOPES.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from pruneflow.pruning.criteria import layer_adaptive

if TYPE_CHECKING:  # torch takes seconds to import; names and help must not wait for it
    from torch import Tensor

# Names that compete with each other, and how many of their kept entries go.
Shares: TypeAlias = list[tuple[Sequence[str], int]]
Masks: TypeAlias = "Mapping[str, Tensor]"
_SLOPE = 0.01  # accuracy that a validation set hardly resolves
_HALVINGS = 60
Pools: TypeAlias = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Scope:
    """A way to spread the kept share.

    Attributes:
        spread: masks so far, pools of names that may compete, and the fraction of what is kept
            that goes -> who competes for how many.
        rescale: scores of all entries of a layer, flat, and its mask -> scores in their place.
        single_weights: whether it makes sense for single weights alone.
        of_curves: whether `spread` asks for what each name bears too (name -> Curve), at the end.
    """

    spread: Callable[..., Shares]
    rescale: Callable[[Tensor, Tensor], Tensor] | None = None
    single_weights: bool = False
    of_curves: bool = False


@dataclass(frozen=True)
class Curve:
    """What pruning a name alone costs, as it was measured."""

    units: int  # that it had before anything was pruned
    drops: tuple[tuple[float, float], ...]  # share of them that is pruned, drop of the accuracy

    def points(self) -> list[tuple[float, float]]:
        """(drop, share), both strictly rising: from nothing pruned to all, which bears nothing.

        Where a curve falls, noise of the measurement or a pruning that helps, its drop is the
        largest so far; where it is flat, a share costs _SLOPE of itself.
        """
        points, largest = [(0.0, 0.0)], 0.0
        for share, drop in sorted((*self.drops, (1.0, 1.0))):
            largest = max(largest, drop)
            points.append((largest + _SLOPE * share, share))
        return points


def over_pools(masks: Masks, pools: Pools, fraction: float) -> Shares:
    """All of a pool compete, as in `torch.nn.utils.prune.global_unstructured`."""
    return [(pool, round(fraction * sum(_kept(masks[name]) for name in pool))) for pool in pools]


def over_layers(masks: Masks, pools: Pools, fraction: float) -> Shares:
    """Every tensor loses the same fraction, as by `l1_unstructured` on each."""
    return [([name], round(fraction * _kept(masks[name]))) for pool in pools for name in pool]


def erdos_renyi(masks: Masks, pools: Pools, fraction: float) -> Shares:
    """Density of a layer in proportion to the sum of its dimensions over their product.

    Erdos-Renyi-Kernel: Mocanu et al. 2018, Evci et al. 2020 (https://arxiv.org/abs/1911.11134).
    Layers that would be denser than they are stay as they are.
    """
    return [share for pool in pools for share in _erdos_renyi(masks, list(pool), fraction)]


def _erdos_renyi(masks: Masks, names: list[str], fraction: float) -> Shares:
    kept = {name: _kept(masks[name]) for name in names}
    keep = sum(kept.values()) - round(fraction * sum(kept.values()))
    weight = {name: float(sum(masks[name].shape)) for name in names}
    shares = {name: float(kept[name]) for name in names}
    while open_ := [name for name in names if weight[name]]:
        free = keep - sum(shares[name] for name in names if not weight[name])
        scale = free / sum(weight[name] for name in open_)
        full = [name for name in open_ if scale * weight[name] >= kept[name]]
        if not full:
            shares |= {name: scale * weight[name] for name in open_}
            break
        for name in full:  # stays as it is, and the others share the rest
            weight[name] = 0.0
    rounded = _rounded(shares, keep)
    return [([name], kept[name] - rounded[name]) for name in names]


def _rounded(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Shares of a total as whole numbers, the largest remainders rounded up."""
    rounded = {name: math.floor(share) for name, share in shares.items()}
    by_rest = sorted(shares, key=lambda name: rounded[name] - shares[name])
    for name in by_rest[: total - sum(rounded.values())]:
        rounded[name] += 1
    return rounded


def by_sensitivity(
    masks: Masks, pools: Pools, fraction: float, curves: Mapping[str, Curve]
) -> Shares:
    """Every layer is pruned as far as it bears: until alone it would cost a drop common to all.

    The shares of layers lie on their measured curves, and the drop is the one at which a pool loses
    the fraction, as Han et al. 2015 (https://arxiv.org/abs/1506.02626) take each layer's
    threshold from its sensitivity. Layers that have lost more than that stay as they are.
    """
    return [share for pool in pools for share in _by_sensitivity(masks, pool, fraction, curves)]


def _by_sensitivity(
    masks: Masks, names: Sequence[str], fraction: float, curves: Mapping[str, Curve]
) -> Shares:
    kept = {name: _kept(masks[name]) for name in names}
    keep = sum(kept.values()) - round(fraction * sum(kept.values()))
    points = {name: curves[name].points() for name in names}

    def kept_at(drop: float) -> dict[str, float]:
        shares = {name: _at(points[name], drop) for name in names}
        return {n: min(float(kept[n]), curves[n].units * (1 - shares[n])) for n in names}

    low, high = 0.0, max(of[-1][0] for of in points.values())
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if sum(kept_at(middle).values()) > keep:
            low = middle
        else:
            high = middle
    rounded = _rounded(kept_at(high), keep)
    return [([name], kept[name] - rounded[name]) for name in names]


def _at(points: Sequence[tuple[float, float]], x: float) -> float:
    """The value at x of what is linear between points (x, y), x rising; the last beyond them."""
    number = bisect.bisect_right(points, x, key=lambda point: point[0])
    if number == len(points):
        return points[-1][1]
    (x0, y0), (x1, y1) = points[number - 1], points[number]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def rank_in_row(scores: Tensor, mask: Tensor) -> Tensor:
    """The share of its row's kept entries that score lower: every row loses the same fraction.

    As Sun et al. 2024 compare weights (https://arxiv.org/abs/2306.11695). The row of a tensor of
    one dimension is all of it.
    """
    rows = mask.reshape(len(mask) if mask.dim() > 1 else 1, -1)
    by_row = scores.reshape(rows.shape).masked_fill(~rows, math.inf)
    ranks = by_row.argsort(dim=1, stable=True).argsort(dim=1)
    return (ranks / rows.sum(1, keepdim=True).clamp_min(1)).flatten()


def share_of_larger(scores: Tensor, mask: Tensor) -> Tensor:
    """Squared score over the sum of the squares in its layer that are not smaller.

    LAMP, of magnitudes: Lee et al. 2021, https://arxiv.org/abs/2010.07611.
    """
    return layer_adaptive(scores.double().square().masked_fill(~mask.flatten(), 0.0))


def _kept(mask: Tensor) -> int:
    return int(mask.count_nonzero())


SCOPES: dict[str, Scope] = {
    "global": Scope(over_pools),
    "layer": Scope(over_layers),
    "row": Scope(over_layers, rank_in_row, single_weights=True),
    "erk": Scope(erdos_renyi, single_weights=True),
    "lamp": Scope(over_pools, share_of_larger),
    "sensitivity": Scope(by_sensitivity, of_curves=True),
}
