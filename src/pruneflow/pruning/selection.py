"""Selection: scores in, masks out. The one routine behind every criterion and scope."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pruneflow.pruning.densities import SCOPES, Curve
from pruneflow.pruning.masks import Masks

# Scores of a tensor's entries, flat: asked for a slice, gives float32 or what converts to it.
Scores: TypeAlias = Callable[[slice], Tensor]

_CHUNK = 1 << 18  # a piece and what is made of it fit into a core's cache
_CHUNK_OF_GPU = 1 << 24
_GATHERED = 1 << 22  # scores that are looked at exactly, 48 MiB with their positions
_LOWEST, _HIGHEST = -0x7F800000, 0x7F7FFFFF  # ranks of -infinity and the largest finite float32


def select(
    masks: Mapping[str, Tensor],
    scores: Callable[[str], Scores],
    *,
    fraction: float,
    scope: str,
    pools: Sequence[Sequence[str]] | None = None,
    least: Mapping[str, int] | None = None,
    inputs: Mapping[str, int] | None = None,
    curves: Mapping[str, Curve] | None = None,
) -> Masks:
    """Masks without the lowest-scored `fraction` of what the given ones keep.

    Among equal scores the first in model order goes first, as in PyTorch. What has a score of
    infinity stays, even if fewer than that fraction can go.

    Args:
        masks: what is kept so far, contiguous, in the order that decides among equals.
        scores: name -> scores of that mask's entries, asked for a piece at a time and a few
            times over, with the same result each time, so that no copy of the model is ever held.
        fraction: of what is kept, in [0, 1).
        scope: a name in SCOPES, which says how it is spread.
        pools: names that may compete with each other; by default all.
        least: entries that are kept of a name in any case; what it does not lose, others do.
        inputs: 0 or 1, the axis of a weight that its inputs lie along; the other one has its
            outputs. By default 1, as PyTorch's layers have it.
        curves: what each name bears, for the scope that goes by that.

    Raises:
        ValueError: scores that are NaN or not as many as entries, or a scope that does not exist.
    """
    if scope not in SCOPES:
        raise ValueError(f"scope {scope!r} is none of {', '.join(SCOPES)}")
    spread, rescale = SCOPES[scope].spread, SCOPES[scope].rescale
    final = scores if rescale is None else _rescaled(masks, scores, rescale, inputs or {})
    selected: dict[str, Tensor] = {}
    extra = (curves or {},) if SCOPES[scope].of_curves else ()
    for names, count in spread(masks, pools or [list(masks)], fraction, *extra):
        if count:
            selected |= _among({n: masks[n] for n in names}, final, count, least or {})
    return Masks(masks, {n: selected[n] if n in selected else m.clone() for n, m in masks.items()})


def _rescaled(
    masks: Mapping[str, Tensor],
    scores: Callable[[str], Scores],
    rescale: Callable[[Tensor, Tensor], Tensor],
    inputs: Mapping[str, int],
) -> Callable[[str], Scores]:
    """Scores that are compared within their layer first; one layer at a time is held."""

    def of_layer(name: str) -> Scores:
        outputs, mask = 1 - inputs.get(name, 1), masks[name]
        layer = scores(name)(slice(0, mask.numel())).view(mask.shape).movedim(outputs, 0)
        by_output = rescale(layer.flatten(), mask.to(layer.device).movedim(outputs, 0))
        return by_output.view(layer.shape).movedim(0, outputs).flatten().__getitem__

    return of_layer


def select_pattern(
    masks: Mapping[str, Tensor],
    scores: Callable[[str], Scores],
    *,
    keep: int,
    block: int,
    inputs: Mapping[str, int],
) -> Masks:
    """Masks that keep at most `keep` of every `block` consecutive inputs, the highest-scored.

    N:M sparsity: Mishra et al. 2021, https://arxiv.org/abs/2104.08378. The inputs of an output, of
    a convolution at each position of its kernel, are taken in blocks; what is no whole block at
    their end stays as it is. Among equal scores the first goes first.

    Args:
        masks, scores: as of `select`.
        inputs: 0 or 1, the axis of a weight that its inputs lie along; others stay as they are.
    """
    selected = {name: mask.clone() for name, mask in masks.items()}
    for name, axis in inputs.items():
        mask, blocked = selected[name], masks[name].shape[axis] // block * block
        layer = _checked(name, scores(name), slice(0, mask.numel()), mask)
        layer = layer.view(mask.shape).masked_fill(~mask.to(layer.device), -math.inf)
        blocks, kept = (
            tensor.movedim(axis, -1)[..., :blocked].unflatten(-1, (-1, block))  # type: ignore[no-untyped-call]
            for tensor in (layer, mask)
        )
        rows = max(1, _CHUNK * len(blocks) // max(1, blocks.numel()))
        for part, of_part in zip(blocks.split(rows), kept.split(rows), strict=True):
            ranks = part.argsort(dim=-1, stable=True).argsort(dim=-1)
            of_part.logical_and_((ranks >= block - keep).to(mask.device))
    return Masks(masks, selected)


def _among(
    masks: Mapping[str, Tensor],
    scores: Callable[[str], Scores],
    count: int,
    least: Mapping[str, int],
) -> dict[str, Tensor]:
    """Masks without the `count` lowest-scored, but for the least that each name keeps."""
    competing = dict(masks)
    selected: dict[str, Tensor] = {}
    kept = {name: _count(_array(mask)) for name, mask in masks.items()}
    while competing and count > 0:
        chosen = _without_lowest(competing, scores, count, sum(kept[n] for n in competing))
        short = [n for n in competing if _count(_array(chosen[n])) < min(kept[n], least.get(n, 0))]
        if not short:
            return selected | chosen
        for name in short:  # loses what it may, and no longer competes
            loses = max(0, kept[name] - least[name])
            alone = {name: competing.pop(name)}
            selected |= _without_lowest(alone, scores, loses, kept[name]) if loses else alone
            count -= loses
        count = min(count, sum(kept[n] for n in competing))
    return selected | {name: mask.clone() for name, mask in competing.items()}


def _without_lowest(
    masks: Mapping[str, Tensor], scores: Callable[[str], Scores], count: int, kept: int
) -> dict[str, Tensor]:
    """Masks without the `count` lowest-scored of the `kept` entries that the given ones keep.

    A sample of the scores says between which two the cut lies. One pass drops what is below these
    and gathers what is between; among the gathered the cut is exact. Where the sample misled, or
    too many are equal to be gathered, the bracket is halved until it fits.
    """
    selected = {name: torch.empty_like(mask) for name, mask in masks.items()}
    lowest, highest = _LOWEST, _HIGHEST
    low, high = _bracket(masks, scores, count, kept)
    device = next(iter(masks.values())).device
    # what is not written to takes no memory, and many small arrays would take more
    positions = _array(torch.empty(_GATHERED, dtype=torch.int64, device=device))
    values = _array(torch.empty(_GATHERED, device=device))
    while True:
        chosen = between = 0
        gathered = []
        for piece, *found in _split(masks, scores, selected, low, high):
            chosen += _count(piece)
            room = slice(between, between + len(found[0]))
            between = room.stop
            if between <= _GATHERED:
                positions[room], values[room] = found
                gathered.append((piece, positions[room], values[room]))
        excess = count - (kept - chosen)  # how many of those between go
        if high == _HIGHEST:
            excess = min(excess, between)  # the others are infinite, and stay
        if excess == 0:
            return selected
        if excess < 0:
            highest = low - 1
        elif excess > between:
            lowest = high + 1
        elif between <= _GATHERED:
            _drop(gathered, *_threshold(values[:between], excess))
            return selected
        elif low == high:
            _drop(_split(masks, scores, selected, low, high), _score(low), excess)
            return selected
        else:
            lowest, highest = low, high
        low, high = lowest, (lowest + highest) // 2


def _bracket(
    masks: Mapping[str, Tensor], scores: Callable[[str], Scores], count: int, kept: int
) -> tuple[int, int]:
    """Ranks of scores between which the `count`-th lowest lies, but for once in a million times."""
    low, high = _LOWEST, _HIGHEST
    total = sum(mask.numel() for mask in masks.values())
    if total <= _GATHERED // 4:
        return low, high
    every = slice(0, None, max(1, total // min(1 << 20, max(1 << 14, total >> 8))))
    parts = [
        _checked(name, scores(name), every, mask)[mask.view(-1)[every]]
        for name, mask in masks.items()
    ]
    sample = torch.cat(parts).cpu().numpy()
    share = count / kept
    margin = 5 * math.sqrt(share * (1 - share) / max(1, len(sample)))
    first = math.floor((share - margin) * len(sample)) - 1
    last = math.ceil((share + margin) * len(sample)) + 1
    if ends := [end for end in (first, last) if 0 <= end < len(sample)]:
        sample.partition(ends)
    if first >= 0:
        low = _rank(sample[first])
    if last < len(sample):
        high = min(_rank(sample[last]), high)
    return low, high


def _split(
    masks: Mapping[str, Tensor],
    scores: Callable[[str], Scores],
    selected: Mapping[str, Tensor],
    low: int,
    high: int,
) -> Iterator[tuple[Any, Any, Any]]:
    """Choose, of what masks keep, what is not below a bracket: by pieces, what is chosen of each.

    With each, the positions in it of what is in the bracket, and the scores of these.
    """
    least, most = _score(low), _score(high)
    for name, mask in masks.items():
        size = _CHUNK if mask.device.type == "cpu" else _CHUNK_OF_GPU
        of_name = scores(name)
        for start in range(0, mask.numel(), size):
            entries = slice(start, min(start + size, mask.numel()))
            values = _array(_checked(name, of_name, entries, mask))
            chosen = _array(selected[name].view(-1)[entries])
            chosen[:] = (values >= least) & _array(mask.view(-1)[entries])
            positions = _positions((values <= most) & chosen)
            yield chosen, positions, values[positions]


def _threshold(scores: Any, count: int) -> tuple[float, int]:
    """The `count`-th lowest of some scores, and how many that are equal to it go."""
    scores = torch.as_tensor(scores).cpu().numpy()
    threshold = float(np.partition(scores, count - 1)[count - 1])
    return threshold, count - int((scores < threshold).sum())


def _drop(pieces: Iterable[tuple[Any, Any, Any]], threshold: float, ties: int) -> None:
    """Drop the entries in brackets that score below a threshold, and of equal ones the first."""
    for chosen, positions, values in pieces:
        chosen[positions[values < threshold]] = False
        tied = positions[values == threshold][:ties]
        chosen[tied] = False
        ties -= len(tied)


def _checked(name: str, scores: Scores, entries: slice, mask: Tensor) -> Tensor:
    """Scores of some entries of a mask, float32, as many as these and none of them NaN."""
    values = scores(entries).detach().to(torch.float32)
    if values.shape != (len(range(*entries.indices(mask.numel()))),):
        raise ValueError(f"scores of {name} are not as many as its entries")
    # with a NaN the sum of squares is NaN; it takes a third of the time of looking at each
    if not math.isfinite(values.dot(values)) and bool(values.isnan().any()):
        raise ValueError(f"scores of {name} are not numbers (NaN)")
    return values


# On a CPU NumPy compares and counts two to five times as fast as PyTorch does; the operators that
# are used are the same.


def _array(tensor: Tensor) -> Any:
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def _count(mask: Any) -> int:
    return int(np.count_nonzero(mask) if isinstance(mask, np.ndarray) else mask.count_nonzero())


def _positions(mask: Any) -> Any:
    return np.flatnonzero(mask) if isinstance(mask, np.ndarray) else mask.nonzero().flatten()


def _rank(score: float) -> int:
    """Where a float32 stands among all of them; both zeros are 0."""
    bits = int(np.float32(score).view(np.int32))
    return bits if bits >= 0 else -(bits & 0x7FFFFFFF)


def _score(rank: int) -> float:
    """The float32 of a rank."""
    return math.copysign(float(np.int32(abs(rank)).view(np.float32)), rank)
