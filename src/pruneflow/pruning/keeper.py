"""Keeper: pruned entries stay zero through training, whatever the optimizer does to them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pruneflow.pruning.masks import Masks, clear, pieces


class Keeper:
    """Keeps the pruned entries of one model's parameters at zero; call it after every update.

    Whatever an optimizer does to them (momentum, weight decay, moments), they are exactly zero when
    the next forward pass reads them, and the forward pass itself costs nothing more. With a fused
    AdamW on a CPU most steps cost little more either: see `_freeze`. It holds the memory of
    parameters and masks: make a new one once either has been moved or made anew.

    Raises:
        ValueError: a model that lacks a masked parameter, or has it in another shape.
    """

    def __init__(self, model: nn.Module, masks: Masks) -> None:
        self._masked = masks.pruned(model)
        # parameter -> its frozen moment, and the versions of both
        self._frozen: dict[nn.Parameter, tuple[Tensor, int, int]] = {}

    @torch.no_grad()
    def __call__(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Set the pruned entries to zero.

        Args:
            optimizer: what has just updated the parameters; AdamW is told to leave them at zero.
        """
        for weight, mask in self._masked:
            state = _moments(optimizer, weight)
            moment = state.get("exp_avg_sq")
            if moment is None or not self._stayed_zero(weight, moment):
                clear(weight, mask)
                if moment is not None:
                    _freeze(state, mask)
            if moment is not None:
                self._frozen[weight] = (moment, weight._version, moment._version)

    def _stayed_zero(self, weight: nn.Parameter, moment: Tensor) -> bool:
        """Whether only fused steps, which versions do not count, wrote since it was frozen."""
        frozen, *versions = self._frozen.get(weight, (None, 0, 0))
        if frozen is not moment or versions != [weight._version, moment._version]:
            return False  # loaded since, or updated in operations that count
        flat = weight.data.as_strided((weight.numel(),), (1,))
        return math.isfinite(flat.dot(flat))  # an infinite gradient over an infinite moment is NaN


def _moments(optimizer: torch.optim.Optimizer | None, weight: Tensor) -> Mapping[str, Tensor]:
    """A parameter's state in AdamW, as far as entries can be frozen there.

    On a GPU they are not: to see whether the step was finite would halt it.
    """
    if not isinstance(optimizer, torch.optim.AdamW) or weight.device.type != "cpu":
        return {}
    state: Mapping[str, Tensor] = optimizer.state.get(weight, {})
    return state


def _freeze(state: Mapping[str, Tensor], mask: Tensor) -> None:
    """Make AdamW's own step leave the pruned entries of a parameter where they are.

    Their second moment is set to infinity, where it stays: the step, the first moment over the
    root of the second, is 0, and so is the decay of a weight of 0.
    """
    clear(state["exp_avg"], mask)
    for second, kept in pieces(state["exp_avg_sq"], mask):
        second.masked_fill_(~kept, torch.inf)
