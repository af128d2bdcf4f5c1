"""Compaction: which channels hang together in a model, and taking them out of it.

The one file that uses Torch-Pruning (Fang et al. 2023, https://arxiv.org/abs/2301.12900): its
dependency graph says which channels of which layers are the same, its layer functions cut them.
What it says is not believed but tried: `find_groups` removes units and compares outputs.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch_pruning
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch_pruning._helpers import _HybridIndex
from torch_pruning.dependency import index_mapping, shape_infer
from torch_pruning.pruner import function as cut

from pruneflow.pruning.groups import BATCH_NORMS, CONVOLUTIONS, Group, Tie, entries, expand
from pruneflow.workloads import models

_LAYERS = (*CONVOLUTIONS, nn.Linear, *BATCH_NORMS)
_TOLERANCE = 1e-7  # relative, in float64
_NOISE = 0.02  # what initial weights of common layers are about
_STEPS = 4  # a layer's channels pass each dependency of a model once or twice, if they are followed
_UNCLEAR = "Torch-Pruning cannot follow its channels"

# Attention as BERT-family encoders of transformers write it: names of the projections whose rows
# are heads, of the attribute that counts heads, and of the one that holds their total width.
_PROJECTIONS = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("q", "k", "v"))
_HEADS = ("num_attention_heads", "n_heads")
_WIDTHS = ("all_head_size", "dim")

# What a layer of each kind says of its own size: what `structure` writes and `resize` reads.
_SIZES: dict[type[nn.Module], tuple[str, ...]] = {
    **dict.fromkeys(CONVOLUTIONS, ("in_channels", "out_channels", "groups")),
    nn.Linear: ("in_features", "out_features"),
    **dict.fromkeys(BATCH_NORMS, ("num_features",)),
}


@dataclass(frozen=True)
class Found:
    """What `find_groups` found.

    Attributes:
        groups: those whose units can be removed without changing what is left, in model order.
        left_out: layer -> why its channels cannot be removed.
    """

    groups: list[Group]
    left_out: dict[str, str]


def find_groups(
    model: nn.Module, forward: Callable[[nn.Module], Tensor], *, outputs: Sequence[str]
) -> Found:
    """The groups of channels that can be removed from a model.

    A unit is a set of channels that are tied: through residuals and concatenations, in one group
    of a grouped convolution, in one attention head. Units that reach the outputs, or a
    normalisation over channels (LayerNorm, GroupNorm), stay: removing one changes the others.

    Args:
        model: any module; it is left as it was.
        forward: the logits of a few samples by a model; called on copies.
        outputs: layers whose outputs are the model's (the classifier).

    Returns:
        The groups, tried: of a copy whose parameters are all disturbed, an uneven share of every
        group's units is masked and removed, and in float64 the logits have to agree.
    """
    with models.looking(model):
        ties, left_out = _ties(model, forward, outputs)
        groups = _groups(model, ties, _sequential(model, forward))
        sound = _sound(model, forward, groups)
    names = {group.name for group in sound}
    for group in groups:
        if group.name not in names:
            left_out[group.name] = "removing its channels changed the outputs when it was tried"
    makers = {layer for group in groups for layer in group.makers(model)}
    for name, module in model.named_modules():
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)) and name not in makers:
            left_out.setdefault(name, "nothing was found that reads its channels")
    return Found(sound, left_out)


def compact(model: nn.Module, groups: Sequence[Group], kept: Mapping[str, Tensor]) -> nn.Module:
    """A smaller copy of a model, without the units that are not kept; the original is untouched.

    Args:
        model: the model.
        groups: its groups; a group not in `kept` stays whole.
        kept: group name -> boolean (units,), True = kept; at least one in each.

    Raises:
        ValueError: a group of which nothing would be left.
    """
    return _remove(copy.deepcopy(model), groups, kept)


def has_empty_channels(model: nn.Module) -> bool:
    """Whether a row or column of some layer's weight is all zero; else `emptied` finds nothing."""
    for layer in model.modules():
        if isinstance(layer, (*CONVOLUTIONS, nn.Linear)):
            used = layer.weight.detach() != 0
            if not used.flatten(1).any(1).all() or not used.transpose(0, 1).flatten(1).any(1).all():
                return True
    return False


def emptied(
    model: nn.Module, groups: Sequence[Group], forward: Callable[[nn.Module], Tensor]
) -> dict[str, Tensor]:
    """Which units can be dropped from a pruned model without changing any output.

    Those that no layer reads any more (all their columns are zero), and those that are zero
    wherever they are read, whatever the input: every weight that makes them is zero, and so is
    the constant that biases, normalisation and activation turn that into. Dropping one can empty
    another, so this is repeated until nothing changes. Every group keeps one unit.

    Args:
        model: with zeros in place; it is left as it was.
        groups: its groups.
        forward: as for `find_groups`; shows the constants.

    Returns:
        group name -> boolean (units,), False = droppable.
    """
    kept = {group.name: torch.ones(group.units, dtype=torch.bool) for group in groups}
    state = {name: p.detach() != 0 for name, p in model.named_parameters()}
    constant = _unread_or_zero(model, groups, forward)
    while True:
        before = sum(int(mask.count_nonzero()) for mask in kept.values())
        for group in groups:
            unread = torch.ones(group.units, dtype=torch.bool)
            made = torch.zeros(group.units, dtype=torch.bool)
            for tie in group.ties:
                for name, (dim, index) in entries(model, tie).items():
                    if not name.endswith("weight"):
                        continue
                    layer = model.get_submodule(tie.layer)
                    used = state[name].movedim(dim, 0)[index].flatten(1).any(1).cpu()
                    if tie.side == "in":
                        unread &= ~used
                    elif not isinstance(layer, BATCH_NORMS):
                        made |= used
                if tie.side == "in" and not entries(model, tie):
                    unread[:] = False  # a grouped convolution reads it
            silent = ~made & constant[group.name]
            drop = (unread | silent) & kept[group.name]
            if bool(drop.sum() == kept[group.name].sum()):
                drop[kept[group.name].nonzero()[0]] = False
            kept[group.name] &= ~drop
        if sum(int(mask.count_nonzero()) for mask in kept.values()) == before:
            return kept
        masks = expand(model, groups, kept)
        for name, mask in masks.items():
            state[name] &= mask


def without_empty_filters(model: nn.Module, groups: Sequence[Group]) -> dict[str, Tensor]:
    """What the 2020 study removed: every unit one of whose Conv2d filters is all zero.

    The union over tied layers, so that outputs change where masks of tied layers differ. Of a
    group that this would empty, the unit with the largest weights stays.

    Returns:
        group name -> boolean (units,), False = removed.
    """
    kept = {}
    for group in groups:
        mask = torch.ones(group.units, dtype=torch.bool)
        size = torch.zeros(group.units)
        for tie in group.ties:
            layer = model.get_submodule(tie.layer)
            if tie.side != "in" and isinstance(layer, nn.Conv2d):
                filters = layer.weight.detach().flatten(1).abs().sum(1).cpu()[tie.index]
                mask &= (filters > 0).all(1)
                size += filters.sum(1)
        if not mask.any():
            mask[size.argmax()] = True
        kept[group.name] = mask
    return kept


def structure(model: nn.Module) -> dict[str, dict[str, int]]:
    """Sizes of every layer that compaction may change, for `structure.json`: layer -> attributes.

    JSON values; `resize` brings a dense model of the same kind to them.
    """
    sizes: dict[str, dict[str, int]] = {}
    for name, module in model.named_modules():
        names = next((n for kind, n in _SIZES.items() if isinstance(module, kind)), ())
        if _projections(module):
            names = tuple(n for n in (*_HEADS, *_WIDTHS) if hasattr(module, n))
        if names:
            sizes[name] = {attribute: int(getattr(module, attribute)) for attribute in names}
    return sizes


def resize(model: nn.Module, sizes: Mapping[str, Mapping[str, int]]) -> nn.Module:
    """Bring a model, in place, to the sizes that `structure` wrote; its weights mean nothing then.

    Raises:
        ValueError: a layer that the model has not, or an attribute that is no size.
    """
    for name, wanted in sizes.items():
        try:
            module = model.get_submodule(name)
        except AttributeError:
            raise ValueError(f"the model has no layer {name}") from None
        for attribute, size in wanted.items():
            known = (*_HEADS, *_WIDTHS, *(a for names in _SIZES.values() for a in names))
            if attribute not in known or not isinstance(size, int) or size < 1:
                raise ValueError(f"{name}: {attribute}={size!r} is not a size")
            setattr(module, attribute, size)
        shapes = _shapes(module)
        for attribute, shape in shapes.items():
            old = getattr(module, attribute)
            if old is None or old.shape == shape:
                continue
            new = torch.zeros(shape, dtype=old.dtype, device=old.device)
            setattr(module, attribute, nn.Parameter(new) if old.requires_grad else new)
    return model


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer's tensors by what it says of its own size."""
    if isinstance(module, CONVOLUTIONS):
        rows, columns = module.out_channels, module.in_channels // module.groups
        return {"weight": (rows, columns, *module.kernel_size), "bias": (rows,)}
    if isinstance(module, nn.Linear):
        rows = module.out_features
        return {"weight": (rows, module.in_features), "bias": (rows,)}
    if isinstance(module, BATCH_NORMS):
        names = ("weight", "bias", "running_mean", "running_var")
        return dict.fromkeys(names, (module.num_features,))
    return {}


# --------------------------------------------------------------------------- finding the groups


def _ties(
    model: nn.Module, forward: Callable[[nn.Module], Tensor], outputs: Sequence[str]
) -> tuple[dict[tuple[str, str, int], int], dict[str, str]]:
    """Units: (layer, side, channel) -> number of its unit; and the layers that have none, why."""
    traced = copy.deepcopy(model).eval().requires_grad_(True)
    names = {module: name for name, module in traced.named_modules()}
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph = _Graph(traced, forward)
    except Exception as error:  # it walks autograd's graph: what it meets there is not foreseen
        reason = f"its dependencies could not be traced ({type(error).__name__})"
        return {}, dict.fromkeys((n for n in names.values() if n), reason)
    makers = [m for m in graph.module2node if isinstance(m, (*CONVOLUTIONS, nn.Linear))]
    makers.sort(key=list(names).index)

    slots: dict[tuple[str, str, int], int] = {}
    edges: list[tuple[int, int]] = []
    fixed: dict[int, str] = {}

    def slot(layer: str, side: str, channel: int) -> int:
        return slots.setdefault((layer, side, channel), len(slots))

    for maker in makers:
        root = [slot(names[maker], "out", row) for row in range(int(maker.weight.shape[0]))]
        if names[maker] in outputs:
            fixed.update(dict.fromkeys(root, "it makes the outputs"))
        try:
            reached = graph.follow(maker)
        except _LostError as error:
            fixed.update(dict.fromkeys(root, str(error)))
            continue
        for (module, side), channels in reached.items():
            if isinstance(module, _LAYERS):
                layer = names[module]
                edges += [(root[r], slot(layer, side, channel)) for channel, r in channels]
            elif reason := _holds(module, names):
                fixed.update((root[r], reason) for _, r in channels)
    for name, module in traced.named_modules():
        if isinstance(module, CONVOLUTIONS) and module.groups > 1:
            edges += _group_edges(name, module, slot)
        edges += _head_edges(name, module, slot)
    return _components(slots, edges, fixed)


def _components(
    slots: Mapping[tuple[str, str, int], int],
    edges: list[tuple[int, int]],
    fixed: Mapping[int, str],
) -> tuple[dict[tuple[str, str, int], int], dict[str, str]]:
    """What `_ties` returns, from what is tied to what, and what has to stay, with the reason."""
    pairs = np.asarray(edges, dtype=np.int64).reshape(-1, 2)
    matrix = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (len(slots), len(slots)))
    _, numbers = connected_components(matrix, directed=False)
    stays = {int(numbers[index]): reason for index, reason in fixed.items()}
    left_out = {
        key[0]: stays[int(numbers[index])]
        for key, index in slots.items()
        if key[1] == "out" and int(numbers[index]) in stays
    }
    units = {key: int(numbers[index]) for key, index in slots.items()}
    return {key: unit for key, unit in units.items() if unit not in stays}, left_out


def _holds(reached: Any, names: Mapping[nn.Module, str]) -> str:
    """Why channels that reach what is no layer of `_LAYERS` have to stay; "" if they need not."""
    if isinstance(reached, nn.Parameter):
        return "a parameter of no layer goes in"
    kind = type(reached).__name__
    if reached not in names:  # an operation
        return "they are the outputs" if kind == "_OutputOp" else ""
    if isinstance(reached, nn.InstanceNorm1d | nn.InstanceNorm2d) and not reached.affine:
        return ""  # works on each channel by itself
    return f"{kind} mixes them"


class _LostError(Exception):
    """A layer's channels cannot be followed through the model; the text says why."""


class _Graph(torch_pruning.DependencyGraph):  # type: ignore[misc]
    """Torch-Pruning's graph of a model, walked in a number of steps that the model alone decides.

    Its own walk has no bound: where it takes the pixels of a shifted window for channels it goes
    on for hours. And one operation that it cannot work out ends it for all layers.
    """

    def __init__(self, model: nn.Module, forward: Callable[[nn.Module], Tensor]) -> None:
        super().__init__()
        self._nodes: dict[Any, Any] = {}
        self.build_dependency(
            model, (), forward_fn=lambda copied, _: forward(copied), verbose=False
        )
        self.module2node = self._nodes
        self._unclear: dict[Any, str] = {}
        for work in (shape_infer.init_shape_information, index_mapping.update_index_mapping):
            for module, node in self._nodes.items():
                one = copy.copy(self)
                one.module2node = {module: node}
                try:
                    work(one)
                except Exception as error:  # of this operation; the others may be clear
                    self._unclear[node] = type(error).__name__
        layers = [m for m in self._nodes if isinstance(m, _LAYERS)]
        # no tensor has more channels than some layer reads or makes
        self._widest = max((max(_channels_of(layer)) for layer in layers), default=0)
        self._steps = _STEPS * sum(len(node.dependencies) for node in self._nodes.values())

    def _build_dependency(self, module2node: dict[Any, Any]) -> None:
        super()._build_dependency(module2node)
        # shapes and mappings come next, of all operations at once: here it is one by one
        self._nodes, self.module2node = module2node, {}

    def follow(self, maker: Any) -> dict[tuple[Any, str], set[tuple[int, int]]]:
        """Where the rows of a layer go.

        Returns:
            (module or operation, side) -> pairs of a channel there and the row it is.

        Raises:
            _LostError: Torch-Pruning loses track of them.
        """
        handler = self.get_pruner_of_module(maker).prune_out_channels
        rows = [_HybridIndex(idx=row, root_idx=row) for row in range(maker.weight.shape[0])]
        reached: dict[tuple[Any, str], set[tuple[int, int]]] = {}
        todo = [(self.module2node[maker], handler, rows)]
        seen = {(*todo[0][:2], tuple(rows))}
        while todo:
            node, handler, rows = todo.pop()
            if node in self._unclear:
                raise _LostError(
                    f"{_UNCLEAR} ({self._unclear[node]} in {node.module_class.__name__})"
                )
            side = "out" if self.is_out_channel_pruning_fn(handler) else "in"
            found = reached.setdefault((node.module, side), set())
            found.update((channel.idx, channel.root_idx) for channel in rows)
            for dependency in node.dependencies:
                if dependency.is_triggered_by(handler):
                    self._go(dependency, rows, todo, seen)
        return reached

    def _go(self, dependency: Any, rows: list[Any], todo: list[Any], seen: set[Any]) -> None:
        """Add what a dependency leads to to what is to be done, unless it has been seen."""
        for mapping in dependency.index_mapping:
            try:
                rows = rows if mapping is None else mapping(rows)
            except Exception as error:
                raise _LostError(f"{_UNCLEAR} ({type(error).__name__})") from None
            if len(rows) > self._widest:
                raise _LostError(f"{_UNCLEAR} (more of them than any layer has)")
        step = (dependency.target, dependency.handler, tuple(rows))
        if not rows or step in seen:
            return
        if any(channel.root_idx is None for channel in rows):
            raise _LostError(f"{_UNCLEAR} (through repeated heads)")
        if len(seen) >= self._steps:
            raise _LostError(f"{_UNCLEAR} (in {self._steps} steps)")
        seen.add(step)
        todo.append((dependency.target, dependency.handler, rows))


def _channels_of(layer: Any) -> tuple[int, int]:
    """Input and output channels of a layer."""
    if isinstance(layer, CONVOLUTIONS):
        return layer.in_channels, layer.out_channels
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.num_features, layer.num_features


def _group_edges(
    name: str, conv: Any, slot: Callable[[str, str, int], int]
) -> Iterator[tuple[int, int]]:
    """In a grouped convolution, the inputs and outputs of one group are one unit."""
    per_in, per_out = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    for number in range(conv.groups):
        first = slot(name, "out", number * per_out)
        for channel in range(per_out):
            yield first, slot(name, "out", number * per_out + channel)
        for channel in range(per_in):
            yield first, slot(name, "in", number * per_in + channel)


def _projections(module: nn.Module) -> tuple[str, ...]:
    """Names of the three projections, if a module is attention as BERT-family encoders have it."""
    if not any(hasattr(module, name) for name in _HEADS):
        return ()
    if not hasattr(module, "attention_head_size"):
        return ()
    for names in _PROJECTIONS:
        if all(isinstance(getattr(module, name, None), nn.Linear) for name in names):
            return names
    return ()


def _head_edges(
    name: str, attention: Any, slot: Callable[[str, str, int], int]
) -> Iterator[tuple[int, int]]:
    """The rows of one head, of all three projections, are one unit."""
    projections = _projections(attention)
    if not projections:
        return
    heads = int(next(getattr(attention, n) for n in _HEADS if hasattr(attention, n)))
    width = attention.get_submodule(projections[0]).out_features // heads
    for head in range(heads):
        first = slot(f"{name}.{projections[0]}", "out", head * width)
        for projection in projections:
            for row in range(head * width, (head + 1) * width):
                yield first, slot(f"{name}.{projection}", "out", row)


def _sequential(model: nn.Module, forward: Callable[[nn.Module], Tensor]) -> set[str]:
    """Names of the linear layers that see a sequence, or a map: more than a vector a sample."""
    found: set[str] = set()

    def hook(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: found.add(name) if output.dim() > 2 else None

    linear = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    handles = [module.register_forward_hook(hook(name)) for name, module in linear]
    try:
        with models.looking(model), torch.no_grad():
            forward(model)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _groups(
    model: nn.Module, units: Mapping[tuple[str, str, int], int], sequential: set[str]
) -> list[Group]:
    """Units gathered into groups: those that own as many channels of the same layers."""
    owned: dict[int, dict[tuple[str, str], list[int]]] = {}
    for (layer, side, channel), unit in units.items():
        owned.setdefault(unit, {}).setdefault((layer, side), []).append(channel)
    alike: dict[tuple[tuple[str, str, int], ...], list[dict[tuple[str, str], list[int]]]] = {}
    for channels in owned.values():
        signature = tuple(sorted((*key, len(found)) for key, found in channels.items()))
        alike.setdefault(signature, []).append(channels)

    order = {name: number for number, (name, _) in enumerate(model.named_modules())}
    groups = []
    for signature, members in alike.items():
        keys = [(layer, side) for layer, side, _ in signature]
        keys.sort(key=lambda key: (order[key[0]], key[1]))
        members.sort(key=lambda channels: min(channels[keys[0]]))
        ties = tuple(
            Tie(layer, side, torch.tensor([sorted(channels[layer, side]) for channels in members]))
            for layer, side in keys
        )
        group = Group("", "", ties)
        makers = group.makers(model)
        if not makers or not any(tie.side == "in" for tie in ties):
            continue  # made by nothing that has weights, or read by nothing
        name, target = _kind(model, makers, sequential)
        groups.append(Group(name, target, ties))
    groups.sort(key=lambda group: order[group.ties[0].layer])
    return _distinct(groups)


def _distinct(groups: list[Group]) -> list[Group]:
    """Names made unique: one layer's channels can fall into several groups."""
    seen: dict[str, int] = {}
    distinct = []
    for group in groups:
        number = seen[group.name] = seen.get(group.name, 0) + 1
        name = group.name if number == 1 else f"{group.name}#{number}"
        distinct.append(Group(name, group.target, group.ties))
    return distinct


def _kind(model: nn.Module, makers: list[str], sequential: set[str]) -> tuple[str, str]:
    """Name and target of a group by the layers that make its units."""
    parent = makers[0].rpartition(".")[0]
    if parent and makers[0].rpartition(".")[2] in _projections(model.get_submodule(parent)):
        return parent, "heads"
    if any(isinstance(model.get_submodule(name), CONVOLUTIONS) for name in makers):
        return makers[0], "conv"
    return makers[0], "ffn" if makers[0] in sequential else "linear"


# ------------------------------------------------------------------------------- trying them out


def _sound(
    model: nn.Module, forward: Callable[[nn.Module], Tensor], groups: list[Group]
) -> list[Group]:
    """The groups that pass the trial together; halved until those that do not are alone."""
    if not groups or _agrees(model, forward, groups):
        return groups
    if len(groups) == 1:
        return []
    half = len(groups) // 2
    one, other = (_sound(model, forward, part) for part in (groups[:half], groups[half:]))
    if not one or not other or _agrees(model, forward, one + other):
        return one + other
    return max(one, other, key=len)


def _agrees(model: nn.Module, forward: Callable[[nn.Module], Tensor], groups: list[Group]) -> bool:
    """Whether masked and compact agree with some three eighths of every group's units gone.

    An odd number of units goes, so that what only works with a multiple of two does not pass, and
    no parameter stays as it was initialised: behind a head of zeros everything would agree.
    """
    trial = copy.deepcopy(model).eval().double()
    chance = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    for module in trial.modules():
        if isinstance(module, BATCH_NORMS):  # fresh ones would hide what they do to a channel
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                if tensor is not None:
                    noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                    tensor.data.copy_(0.5 + noise)
    for parameter in trial.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.add_(_NOISE * noise.to(parameter.device))
    kept = {}
    for group in groups:
        mask = torch.ones(group.units, dtype=torch.bool)
        count = min(group.units - 1, 3 * group.units // 8 | 1)
        mask[chance.sample(range(group.units), count)] = False
        kept[group.name] = mask
    try:
        with torch.no_grad():
            expand(trial, groups, kept).apply(trial)
            masked = forward(trial)
            smaller = forward(_remove(trial, groups, kept))
    except Exception:  # a model that has lost channels fails in ways of its own
        return False
    if masked.shape != smaller.shape:
        return False
    scale = max(float(masked.abs().max()), 1e-12)
    return float((masked - smaller).abs().max()) <= _TOLERANCE * scale


# ------------------------------------------------------------------------------- taking them out


def _remove(model: nn.Module, groups: Sequence[Group], kept: Mapping[str, Tensor]) -> nn.Module:
    """What `compact` does, in place."""
    gone: dict[str, dict[str, set[int]]] = {}
    for group in groups:
        mask = kept.get(group.name)
        if mask is None or bool(mask.all()):
            continue
        if not mask.any():
            raise ValueError(f"nothing would be left of {group.name}")
        for tie in group.ties:
            side = "in" if tie.side == "in" else "out"
            channels = tie.index[~mask.cpu()].flatten().tolist()
            gone.setdefault(tie.layer, {"in": set(), "out": set()})[side].update(channels)
    for name, sides in gone.items():
        _cut(model.get_submodule(name), sorted(sides["out"]), sorted(sides["in"]))
    for name, attention in model.named_modules():
        projections = _projections(attention)
        if projections and f"{name}.{projections[0]}" in gone:
            _count_heads(attention, projections[0])
    return model


def _cut(layer: Any, outputs: list[int], inputs: list[int]) -> None:
    """Remove output and input channels of a layer, in place."""
    if isinstance(layer, BATCH_NORMS):
        cut.prune_batchnorm_out_channels(layer, outputs)
    elif isinstance(layer, nn.Linear):
        cut.prune_linear_out_channels(layer, outputs)
        cut.prune_linear_in_channels(layer, inputs)
    elif layer.groups > 1:  # whole groups, with the inputs that only they read
        layer.groups -= len(outputs) * layer.groups // layer.out_channels
        layer.in_channels -= len(inputs)
        cut.prune_conv_out_channels(layer, outputs)
    else:
        cut.prune_conv_out_channels(layer, outputs)
        cut.prune_conv_in_channels(layer, inputs)


def _count_heads(attention: Any, projection: str) -> None:
    """Bring what an attention module says of its heads to the rows its projections have left."""
    width: Any = attention.get_submodule(projection).out_features
    heads = width // attention.attention_head_size
    for name in _HEADS:
        if hasattr(attention, name):
            setattr(attention, name, heads)
    for name in _WIDTHS:
        if hasattr(attention, name):
            setattr(attention, name, width)


# ---------------------------------------------------------------------- constants that are zero


def _unread_or_zero(
    model: nn.Module, groups: Sequence[Group], forward: Callable[[nn.Module], Tensor]
) -> dict[str, Tensor]:
    """group name -> boolean (units,): exactly zero in every layer that reads them, as it ran."""
    zero = {group.name: torch.ones(group.units, dtype=torch.bool) for group in groups}
    readers: dict[str, list[tuple[str, Tensor]]] = {}
    for group in groups:
        for tie in group.ties:
            if tie.side == "in":
                readers.setdefault(tie.layer, []).append((group.name, tie.index))

    def hook(name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            data = inputs[0].detach()
            dim = -1 if isinstance(module, nn.Linear) else 1
            silent = (data == 0).movedim(dim, 0).flatten(1).all(1).cpu()
            for group, index in readers[name]:
                zero[group] &= silent[index].all(1)

        return look

    with models.looking(model), torch.no_grad():
        handles = [
            model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in readers
        ]
        try:
            forward(model)
        finally:
            for handle in handles:
                handle.remove()
    return zero
