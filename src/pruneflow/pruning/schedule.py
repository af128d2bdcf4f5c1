"""Schedules: how far each level prunes. Direct pruning is an iterative schedule of one level.

Every schedule ends at the same sparsity, where removing `fraction` of what is left `iterations`
times leads. To add one, write the function and its row in SCHEDULES.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """What one level removes."""

    level: int  # 0 for the unpruned model, 1 for the first that prunes
    fraction: float  # share of what is left that it removes, in [0, 1)
    target_sparsity: float  # where that leads, in [0, 1), before rounding to whole entries


UNPRUNED = Step(0, 0.0, 0.0)


def geometric(fraction: float, iterations: int) -> list[Step]:
    """Levels that each remove `fraction` of what is left (Han et al. 2015)."""

    def target(level: int) -> float:
        # the first as it was given: 1 - (1 - fraction) rounds
        return fraction if level == 1 else 1 - (1 - fraction) ** level

    return [Step(level, fraction, target(level)) for level in range(1, iterations + 1)]


def linear(fraction: float, iterations: int) -> list[Step]:
    """Levels that each remove the same share of all that there was."""
    final = geometric(fraction, iterations)[-1].target_sparsity
    return _to([final * (level / iterations) for level in range(1, iterations + 1)])


def cubic(fraction: float, iterations: int) -> list[Step]:
    """Levels that remove much at first, when much is redundant, and ever less.

    After l of L levels the sparsity is s (1 - (1 - l / L)^3), s the final one: Zhu and Gupta 2018,
    https://arxiv.org/abs/1710.01878.
    """
    final = geometric(fraction, iterations)[-1].target_sparsity
    return _to([final * (1 - (1 - level / iterations) ** 3) for level in range(1, iterations + 1)])


def _to(targets: Sequence[float]) -> list[Step]:
    """Levels that lead from one target sparsity to the next."""
    steps = enumerate(itertools.pairwise([0.0, *targets]), start=1)
    return [Step(level, (to - since) / (1 - since), to) for level, (since, to) in steps]


# name -> levels, from the fraction that each removes if it is geometric, and their number
SCHEDULES: dict[str, Callable[[float, int], list[Step]]] = {
    "geometric": geometric,
    "linear": linear,
    "cubic": cubic,
}


def iterative(fraction: float, iterations: int, schedule: str = "geometric") -> list[Step]:
    """The levels of a schedule by its name."""
    return SCHEDULES[schedule](fraction, iterations)


def direct(target_sparsity: float) -> list[Step]:
    """One level that goes straight to `target_sparsity`."""
    return [Step(1, target_sparsity, target_sparsity)]
