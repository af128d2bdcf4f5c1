"""Gradual: units are pruned inside one training, by and by, and stay pruned all through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pruneflow.pruning.schedule import Step
from pruneflow.pruning.units import Units


class Gradual:
    """Prunes units after some of a training's updates; call it after every update, as a Keeper.

    Zhu and Gupta 2018, https://arxiv.org/abs/1710.01878.

    Args:
        units: of the model that is trained; none must be physically removed meanwhile.
        after: training step, counted from 1 -> what is removed after it.
        prune: removes that from the units, and leaves the model's state else as it is.
    """

    def __init__(
        self, units: Units, after: Mapping[int, Step], prune: Callable[[Step], None]
    ) -> None:
        self._units, self._after, self._prune = units, after, prune
        self._through = 0  # training steps
        self._keeper = units.keeper()

    def __call__(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Set pruned entries to zero, and prune if it is time to."""
        self._through += 1
        self._keeper(optimizer)
        if self._through in self._after:
            self._prune(self._after[self._through])
            self._keeper = self._units.keeper()
            self._keeper(optimizer)  # what the optimizer remembers of what is pruned goes, too

    def masks(self) -> dict[str, Tensor]:
        """What is kept now, for `go_on`; the units' own masks."""
        return dict(self._units.masks)

    def go_on(self, through: int, masks: Mapping[str, Tensor]) -> None:
        """Go on after so many training steps, with what was kept then.

        Raises:
            ValueError: masks of other units.
        """
        devices = {name: mask.device for name, mask in self._units.masks.items()}
        self._units.apply({n: m.to(devices.get(n, m.device)) for n, m in masks.items()})
        self._through, self._keeper = through, self._units.keeper()


def pruned_after(steps: Sequence[Step], training_steps: int) -> dict[int, Step]:
    """Training step -> what is removed after it: evenly over the first three quarters of them.

    The last quarter trains at full sparsity.

    Raises:
        ValueError: more prunings than training steps in the first three quarters.
    """
    last = 3 * training_steps // 4
    if len(steps) > last:
        of = f"{last} training steps, the first three quarters of {training_steps}"
        raise ValueError(f"{len(steps)} prunings do not fit into {of}")
    return {last * number // len(steps): step for number, step in enumerate(steps, start=1)}
