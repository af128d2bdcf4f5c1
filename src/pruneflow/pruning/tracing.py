"""Tracing: which channels of a model hang together.

The one file that uses Torch-Pruning (Fang et al. 2023, https://arxiv.org/abs/2301.12900): its
dependency graph says which channels of which layers are the same. What it says is not believed but
tried: `find_groups` removes units and compares outputs.
"""

from __future__ import annotations

import collections
import copy
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
import torch_pruning
from scipy.cluster.hierarchy import DisjointSet
from torch import Tensor, nn
from torch_pruning._helpers import _HybridIndex
from torch_pruning.dependency import index_mapping, shape_infer

from pruneflow.pruning.compaction import MAKERS, Forward, channels, observe, projections, remove
from pruneflow.pruning.groups import BATCH_NORMS, CONVOLUTIONS, Group, Tie, entries, expand
from pruneflow.workloads import models

Side: TypeAlias = tuple[str, str]  # a layer, and `in` or `out`
Channel: TypeAlias = tuple[str, str, int]  # and the number of a channel there

_TOLERANCE = 1e-7  # relative, in float64
_NOISE = 0.02  # what initial weights of common layers are about
_STEPS = 4  # a layer's channels pass each dependency of a model once or twice, if they are followed
_UNCLEAR = "Torch-Pruning cannot follow its channels"


@dataclass(frozen=True)
class Removable:
    """What can be removed from a model, and what cannot."""

    groups: list[Group]  # whose units can be removed without changing what is left, in model order
    left_out: dict[str, str]  # layer -> why its channels cannot be removed


def find_groups(model: nn.Module, forward: Forward, *, outputs: Sequence[str]) -> Removable:
    """The groups of channels that can be removed from a model; it is left as it was.

    A unit is a set of channels that are tied: through residuals and concatenations, in one group
    of a grouped convolution, in one attention head. Units that reach the outputs (which the layers
    `outputs` make), or a normalisation over channels (LayerNorm, GroupNorm), stay: removing one
    changes the others.

    All groups are tried: of a copy whose parameters are all disturbed, an uneven share of every
    group's units is masked and removed, and in float64 the logits have to agree.
    """
    with models.looking(model):
        units, left_out = _units(model, forward, outputs)
        groups = _groups(model, units, _sequential(model, forward))
        shared = _shared_parameters(model)
        for group in groups:
            if any(name in shared for tie in group.ties for name in entries(model, tie)):
                left_out[group.name] = "it would change a weight that two layers share"
        groups = [group for group in groups if group.name not in left_out]
        sound = _sound(model, forward, groups)
    names = {group.name for group in sound}
    for group in groups:
        if group.name not in names:
            left_out[group.name] = "removing its channels changed the outputs when it was tried"
    makers = {layer for group in groups for layer in group.makers(model)}
    for name, module in model.named_modules():
        if isinstance(module, MAKERS) and name not in makers:
            left_out.setdefault(name, "nothing was found that reads its channels")
    return Removable(sound, left_out)


def _shared_parameters(model: nn.Module) -> set[str]:
    """All names of the parameters that have more than one."""
    every = list(model.named_parameters(remove_duplicate=False))
    counts = collections.Counter(id(parameter) for _, parameter in every)
    return {name for name, parameter in every if counts[id(parameter)] > 1}


def _units(
    model: nn.Module, forward: Forward, outputs: Sequence[str]
) -> tuple[list[dict[Side, list[int]]], dict[str, str]]:
    """The channels that each unit has of layers; and the layers whose channels stay, and why."""
    traced = copy.deepcopy(model).eval().requires_grad_(True)
    try:
        with warnings.catch_warnings(action="ignore"), torch.enable_grad():
            graph = _Graph(traced, forward)
    except Exception as error:  # it walks autograd's graph: what it meets there is not foreseen
        reason = f"its dependencies could not be traced ({type(error).__name__})"
        return [], {name: reason for name, _ in traced.named_modules() if name}

    tied, fixed = _tied(traced, graph, outputs)
    stays = {tied[channel]: reason for channel, reason in fixed.items()}
    units: dict[object, dict[Side, list[int]]] = {}
    left_out = {}
    for layer, side, number in tied:
        root = tied[layer, side, number]
        if root not in stays:
            units.setdefault(root, {}).setdefault((layer, side), []).append(number)
        elif side == "out":
            left_out[layer] = stays[root]
    return list(units.values()), left_out


def _tied(
    model: nn.Module, graph: _Graph, outputs: Sequence[str]
) -> tuple[DisjointSet, dict[Channel, str]]:
    """Sets of channels (layer, side, number) that go together; and those that stay, and why."""
    names = {module: name for name, module in model.named_modules()}
    tied = DisjointSet()
    fixed: dict[Channel, str] = {}

    def tie(first: Channel, other: Channel) -> None:
        tied.add(other)
        tied.merge(first, other)

    for maker, name in names.items():
        if not isinstance(maker, MAKERS) or maker not in graph.module2node:
            continue
        rows = [(name, "out", row) for row in range(len(maker.weight))]
        for channel in rows:
            tied.add(channel)
        if name in outputs:
            fixed |= dict.fromkeys(rows, "it makes the outputs")
        try:
            reached = graph.follow(maker)
        except _LostError as error:
            fixed |= dict.fromkeys(rows, str(error))
            continue
        for (module, side), pairs in reached.items():
            if channels(module):
                for number, row in pairs:
                    tie(rows[row], (names[module], side, number))
            elif reason := _holds(module, names):
                fixed |= {rows[row]: reason for _, row in pairs}
    for module, name in names.items():
        for first, *others in _wholes(name, module):
            tied.add(first)
            for other in others:
                tie(first, other)
    return tied, fixed


def _holds(reached: Any, names: Mapping[nn.Module, str]) -> str:
    """Why channels that reach what cannot lose any have to stay; "" if they need not."""
    if isinstance(reached, nn.Parameter):
        return "a parameter of no layer goes in"
    kind = type(reached).__name__
    if reached not in names:  # an operation
        return "they are the outputs" if kind == "_OutputOp" else ""
    if isinstance(reached, nn.InstanceNorm1d | nn.InstanceNorm2d) and not reached.affine:
        return ""  # works on each channel by itself
    return f"{kind} mixes them"


def _wholes(name: str, module: Any) -> Iterator[list[Channel]]:
    """The channels of each group of a grouped convolution, and of each head of an attention."""
    if isinstance(module, CONVOLUTIONS) and module.groups > 1:
        for number in range(module.groups):
            yield [
                (name, side, channel)
                for side in ("out", "in")
                for channel in _part(channels(module)[side], module.groups, number)
            ]
    if names := projections(module):
        rows = module.get_submodule(names[0]).out_features
        heads = rows // module.attention_head_size
        for number in range(heads):
            yield [(f"{name}.{n}", "out", row) for n in names for row in _part(rows, heads, number)]


def _part(total: int, parts: int, number: int) -> range:
    return range(number * (total // parts), (number + 1) * (total // parts))


class _LostError(Exception):
    """A layer's channels cannot be followed through the model; the text says why."""


class _Graph(torch_pruning.DependencyGraph):  # type: ignore[misc]
    """Torch-Pruning's graph of a model, walked in a number of steps that the model alone decides.

    Its own walk has no bound: where it takes the pixels of a shifted window for channels it goes
    on for hours. And one operation that it cannot work out ends it for all layers.
    """

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self._nodes: dict[Any, Any] = {}
        self.build_dependency(
            model, (), forward_fn=lambda copied, _: forward(copied), verbose=False
        )
        self._unclear: dict[Any, str] = {}
        for work in (shape_infer.init_shape_information, index_mapping.update_index_mapping):
            for module, node in self._nodes.items():
                self.module2node = {module: node}
                try:
                    work(self)
                except Exception as error:  # of this operation; the others may be clear
                    self._unclear[node] = type(error).__name__
        self.module2node = self._nodes
        # no tensor has more channels than some layer reads or makes
        widths = [width for module in self._nodes for width in channels(module).values()]
        self._widest = max(widths, default=0)
        self._steps = _STEPS * sum(len(node.dependencies) for node in self._nodes.values())

    def _build_dependency(self, module2node: dict[Any, Any]) -> None:
        super()._build_dependency(module2node)
        # shapes and mappings come next, of all operations at once: here it is one by one
        self._nodes, self.module2node = module2node, {}

    def follow(self, maker: nn.Module) -> dict[tuple[Any, str], set[tuple[int, int]]]:
        """Where the rows of a layer go: (module or operation, side) -> pairs of channel and row."""
        handler = self.get_pruner_of_module(maker).prune_out_channels
        rows = tuple(_HybridIndex(row, row) for row in range(channels(maker)["out"]))
        reached: dict[tuple[Any, str], set[tuple[int, int]]] = {}
        todo = [(self.module2node[maker], handler, rows)]
        seen = set(todo)
        while todo:
            node, handler, rows = todo.pop()
            if node in self._unclear:
                raise _LostError(
                    f"{_UNCLEAR} ({self._unclear[node]} in {node.module_class.__name__})"
                )
            side = "out" if self.is_out_channel_pruning_fn(handler) else "in"
            reached.setdefault((node.module, side), set()).update(rows)
            for dependency in node.dependencies:
                if dependency.is_triggered_by(handler):
                    step = (dependency.target, dependency.handler, self._mapped(dependency, rows))
                    if step[2] and step not in seen:
                        seen.add(step)
                        todo.append(step)
            if len(seen) > self._steps:
                raise _LostError(f"{_UNCLEAR} (in {self._steps} steps)")
        return reached

    def _mapped(self, dependency: Any, rows: tuple[Any, ...]) -> tuple[Any, ...]:
        """What rows are called behind a dependency."""
        for mapping in dependency.index_mapping:
            try:
                rows = rows if mapping is None else tuple(mapping(rows))
            except Exception as error:
                raise _LostError(f"{_UNCLEAR} ({type(error).__name__})") from None
            if len(rows) > self._widest:
                raise _LostError(f"{_UNCLEAR} (more of them than any layer has)")
        if any(row.root_idx is None for row in rows):
            raise _LostError(f"{_UNCLEAR} (through repeated heads)")
        return rows


def _sequential(model: nn.Module, forward: Forward) -> set[str]:
    """Names of the linear layers that see a sequence, or a map: more than a vector a sample."""
    names = set()

    def look(name: str, layer: nn.Module, inputs: Tensor) -> None:
        if isinstance(layer, nn.Linear) and inputs.dim() > 2:
            names.add(name)

    observe(model, forward, look)
    return names


def _groups(
    model: nn.Module, units: Sequence[Mapping[Side, list[int]]], sequential: set[str]
) -> list[Group]:
    """Units gathered into groups: those that own as many channels of the same layers."""
    alike: dict[tuple[tuple[str, str, int], ...], list[Mapping[Side, list[int]]]] = {}
    for unit in units:
        signature = sorted((*side, len(numbers)) for side, numbers in unit.items())
        alike.setdefault(tuple(signature), []).append(unit)

    order = {name: number for number, (name, _) in enumerate(model.named_modules())}
    groups = []
    for members in alike.values():
        sides = sorted(members[0], key=lambda side: (order[side[0]], side[1]))
        members.sort(key=lambda unit: min(unit[sides[0]]))
        ties = tuple(
            Tie(*side, torch.tensor([sorted(unit[side]) for unit in members])) for side in sides
        )
        makers = list(Group("", "", ties).makers(model))
        if makers and any(tie.side == "in" for tie in ties):  # made by weights, and read
            groups.append(Group(*_kind(model, makers, sequential), ties))
    groups.sort(key=lambda group: order[group.ties[0].layer])
    # one layer's channels can fall into several groups, whose names have to differ
    seen: collections.Counter[str] = collections.Counter()
    for number, group in enumerate(groups):
        seen[group.name] += 1
        if seen[group.name] > 1:
            groups[number] = replace(group, name=f"{group.name}#{seen[group.name]}")
    return groups


def _kind(model: nn.Module, makers: list[str], sequential: set[str]) -> tuple[str, str]:
    """Name and target of a group by the layers that make its units."""
    parent, _, attribute = makers[0].rpartition(".")
    if attribute in projections(model.get_submodule(parent)):
        return parent, "heads"
    if any(isinstance(model.get_submodule(name), CONVOLUTIONS) for name in makers):
        return makers[0], "conv"
    return makers[0], "ffn" if makers[0] in sequential else "linear"


def _sound(model: nn.Module, forward: Forward, groups: list[Group]) -> list[Group]:
    """The groups that pass the trial together; halved until those that do not are alone."""
    if not groups or _agrees(model, forward, groups):
        return groups
    if len(groups) == 1:
        return []
    half = len(groups) // 2
    first, second = (_sound(model, forward, part) for part in (groups[:half], groups[half:]))
    if not first or not second or _agrees(model, forward, first + second):
        return first + second
    return max(first, second, key=len)


def _agrees(model: nn.Module, forward: Forward, groups: list[Group]) -> bool:
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
            smaller = forward(remove(trial, groups, kept))
    except Exception:  # a model that has lost channels fails in ways of its own
        return False
    scale = max(float(masked.abs().max()), 1e-12)
    return masked.shape == smaller.shape and bool(
        (masked - smaller).abs().max() <= _TOLERANCE * scale
    )
