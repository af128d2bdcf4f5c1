"""Criteria: functions that score what could be pruned; higher means keep.

A criterion sees one tensor and returns scores of its shape. It never chooses: selection does.
To add one, write the function and its row in CRITERIA; nothing else needs to know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:  # torch takes seconds to import; names and help must not wait for it
    from torch import Generator, Tensor

Criterion: TypeAlias = "Callable[[Tensor, Generator], Tensor]"


def l1(weight: Tensor, generator: Generator) -> Tensor:
    """Magnitude |w| (Han et al. 2015, https://arxiv.org/abs/1506.02626); any shape."""
    return weight.abs()


def l2(weight: Tensor, generator: Generator) -> Tensor:
    """Squared magnitude w². Ranks single weights as `l1` does, but for rounding; any shape."""
    return weight.square()


def random(weight: Tensor, generator: Generator) -> Tensor:
    """Uniform scores in [0, 1): the baseline that every criterion has to beat; any shape."""
    return weight.new_empty(weight.shape).uniform_(generator=generator)


CRITERIA: dict[str, Criterion] = {"l1": l1, "l2": l2, "random": random}
