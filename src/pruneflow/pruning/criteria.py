"""Criteria: functions that score what could be pruned; higher means keep.

A criterion is a pure function of statistics of units; the names of its parameters say of which:
`values` are the weights of each unit, (units, weights of one); `generator` draws random numbers. A
unit is whatever is pruned as a whole: a single weight, a filter, a head. A criterion never chooses:
selection does. To add one, write the function and its row in CRITERIA.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:  # torch takes seconds to import; names and help must not wait for it
    from torch import Generator, Tensor

Criterion: TypeAlias = "Callable[..., Tensor]"


def l1(values: Tensor) -> Tensor:
    """Sum of magnitudes |w| (Han et al. 2015, https://arxiv.org/abs/1506.02626).

    For filters: Li et al. 2017, https://arxiv.org/abs/1608.08710. (units, values) -> (units,).
    """
    magnitudes = values.abs()
    # a reduction over one value is slow
    return magnitudes.squeeze(1) if values.shape[1] == 1 else magnitudes.sum(1)


def l2(values: Tensor) -> Tensor:
    """Euclidean norm; of single weights it ranks as `l1` does. (units, values) -> (units,)."""
    return l1(values) if values.shape[1] == 1 else values.square().sum(1).sqrt()


def random(values: Tensor, generator: Generator) -> Tensor:
    """Uniform scores in [0, 1): the baseline every criterion has to beat. -> (units,)."""
    return values.new_empty(len(values)).uniform_(generator=generator)


CRITERIA: dict[str, Criterion] = {"l1": l1, "l2": l2, "random": random}


@functools.cache
def needs(criterion: Criterion) -> tuple[str, ...]:
    """Names of the statistics that a criterion takes."""
    return tuple(inspect.signature(criterion).parameters)
