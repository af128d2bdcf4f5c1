"""Criteria: functions that score what could be pruned; higher means keep.

A criterion sees the values that each unit owns and returns a score a unit. A unit is whatever is
pruned as a whole: a single weight (one value), a filter or a head (many). It never chooses:
selection does. To add one, write the function and its row in CRITERIA; nothing else needs to know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:  # torch takes seconds to import; names and help must not wait for it
    from torch import Generator, Tensor

Criterion: TypeAlias = "Callable[[Tensor, Generator], Tensor]"


def l1(values: Tensor, generator: Generator) -> Tensor:
    """Sum of magnitudes |w| (Han et al. 2015, https://arxiv.org/abs/1506.02626).

    For filters: Li et al. 2017, https://arxiv.org/abs/1608.08710. (units, values) -> (units,).
    """
    return _single(values.abs()) if values.shape[1] == 1 else values.abs().sum(1)


def l2(values: Tensor, generator: Generator) -> Tensor:
    """Euclidean norm; of single weights it ranks as `l1` does. (units, values) -> (units,)."""
    return _single(values.abs()) if values.shape[1] == 1 else values.square().sum(1).sqrt()


def random(values: Tensor, generator: Generator) -> Tensor:
    """Uniform scores in [0, 1): the baseline every criterion has to beat. -> (units,)."""
    return values.new_empty(len(values)).uniform_(generator=generator)


def _single(values: Tensor) -> Tensor:
    """(units, 1) -> (units,), without a reduction, which is slow over one value."""
    return values.squeeze(1)


CRITERIA: dict[str, Criterion] = {"l1": l1, "l2": l2, "random": random}
