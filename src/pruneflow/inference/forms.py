"""Forms: how a level of a pruned model can be run.

A form is one function and its row in FORMS. It raises NoFormError where a level has no such form:
dense weights have no zeros to leave out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from pruneflow import measurements
from pruneflow.inference import sparse as kernels
from pruneflow.pruning import compaction
from pruneflow.pruning.groups import Group

Inputs = Tensor | dict[str, Tensor]


class NoFormError(Exception):
    """A level has no such form; the text says why."""


@dataclass(frozen=True)
class PrunedLevel:
    """A level of a pruning run, ready to be brought into each form."""

    dense: nn.Module
    model: nn.Module  # as its checkpoint has it, masked or compact
    is_compact: bool
    groups: list[Group]  # of channels of the masked model
    # group -> boolean (units,): what the compact form has, as the run recorded it; else all units
    kept: Mapping[str, Tensor]
    independent: bool  # of `coupling=independent` the compact form has other outputs
    device: str

    @cached_property
    def compact(self) -> nn.Module:
        """Channels physically removed; of single weights, what they have emptied."""
        if self.is_compact:
            return self.model
        if not self.kept.keys() <= {group.name for group in self.groups}:
            raise NoFormError("it was recorded by an older version: prune again to time it")
        if all(bool(units.all()) for units in self.kept.values()):
            raise NoFormError("no channel is empty, so there is nothing to remove")
        return compaction.compact(self.model, self.groups, self.kept).eval()


def _masked(level: PrunedLevel, run: kernels.Run, batch: str) -> nn.Module:
    if level.is_compact:
        raise NoFormError("the run kept its levels compact (form=compact)")
    return level.model


def _sparse(level: PrunedLevel, run: kernels.Run, batch: str) -> nn.Module:
    """Zeros not stored: each layer in what is fastest for it here, for this batch size."""
    if level.device != "cpu":
        raise NoFormError("sparse kernels are measured and chosen on a CPU only")
    if level.is_compact:
        raise NoFormError("a compact model stores no zeros")
    cache = measurements.file_of("kernels")
    return kernels.sparse(level.model, run, batch=batch, cache=cache)[0]


FORMS: dict[str, Callable[[PrunedLevel, kernels.Run, str], nn.Module]] = {
    "dense": lambda level, run, batch: level.dense,
    "masked": _masked,
    "compact": lambda level, run, batch: level.compact,
    "sparse": _sparse,
}


def difference(logits: Tensor, reference: Tensor) -> float:
    """The largest difference of two forms' logits, relative to the largest logit."""
    scale = reference.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return float((logits - reference).abs().max() / scale)
