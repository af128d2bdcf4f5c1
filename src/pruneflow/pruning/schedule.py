"""Schedules: how far each level prunes. Direct pruning is an iterative schedule of one level."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """What one level removes."""

    level: int  # 0 for the unpruned model, 1 for the first that prunes
    fraction: float  # share of what is left that it removes, in [0, 1)
    target_sparsity: float  # where that leads, in [0, 1), before rounding to whole entries


UNPRUNED = Step(0, 0.0, 0.0)


def iterative(fraction: float, iterations: int) -> list[Step]:
    """Levels that each remove `fraction` of what is left (Han et al. 2015)."""

    def target(level: int) -> float:
        # the first as it was given: 1 - (1 - fraction) rounds
        return fraction if level == 1 else 1 - (1 - fraction) ** level

    return [Step(level, fraction, target(level)) for level in range(1, iterations + 1)]


def direct(target_sparsity: float) -> list[Step]:
    """One level that goes straight to `target_sparsity`."""
    return [Step(1, target_sparsity, target_sparsity)]
