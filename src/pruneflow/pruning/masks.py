"""Masks: which entries of which parameters are kept."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

# A mask is converted to the weight's width as it is multiplied. In pieces that fit the cache the
# converted mask never reaches memory.
_CHUNK = 1 << 20


class Masks(Mapping[str, Tensor]):
    """Boolean masks by parameter name, True = kept, each of exactly its parameter's shape.

    Args:
        parameters: the parameters that the masks are for, by name.
        masks: a boolean tensor for each of them.

    Raises:
        ValueError: a mask that is missing, unasked for, not boolean or not of its
            parameter's shape. Nothing is broadcast.
    """

    def __init__(self, parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
        if parameters.keys() != masks.keys():
            odd = sorted(parameters.keys() ^ masks.keys())
            raise ValueError(f"masks and parameters differ in {', '.join(odd)}")
        for name, mask in masks.items():
            if mask.dtype != torch.bool:
                raise ValueError(f"the mask of {name} is {mask.dtype}, not torch.bool")
            if mask.shape != parameters[name].shape:
                raise ValueError(
                    f"the mask of {name} has shape {tuple(mask.shape)}, "
                    f"its parameter {tuple(parameters[name].shape)}"
                )
        self._masks = dict(masks)

    @classmethod
    def keep_all(cls, parameters: Mapping[str, Tensor]) -> Masks:
        """Masks that prune nothing."""
        ones = {
            name: torch.ones(p.shape, dtype=torch.bool, device=p.device)
            for name, p in parameters.items()
        }
        return cls(parameters, ones)

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    @property
    def total(self) -> int:
        """Entries in all."""
        return sum(mask.numel() for mask in self._masks.values())

    @property
    def kept(self) -> int:
        """Entries kept."""
        return sum(int(mask.count_nonzero()) for mask in self._masks.values())

    @property
    def sparsity(self) -> float:
        """Fraction of entries pruned, in [0, 1]."""
        return 1 - self.kept / self.total

    def without(self, names: Collection[str]) -> Masks:
        """The masks of all other parameters."""
        masks = {name: mask for name, mask in self._masks.items() if name not in names}
        return Masks(masks, masks)

    def keeper(self, model: nn.Module) -> Keeper:
        """What sets the pruned entries of this model to zero, as often as it is called."""
        return Keeper(model, self)


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
        parameters = {name: p for name, p in model.named_parameters() if name in masks}
        Masks(parameters, masks)  # the model may be another than the one they were made for
        self._masked: list[tuple[nn.Parameter, Tensor]] = []
        for name, mask in masks.items():
            if keeps_all(mask):
                continue
            weight = parameters[name]
            if not (weight.is_contiguous() and mask.is_contiguous()):
                # in the weight's own memory layout (channels_last, say) both have a flat view
                mask = torch.empty_like(weight, dtype=torch.bool).copy_(mask)
            self._masked.append((weight, mask))
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
                for values, kept in _pieces(weight.data, mask):
                    clear(values, kept)
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
    for first, kept in _pieces(state["exp_avg"], mask):
        clear(first, kept)
    for second, kept in _pieces(state["exp_avg_sq"], mask):
        second.masked_fill_(~kept, torch.inf)


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def clear(values: Tensor, kept: Tensor) -> None:
    """Set to zero, in place, what a mask prunes; both dense and of one shape and layout."""
    # as integers: 0 x anything, NaN and infinity too, is +0, and 1 x anything the same; and from
    # uint8 they are converted three times as fast as from bool
    values.view(_INTEGERS[values.element_size()]).mul_(kept.view(torch.uint8))


def keeps_all(mask: Tensor) -> bool:
    """Whether a mask prunes nothing; NumPy stops looking at the first entry that is pruned."""
    return bool(mask.numpy().all() if mask.device.type == "cpu" else mask.all())


def _pieces(tensor: Tensor, mask: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Two dense tensors of one layout, piece by piece, in the order in which their memory lies."""
    flat = (t.as_strided((t.numel(),), (1,)).split(_CHUNK) for t in (tensor, mask))  # type: ignore[no-untyped-call]
    return zip(*flat, strict=True)
