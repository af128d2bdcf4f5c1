"""Compaction: taking units out of a model, and which units zeros have emptied."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pruneflow.pruning import groups as of_groups
from pruneflow.pruning.groups import BATCH_NORMS, CONVOLUTIONS, Group, entries, expand, keep_all
from pruneflow.workloads import models

Forward: TypeAlias = Callable[[nn.Module], Tensor]  # logits of a few samples by a model

MAKERS = (*CONVOLUTIONS, nn.Linear)  # layers whose rows make channels

# Attention as BERT-family encoders of transformers write it: names of the projections whose rows
# are heads, of the attribute that counts heads, and of the one that holds their total width.
_PROJECTIONS = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("q", "k", "v"))
_HEADS = ("num_attention_heads", "n_heads")
_WIDTHS = ("all_head_size", "dim")

# Side -> where a layer of each kind says how many channels it has there.
_CHANNELS: dict[tuple[type[nn.Module], ...], dict[str, str]] = {
    CONVOLUTIONS: {"in": "in_channels", "out": "out_channels"},
    (nn.Linear,): {"in": "in_features", "out": "out_features"},
    BATCH_NORMS: {"out": "num_features"},
}


def channels(layer: nn.Module) -> dict[str, int]:
    """Side -> how many channels a layer has there; empty for a layer that cannot lose any."""
    return {side: getattr(layer, attribute) for side, attribute in _attributes(layer).items()}


def projections(module: nn.Module) -> tuple[str, ...]:
    """Names of the three projections, if a module is attention as BERT-family encoders have it."""
    if hasattr(module, "attention_head_size") and any(hasattr(module, name) for name in _HEADS):
        for names in _PROJECTIONS:
            if all(isinstance(getattr(module, name, None), nn.Linear) for name in names):
                return names
    return ()


def compact(model: nn.Module, groups: Sequence[Group], kept: Mapping[str, Tensor]) -> nn.Module:
    """A smaller copy of a model, without the units that are not kept; the original is untouched.

    `kept`: group name -> boolean (units,), True = kept; a group that is not there stays whole.

    Raises:
        ValueError: a group of which nothing would be left.
    """
    return remove(copy.deepcopy(model), groups, kept)


def remove(model: nn.Module, groups: Sequence[Group], kept: Mapping[str, Tensor]) -> nn.Module:
    """What `compact` does, in place."""
    for name, mask in kept.items():
        if not mask.any():
            raise ValueError(f"nothing would be left of {name}")
    gone = of_groups.removed(groups, kept)
    for (name, side), numbers in gone.items():
        if len(numbers):
            _cut(model.get_submodule(name), side, numbers)
    for name, attention in model.named_modules():
        names = projections(attention)
        if names and len(gone.get((f"{name}.{names[0]}", "out"), ())):
            width: Any = attention.get_submodule(names[0]).out_features
            heads = width // attention.attention_head_size
            for attribute in _sizes(attention):
                setattr(attention, attribute, heads if attribute in _HEADS else width)
    return model


def has_empty_channels(model: nn.Module) -> bool:
    """Whether a row or column of some layer's weight is all zero; else `emptied` finds nothing."""
    for layer in model.modules():
        if isinstance(layer, MAKERS):
            used = layer.weight.detach() != 0
            if not all(bool(used.transpose(0, dim).flatten(1).any(1).all()) for dim in (0, 1)):
                return True
    return False


def emptied(model: nn.Module, groups: Sequence[Group], forward: Forward) -> dict[str, Tensor]:
    """Which units can be dropped from a pruned model without changing any output.

    Those that no layer reads any more (all their columns are zero), and those that are zero
    wherever they are read, whatever the input: every weight that makes them is zero, and so is
    the constant that biases, normalisation and activation turn that into, as `forward` shows.
    Dropping one can empty another, so this is repeated until nothing changes. Every group keeps
    one unit.

    Returns:
        group name -> boolean (units,), False = droppable.
    """
    used = {name: parameter.detach() != 0 for name, parameter in model.named_parameters()}

    def any_used(weight: str, dim: int, index: Tensor) -> Tensor:
        return used[weight].movedim(dim, 0)[index].flatten(1).any(1).cpu()

    kept = dict(keep_all(groups))
    zero = dict(keep_all(groups))
    silent = _silent_inputs(model, forward)
    before = -1
    while (now := sum(int(mask.sum()) for mask in kept.values())) != before:
        before = now
        for group in groups:
            made = read = torch.zeros(group.units, dtype=torch.bool)
            for layer, rows in group.makers(model).items():
                made = made | any_used(f"{layer}.weight", 0, rows)
            for tie in (tie for tie in group.ties if tie.side == "in"):
                # the columns of a grouped convolution are not numbered as its inputs are
                columns = f"{tie.layer}.weight" if entries(model, tie) else None
                read = read | (any_used(columns, 1, tie.index) if columns else True)
                if tie.layer in silent:
                    zero[group.name] &= silent[tie.layer][tie.index].all(1)
            stays = kept[group.name] & read & (made | ~zero[group.name])
            if not stays.any():
                stays[kept[group.name].nonzero()[0]] = True
            kept[group.name] = stays
        for name, mask in expand(model, groups, kept).items():
            used[name] &= mask
    return kept


def _silent_inputs(model: nn.Module, forward: Forward) -> dict[str, Tensor]:
    """Layer -> boolean (input channels,): which were zero everywhere, as it ran."""
    silent: dict[str, Tensor] = {}

    def look(name: str, layer: nn.Module, inputs: Tensor) -> None:
        dim = -1 if isinstance(layer, nn.Linear) else 1
        zero = (inputs == 0).movedim(dim, 0).flatten(1).all(1).cpu()
        silent[name] = zero & silent.get(name, zero)

    observe(model, forward, look)
    return silent


def observe(
    model: nn.Module, forward: Forward, look: Callable[[str, nn.Module, Tensor], None]
) -> None:
    """Run a model, and look at the name and inputs of each convolution and linear layer."""
    handles = [
        module.register_forward_pre_hook(
            lambda module, inputs, name=name: look(name, module, inputs[0].detach())
        )
        for name, module in model.named_modules()
        if isinstance(module, MAKERS)
    ]
    try:
        with models.looking(model), torch.no_grad():
            forward(model)
    finally:
        for handle in handles:
            handle.remove()


def without_empty_filters(model: nn.Module, groups: Sequence[Group]) -> dict[str, Tensor]:
    """What the 2020 study removed: every unit one of whose Conv2d filters is all zero.

    The union over tied layers, so that outputs change where masks of tied layers differ. Of a
    group that this would empty, the unit with the largest weights stays.

    Returns:
        group name -> boolean (units,), False = removed.
    """
    kept = dict(keep_all(groups))
    for group in groups:
        size = torch.zeros(group.units)
        for name, rows in group.makers(model).items():
            layer = model.get_submodule(name)
            if isinstance(layer, nn.Conv2d):
                filters = layer.weight.detach().flatten(1).abs().sum(1).cpu()[rows]
                kept[group.name] &= (filters > 0).all(1)
                size += filters.sum(1)
        if not kept[group.name].any():
            kept[group.name][size.argmax()] = True
    return kept


def structure(model: nn.Module) -> dict[str, dict[str, int]]:
    """Sizes of every layer that compaction may change, for `structure.json`: layer -> attributes.

    JSON values; `resize` brings a dense model of the same kind to them.
    """
    return {
        name: {attribute: int(getattr(module, attribute)) for attribute in _sizes(module)}
        for name, module in model.named_modules()
        if _sizes(module)
    }


def resize(model: nn.Module, sizes: Mapping[str, Mapping[str, int]]) -> nn.Module:
    """Bring a model, in place, to the sizes that `structure` wrote; its weights mean nothing then.

    Raises:
        ValueError: a layer that the model has not, or an attribute that is no size.
    """
    for name, wanted in sizes.items():
        try:
            layer: Any = model.get_submodule(name)
        except AttributeError:
            raise ValueError(f"the model has no layer {name}") from None
        for attribute, size in wanted.items():
            if attribute not in _sizes(layer) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{name}: {attribute}={size!r} is not a size")
            setattr(layer, attribute, size)
        shape: tuple[int, ...] = tuple(reversed(channels(layer).values()))  # rows, columns
        if isinstance(layer, CONVOLUTIONS):
            shape = (shape[0], shape[1] // layer.groups, *layer.kernel_size)
        for attribute, old in _tensors(layer, "out").items():
            new = shape if attribute == "weight" else shape[:1]
            if old.shape != new:
                _replace(layer, attribute, old.new_zeros(new))
    return model


def _attributes(layer: nn.Module) -> dict[str, str]:
    return next((a for kinds, a in _CHANNELS.items() if isinstance(layer, kinds)), {})


def _sizes(module: nn.Module) -> list[str]:
    """The attributes that say of what size a module is."""
    names = [*_attributes(module).values()]
    if isinstance(module, CONVOLUTIONS):
        names.append("groups")
    if projections(module):
        names += [name for name in (*_HEADS, *_WIDTHS) if hasattr(module, name)]
    return names


def _tensors(layer: nn.Module, side: str) -> dict[str, Tensor]:
    """The tensors of a layer that have an entry, row or column for each channel of a side."""
    names = ("weight",) if side == "in" else ("weight", "bias", "running_mean", "running_var")
    tensors = {name: getattr(layer, name, None) for name in names}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _cut(layer: Any, side: str, gone: Tensor) -> None:
    """Remove channels of a layer, in place."""
    attribute = _attributes(layer)[side]
    total = getattr(layer, attribute)
    stays = torch.ones(total, dtype=torch.bool)
    stays[gone] = False
    setattr(layer, attribute, int(stays.sum()))
    if side == "in" and layer.weight.shape[1] != total:
        return  # of a grouped convolution, whose columns go with the rows of their group
    if getattr(layer, "groups", 1) > 1:
        layer.groups -= len(gone) * layer.groups // total
    for name, tensor in _tensors(layer, side).items():
        index = stays.nonzero().flatten().to(tensor.device)
        _replace(layer, name, tensor.detach().index_select(int(side == "in"), index))


def _replace(layer: nn.Module, name: str, new: Tensor) -> None:
    old = getattr(layer, name)
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    setattr(layer, name, new)
