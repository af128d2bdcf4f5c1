"""Selection: scores in, masks out. The one routine behind every criterion and scope."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from pruneflow.errors import InputError
from pruneflow.pruning import patterns
from pruneflow.pruning.masks import Masks

PRUNABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.MultiheadAttention)
# Also, in a model that has embeddings of tokens: the 2020 study pruned all of BERT.
PRUNABLE_WITH_TOKENS = (*PRUNABLE, nn.Embedding, nn.LayerNorm)

# Scores of a tensor's entries, flat: asked for a slice, gives float32 or what converts to it.
Scores: TypeAlias = Callable[[slice], Tensor]

_CHUNK = 1 << 18  # a piece and what is made of it fit into a core's cache
_CHUNK_OF_GPU = 1 << 24
_GATHERED = 1 << 22  # scores that are looked at exactly, 48 MiB with their positions
_LARGEST = float(torch.finfo(torch.float32).max)


def prunable_parameters(
    model: nn.Module,
    *,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    biases: bool,
    products: Collection[str] = (),
) -> dict[str, nn.Parameter]:
    """The parameters that may be pruned, by name, in model order.

    Weights, and biases if asked for, of convolutions, linear layers and attention projections,
    and of whatever else multiplies a matrix; in a model with embeddings of tokens, of these and
    of LayerNorm as well. A pattern (`classifier.*`, `conv?`) is matched against the layer's name
    and the parameter's. No `include` means all.

    Args:
        model, include, exclude, biases: of what, matching what, and whether biases are taken.
        products: parameters that were seen to multiply something (`cost.positions`).

    Raises:
        InputError: a pattern that matches nothing, or nothing left to prune.
    """
    names: dict[str, str] = {}  # parameter -> its layer
    tokens = any(isinstance(module, nn.Embedding) for module in model.modules())
    kinds = PRUNABLE_WITH_TOKENS if tokens else PRUNABLE
    for layer, module in model.named_modules():
        within = {
            f"{layer}.{name}" if layer else name: "bias" in name
            for name, _ in module.named_parameters(recurse=False)
        }
        known = isinstance(module, kinds)
        multiplies = known or not within.keys().isdisjoint(products)
        for name, is_bias in within.items():
            if (multiplies and biases) if is_bias else (known or name in products):
                names[name] = layer

    chosen = patterns.choose(
        {name: (name, layer) for name, layer in names.items()},
        list(dict.fromkeys(names.values())),
        include=include,
        exclude=exclude,
    )
    if not chosen:
        raise InputError("include and exclude leave nothing to prune")
    return {n: p for n, p in model.named_parameters() if n in chosen}


def select(
    masks: Mapping[str, Tensor],
    scores: Callable[[str], Scores],
    *,
    fraction: float,
    scope: str,
    pools: Iterable[Iterable[str]] | None = None,
) -> Masks:
    """Masks without the lowest-scored `fraction` of what the given ones keep.

    The number pruned is `round(fraction * kept)`, and which ones, is what
    `torch.nn.utils.prune.global_unstructured` (scope `global`) or `l1_unstructured` on each
    tensor (scope `layer`) chooses; among equal scores the first in model order goes first. What
    has a score of infinity stays, even if fewer than that number can go.

    Args:
        masks: what is kept so far, contiguous, in the order that decides among equals.
        scores: name -> scores of that mask's entries, asked for a piece at a time and a few
            times over, with the same result each time, so that no copy of the model is ever held.
        fraction: of what is kept, in [0, 1).
        scope: `global` or `layer`.
        pools: names that compete with each other in scope `global`; by default all.

    Raises:
        ValueError: scores that are NaN or not as many as entries, or a scope that does not exist.
    """
    if scope not in ("global", "layer"):
        raise ValueError(f"scope {scope!r} is neither 'global' nor 'layer'")
    competing = (pools or [masks]) if scope == "global" else [[name] for name in masks]
    selected: dict[str, Tensor] = {}
    for names in competing:
        pool = {name: masks[name] for name in names}
        kept = sum(_count(_array(mask)) for mask in pool.values())
        count = round(fraction * kept)
        if count:
            selected |= _without_lowest(pool, scores, count, kept)
    return Masks(masks, {n: selected[n] if n in selected else m.clone() for n, m in masks.items()})


def _without_lowest(
    masks: Mapping[str, Tensor], scores: Callable[[str], Scores], count: int, kept: int
) -> dict[str, Tensor]:
    """Masks without the `count` lowest-scored of the `kept` entries that the given ones keep.

    A sample of the scores says between which two the cut lies. One pass drops what is below these
    and gathers what is between; among the gathered the cut is exact. Where the sample misled, or
    too many are equal to be gathered, the bracket is halved until it fits.
    """
    selected = {name: torch.empty_like(mask) for name, mask in masks.items()}
    room = _Room.on(next(iter(masks.values())).device)
    floor, ceiling = -math.inf, _LARGEST  # the cut is at one of these or between them
    low, high = _bracket(masks, scores, count, kept)
    while True:
        chosen, between = _split(masks, scores, selected, low, high, room)
        excess = count - (kept - chosen)  # how many of those between go
        if excess == 0:
            return selected
        if excess < 0:
            ceiling = _next(low, -1)
        elif excess > between and high == _LARGEST:  # the others are infinite, and stay
            _split(masks, scores, selected, math.inf, math.inf, room)
            return selected
        elif excess > between:
            floor = _next(high, 1)
        elif between <= _GATHERED:
            room.drop_lowest(excess)
            return selected
        elif low == high:
            _split(masks, scores, selected, low, high, room, drop=excess)
            return selected
        else:
            floor, ceiling = low, high
        low, high = floor, _middle(floor, ceiling)


def _bracket(
    masks: Mapping[str, Tensor], scores: Callable[[str], Scores], count: int, kept: int
) -> tuple[float, float]:
    """Two scores between which the `count`-th lowest lies, but for once in a million times."""
    total = sum(mask.numel() for mask in masks.values())
    if total <= _GATHERED // 4:
        return -math.inf, _LARGEST
    every = slice(0, None, max(1, total // min(1 << 20, max(1 << 14, total >> 8))))
    parts = []
    for name, mask in masks.items():
        values = scores(name)(every).detach().to(torch.float32)
        _check(name, values)
        parts.append(values[mask.view(-1)[every]])
    sample = torch.cat(parts).cpu().numpy()
    share = count / kept
    margin = 5 * math.sqrt(share * (1 - share) / max(1, len(sample)))
    first = math.floor((share - margin) * len(sample)) - 1
    last = math.ceil((share + margin) * len(sample)) + 1
    if ends := [end for end in (first, last) if 0 <= end < len(sample)]:
        sample.partition(ends)
    low = float(sample[first]) if first >= 0 else -math.inf
    high = min(float(sample[last]), _LARGEST) if last < len(sample) else _LARGEST
    return low, high


@dataclass
class _Room:
    """Entries in a bracket, as many as there is room for; what is not written to takes no memory.

    Attributes:
        positions, scores: of each entry its position in a piece of a mask, and its score.
        pieces: each piece, with the slice of the entries that are of it.
    """

    positions: Any
    scores: Any
    pieces: list[tuple[Any, slice]]

    @classmethod
    def on(cls, device: torch.device) -> Self:
        """Empty room for `_GATHERED` entries."""
        positions = torch.empty(_GATHERED, dtype=torch.int64, device=device)
        return cls(_array(positions), _array(torch.empty(_GATHERED, device=device)), [])

    def add(self, piece: Any, positions: Any, scores: Any) -> None:
        """Gather entries of a piece, if there is room for them."""
        start = self.pieces[-1][1].stop if self.pieces else 0
        end = start + len(positions)
        if start < end <= _GATHERED:
            self.positions[start:end], self.scores[start:end] = positions, scores
            self.pieces.append((piece, slice(start, end)))

    def drop_lowest(self, count: int) -> None:
        """Drop the `count` lowest-scored entries from their pieces, and of equal ones the first."""
        scores = torch.as_tensor(self.scores[: self.pieces[-1][1].stop]).cpu().numpy()
        threshold = float(np.partition(scores, count - 1)[count - 1])
        ties = count - int((scores < threshold).sum())
        for piece, entries in self.pieces:
            positions, scores = self.positions[entries], self.scores[entries]
            piece[positions[scores < threshold]] = False
            tied = positions[scores == threshold][:ties]
            piece[tied] = False
            ties -= len(tied)


def _split(
    masks: Mapping[str, Tensor],
    scores: Callable[[str], Scores],
    selected: Mapping[str, Tensor],
    low: float,
    high: float,
    room: _Room,
    drop: int = 0,
) -> tuple[int, int]:
    """Choose, of what masks keep, what is not below a bracket, nor of the first `drop` in it.

    Args:
        masks, scores: as of `select`.
        selected: is written to.
        low, high: the bracket, both ends in it.
        room: gets what is in the bracket; enough only if all of it fits.
        drop: of equal scores.

    Returns:
        How many entries are chosen, and how many are in the bracket.
    """
    total = between = 0
    room.pieces.clear()
    for name, entries, values in _pieces(masks, scores):
        _check(name, values)
        values, kept = _array(values), _array(masks[name].view(-1)[entries])
        chosen = _array(selected[name].view(-1)[entries])
        chosen[:] = (values >= low) & kept
        total += _count(chosen)
        positions = _positions((values <= high) & chosen)
        between += len(positions)
        room.add(chosen, positions, values[positions])
        chosen[positions[:drop]] = False
        drop -= len(positions[:drop])
    return total, between


def _pieces(
    masks: Mapping[str, Tensor], scores: Callable[[str], Scores]
) -> Iterator[tuple[str, slice, Tensor]]:
    """Name, entries and scores (float32), piece by piece."""
    for name, mask in masks.items():
        score = scores(name)
        size = _CHUNK if mask.device.type == "cpu" else _CHUNK_OF_GPU
        for start in range(0, mask.numel(), size):
            entries = slice(start, min(start + size, mask.numel()))
            values = score(entries).detach().to(torch.float32)
            if values.shape != (entries.stop - start,):
                raise ValueError(f"scores of {name} are not as many as its entries")
            yield name, entries, values


def _check(name: str, values: Tensor) -> None:
    """See that no score is NaN.

    Raises:
        ValueError: one is.
    """
    # with a NaN the sum of squares is NaN; it takes a third of the time of looking at each
    if not math.isfinite(values.dot(values)) and bool(values.isnan().any()):
        raise ValueError(f"scores of {name} are not numbers (NaN)")


# On a CPU NumPy compares and counts two to five times as fast as PyTorch does; the operators that
# are used are the same.


def _array(tensor: Tensor) -> Any:
    """A tensor's own memory, as what is fastest to work on."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def _count(mask: Any) -> int:
    return int(np.count_nonzero(mask) if isinstance(mask, np.ndarray) else mask.count_nonzero())


def _positions(mask: Any) -> Any:
    return np.flatnonzero(mask) if isinstance(mask, np.ndarray) else mask.nonzero().flatten()


def _order(value: float) -> int:
    """The place of a float32 among all of them."""
    bits = int(np.float32(value).view(np.int32))
    return bits if bits >= 0 else -(bits & 0x7FFFFFFF)


def _at(order: int) -> float:
    """The float32 at a place."""
    value = float(np.int32(abs(order)).view(np.float32))
    return value if order >= 0 else -value


def _next(value: float, steps: int) -> float:
    return _at(_order(value) + steps)


def _middle(low: float, high: float) -> float:
    return _at((_order(low) + _order(high)) // 2)
