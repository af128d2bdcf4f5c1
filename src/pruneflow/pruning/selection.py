"""Selection: scores in, masks out. The one routine behind every criterion and scope."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from pruneflow.errors import InputError
from pruneflow.pruning.masks import Masks

PRUNABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.MultiheadAttention)
# Also, in a model that has embeddings of tokens: the 2020 study pruned all of BERT.
PRUNABLE_WITH_TOKENS = (*PRUNABLE, nn.Embedding, nn.LayerNorm)

_CHUNK = 1 << 18  # a piece and its keys fit into a core's cache
_DEAD = torch.iinfo(torch.int32).max  # sorts after every score: pruned entries are not chosen
_INFINITE = 0x7F80  # upper 16 bits of an infinite score
_BUCKETS = 1 << 16


def prunable_parameters(
    model: nn.Module, *, include: tuple[str, ...], exclude: tuple[str, ...], biases: bool
) -> dict[str, nn.Parameter]:
    """The parameters that may be pruned, by name, in model order.

    Weights, and biases if asked for, of convolutions, linear layers and attention projections;
    in a model with embeddings of tokens, of these and of LayerNorm as well. A pattern
    (`classifier.*`, `conv?`) is matched against the layer's name and the parameter's. No
    `include` means all.

    Raises:
        InputError: a pattern that matches nothing, or nothing left to prune.
    """
    names: dict[str, str] = {}  # parameter -> its layer
    tokens = any(isinstance(module, nn.Embedding) for module in model.modules())
    kinds = PRUNABLE_WITH_TOKENS if tokens else PRUNABLE
    for layer, module in model.named_modules():
        if isinstance(module, kinds):
            for name, _ in module.named_parameters(recurse=False):
                if biases or "bias" not in name:
                    names[f"{layer}.{name}" if layer else name] = layer

    def matching(pattern: str) -> set[str]:
        found = {n for n, layer in names.items() if _matches(n, layer, pattern)}
        if not found:
            layers = list(dict.fromkeys(names.values()))
            shown = ", ".join(layers[:8]) + (f" and {len(layers) - 8} more" * (len(layers) > 8))
            raise InputError(f"pattern {pattern!r} matches no prunable layer; there are: {shown}")
        return found

    chosen = set().union(*map(matching, include)) if include else set(names)
    for pattern in exclude:
        chosen -= matching(pattern)
    if not chosen:
        raise InputError("include and exclude leave nothing to prune")
    return {n: p for n, p in model.named_parameters() if n in chosen}


def _matches(name: str, layer: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(layer, pattern)


def select(
    scores: Callable[[str], Tensor],
    masks: Masks,
    *,
    fraction: float,
    scope: str,
) -> Masks:
    """Masks that prune, on top of those given, the lowest-scored `fraction` of what is left.

    The number pruned is `round(fraction * left)`, and which ones, is what
    `torch.nn.utils.prune.global_unstructured` (scope `global`) or `l1_unstructured` on each
    tensor (scope `layer`) chooses; among equal scores the first in model order goes first. What
    has a score of infinity stays, even if fewer than that number can go.

    Args:
        scores: name -> scores of that mask's shape; called up to three times a name, with
            the same result each time, so that no copy of the model is ever held.
        masks: what is kept so far, in the order that decides among equals.
        fraction: of what is left, in [0, 1).
        scope: `global` or `layer`.

    Raises:
        ValueError: scores that are NaN or of another shape, or a scope that does not exist.
    """
    if scope not in ("global", "layer"):
        raise ValueError(f"scope {scope!r} is neither 'global' nor 'layer'")
    groups = [list(masks)] if scope == "global" else [[name] for name in masks]
    new: dict[str, Tensor] = {}
    for names in groups:
        left = sum(int(masks[name].count_nonzero()) for name in names)
        new |= _drop_lowest(scores, {n: masks[n] for n in names}, round(fraction * left))
    return Masks(masks, new)


def _drop_lowest(
    scores: Callable[[str], Tensor], masks: Mapping[str, Tensor], count: int
) -> dict[str, Tensor]:
    """Masks with the `count` lowest-scored kept entries dropped: a radix selection.

    A float's bits, read as an integer, sort as the float does. One pass counts entries by the
    upper 16 bits, which names the bucket of the last one to go; a second gathers that bucket
    alone and finds the exact threshold in it; a third writes the masks.
    """
    if count == 0:
        return dict(masks)
    histogram = torch.zeros(_BUCKETS, dtype=torch.int64)
    for _, keys in _keys(scores, masks):
        histogram += torch.bincount((keys >> 16) + _BUCKETS // 2, minlength=_BUCKETS).cpu()
    cumulative = histogram.cumsum(0)
    count = min(count, int(cumulative[_INFINITE + _BUCKETS // 2 - 1]))
    if count == 0:
        return dict(masks)
    bucket = int(torch.searchsorted(cumulative, count))
    below = int(cumulative[bucket] - histogram[bucket])
    prefix = bucket - _BUCKETS // 2
    candidates = torch.cat([keys[(keys >> 16) == prefix] for _, keys in _keys(scores, masks)])
    candidates = candidates.sort().values
    threshold = candidates[count - below - 1]
    ties = count - below - int(torch.searchsorted(candidates, threshold))

    new = {name: mask.clone(memory_format=torch.contiguous_format) for name, mask in masks.items()}
    flat = {name: mask.view(-1) for name, mask in new.items()}
    start = dict.fromkeys(new, 0)
    for name, keys in _keys(scores, masks):
        drop = keys < threshold
        if ties:
            tied = (keys == threshold).nonzero().flatten()[:ties]
            drop[tied] = True
            ties -= len(tied)
        piece = flat[name][start[name] : start[name] + len(keys)]
        piece &= ~drop
        start[name] += len(keys)
    return new


def _keys(
    scores: Callable[[str], Tensor], masks: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Scores as int32 that sort alike, piece by piece; pruned entries sort last."""
    for name, mask in masks.items():
        values = scores(name).detach().to(torch.float32)
        if values.shape != mask.shape:
            raise ValueError(
                f"scores of {name} have shape {tuple(values.shape)}, not {tuple(mask.shape)}"
            )
        values, kept = values.reshape(-1), mask.reshape(-1)
        for start in range(0, len(values), _CHUNK):
            piece = slice(start, start + _CHUNK)
            if values[piece].isnan().any():
                raise ValueError(f"scores of {name} are not numbers (NaN)")
            bits = (values[piece] + 0.0).view(torch.int32)  # + 0.0 turns -0.0 into 0.0
            sign = bits >> 31
            bits ^= sign.bitwise_and_(0x7FFFFFFF)
            yield name, torch.where(kept[piece], bits, _DEAD)
        del values  # before the next tensor's scores are made
