"""The records of a sensitivity run: a row per layer (or group of channels) and fraction.

To add a column, add its field to Sensitivity.
"""

from __future__ import annotations

from dataclasses import dataclass

TABLE = "sensitivity.csv"


@dataclass(frozen=True)
class Sensitivity:
    """What pruning one layer alone costs, as a row of `sensitivity.csv`."""

    layer: str  # a layer with all that is prunable of it, or a group of channels
    fraction: float  # of it that was to go
    units: int  # single weights, or channels, that it has
    pruned: int  # of them, a whole number
    accuracy: float  # on the validation set, without training
    drop: float  # of the unpruned model's accuracy there; below zero where pruning helps
