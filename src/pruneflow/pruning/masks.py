"""Masks: which entries of which parameters are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

# A boolean mask is converted to the weight's type as it is multiplied. In pieces that fit a
# core's cache the converted mask never reaches memory: 5 x faster than the whole tensor at once.
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
        ones = {n: torch.ones_like(p, dtype=torch.bool) for n, p in parameters.items()}
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

    def keeper(self, model: nn.Module) -> Keeper:
        """What sets the pruned entries of this model to zero, as often as it is called."""
        return Keeper(model, self)


class Keeper:
    """Sets the pruned entries of one model's parameters to zero; call it after every update.

    Whatever an optimizer does to them (momentum, weight decay, Adam's moments), as long as it is
    finite, they are exactly zero when the next forward pass reads them, and the forward pass itself
    costs nothing more. It holds the parameters' memory: make a new one once a model has been moved.

    Raises:
        ValueError: a model that lacks a masked parameter, or has it in another shape.
    """

    def __init__(self, model: nn.Module, masks: Masks) -> None:
        parameters = {name: p for name, p in model.named_parameters() if name in masks}
        Masks(parameters, masks)  # the model may be another than the one they were made for
        self._pairs: list[tuple[Tensor, Tensor]] = []
        for name, mask in masks.items():
            if mask.all():
                continue
            weight = parameters[name].data
            # In the weight's own memory layout (channels_last, say) both have a flat view.
            mask = torch.empty_like(weight, dtype=torch.bool).copy_(mask)
            pieces = (t.as_strided((t.numel(),), (1,)).split(_CHUNK) for t in (weight, mask))  # type: ignore[no-untyped-call]
            self._pairs.extend(zip(*pieces, strict=True))

    @torch.no_grad()
    def __call__(self) -> None:
        for weight, mask in self._pairs:
            weight.mul_(mask)
