"""Masks: which entries of which parameters are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

# A mask is converted to the weight's width as it is multiplied. In pieces that fit the cache the
# converted mask never reaches memory.
_CHUNK = 1 << 20
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Masks(Mapping[str, Tensor]):
    """Boolean masks by parameter name, True = kept, each of exactly its parameter's shape.

    Raises:
        ValueError: a mask that is missing, unasked for, not boolean or not of its
            parameter's shape. Nothing is broadcast.
    """

    def __init__(self, parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
        if odd := sorted(parameters.keys() ^ masks.keys()):
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

    def apply(self, model: nn.Module) -> None:
        """Set to zero, in place, what the masks prune of a model's parameters.

        Raises:
            ValueError: a model that lacks a masked parameter, or has it in another shape.
        """
        for weight, mask in self.pruned(model):
            clear(weight, mask)

    def pruned(self, model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
        """The parameters that have pruned entries, each with its mask in the same memory order."""
        parameters = {name: p for name, p in model.named_parameters() if name in self}
        Masks(parameters, self)  # the model may be another than the one they were made for
        pairs = []
        for name, mask in self.items():
            if keeps_all(mask):
                continue
            weight = parameters[name]
            if not (weight.is_contiguous() and mask.is_contiguous()):
                # in the weight's memory order (channels_last, say) both have a flat view
                mask = torch.empty_like(weight, dtype=torch.bool).copy_(mask)
            pairs.append((weight, mask))
        return pairs


@torch.no_grad()
def clear(tensor: Tensor, kept: Tensor) -> None:
    """Set to zero, in place, what a mask prunes; both dense and of one shape and memory order."""
    integers = _INTEGERS[tensor.element_size()]
    for values, mask in pieces(tensor, kept):
        # as integers: 0 x anything, NaN and infinity too, is +0, and 1 x anything the same; and
        # from uint8 they are converted three times as fast as from bool
        values.view(integers).mul_(mask.view(torch.uint8))


def keeps_all(mask: Tensor) -> bool:
    """Whether a mask prunes nothing; NumPy stops looking at the first entry that is pruned."""
    return bool(mask.numpy().all() if mask.device.type == "cpu" else mask.all())


def pieces(tensor: Tensor, mask: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Two dense tensors of one layout, piece by piece, in the order in which their memory lies."""
    flat = (t.as_strided((t.numel(),), (1,)).split(_CHUNK) for t in (tensor.detach(), mask))  # type: ignore[no-untyped-call]
    return zip(*flat, strict=True)
