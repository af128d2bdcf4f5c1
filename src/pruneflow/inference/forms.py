"""Forms: the ways to run a level of a pruned model.

A form is one function and its row in FORMS. It gives None, or says why, where a level has no such
form: dense weights have no zeros to leave out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pruneflow.inference import sparse as sparse_kernels
from pruneflow.pruning import compaction
from pruneflow.pruning.groups import Group

Inputs = Tensor | dict[str, Tensor]


class NoFormError(Exception):
    """A level has no such form; the text says why."""


@dataclass(frozen=True)
class PrunedLevel:
    """A level of a pruning run, ready to be brought into each form.

    Attributes:
        dense: the unpruned model.
        model: the level's model as its checkpoint has it, masked or compact.
        is_compact: which of the two.
        groups: groups of channels of the masked model.
        kept: which units the compact form has, as the run recorded them: group -> boolean
            (units,); a group not there, all.
        independent: pruned by `coupling=independent`: the compact form lacks the union of what
            tied layers lost, which changes outputs.
        device: `cpu` or `cuda`.
    """

    dense: nn.Module
    model: nn.Module
    is_compact: bool
    groups: list[Group]
    kept: Mapping[str, Tensor]
    independent: bool
    device: str
    _made: dict[str, nn.Module] = field(default_factory=dict)


def dense(level: PrunedLevel, run: sparse_kernels.Run, batch: str) -> nn.Module:
    """The unpruned model."""
    return level.dense


def masked(level: PrunedLevel, run: sparse_kernels.Run, batch: str) -> nn.Module:
    """The original's shapes with zeros in place."""
    if level.is_compact:
        raise NoFormError("the run kept its levels compact (form=compact)")
    return level.model


def compact(level: PrunedLevel, run: sparse_kernels.Run, batch: str) -> nn.Module:
    """Channels physically removed; of single weights, what they have emptied."""
    if level.is_compact:
        return level.model
    if "compact" not in level._made:
        if not level.kept.keys() <= {group.name for group in level.groups}:
            raise NoFormError("it was recorded by an older version: prune again to time it")
        if all(bool(units.all()) for units in level.kept.values()):
            raise NoFormError("no channel is empty, so there is nothing to remove")
        level._made["compact"] = compaction.compact(level.model, level.groups, level.kept).eval()
    return level._made["compact"]


def sparse(level: PrunedLevel, run: sparse_kernels.Run, batch: str) -> nn.Module:
    """Zeros not stored: each layer in what is fastest for it here, for this batch size."""
    if level.device != "cpu":
        raise NoFormError("sparse kernels are measured and chosen on a CPU only")
    if level.is_compact:
        raise NoFormError("a compact model stores no zeros")
    form, _ = sparse_kernels.sparse(
        level.model, run, batch=batch, cache=sparse_kernels.default_cache()
    )
    return form


FORMS: dict[str, Callable[[PrunedLevel, sparse_kernels.Run, str], nn.Module]] = {
    "dense": dense,
    "masked": masked,
    "compact": compact,
    "sparse": sparse,
}


def difference(logits: Tensor, reference: Tensor) -> float:
    """The largest difference of two forms' logits, relative to the largest logit."""
    scale = reference.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return float((logits - reference).abs().max() / scale)
