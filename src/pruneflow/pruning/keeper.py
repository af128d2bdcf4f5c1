"""Keeper: pruned entries stay zero through training, whatever the optimizer does to them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pruneflow.pruning.masks import Masks, clear, pieces


class Keeper:
    """Keeps the pruned entries of one model's parameters at zero; call it after every update.

    Whatever an optimizer does to them (momentum, weight decay, moments), they are exactly zero when
    the next forward pass reads them, and the forward pass itself costs nothing more. AdamW on a CPU
    is made to leave them where they are: their second moment is set to infinity, where it stays, so
    that its step, the first moment over the root of the second, is 0, and so is the decay of a
    weight of 0. As long as that holds, most calls cost little more than a look.

    It holds the memory of parameters and masks: make a new one once either has been moved.
    """

    def __init__(self, model: nn.Module, masks: Masks) -> None:
        self._masked = masks.pruned(model)
        # parameter -> its frozen moment, and the versions of both
        self._frozen: dict[nn.Parameter, tuple[Tensor, int, int]] = {}

    @torch.no_grad()
    def __call__(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Set the pruned entries to zero, after this optimizer has updated the parameters."""
        for weight, mask in self._masked:
            state: dict[str, Tensor] = {}
            # on a GPU nothing is frozen: to see whether the step was finite would halt it
            if isinstance(optimizer, torch.optim.AdamW) and weight.device.type == "cpu":
                state = optimizer.state.get(weight, {})
            moment = state.get("exp_avg_sq")
            if moment is None:
                clear(weight, mask)
                continue
            if not self._stayed_zero(weight, moment):
                clear(weight, mask)
                clear(state["exp_avg"], mask)
                for second, kept in pieces(moment, mask):
                    second.masked_fill_(~kept, torch.inf)
            self._frozen[weight] = (moment, weight._version, moment._version)

    def _stayed_zero(self, weight: nn.Parameter, moment: Tensor) -> bool:
        """Whether only fused steps, which versions do not count, wrote since it was frozen."""
        frozen, *versions = self._frozen.get(weight, (None, 0, 0))
        if frozen is not moment or versions != [weight._version, moment._version]:
            return False  # loaded since, or updated in operations that count
        flat = weight.data.as_strided((weight.numel(),), (1,))
        return math.isfinite(flat.dot(flat))  # an infinite gradient over an infinite moment is NaN
