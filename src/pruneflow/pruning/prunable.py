"""Prunable: which units of a model may be pruned, by kind and by name."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from pruneflow.errors import InputError
from pruneflow.pruning import TARGETS, groups, tracing
from pruneflow.pruning.channels import Channels
from pruneflow.pruning.compaction import Forward
from pruneflow.pruning.groups import Group
from pruneflow.pruning.units import Units
from pruneflow.pruning.weights import OUTPUTS_FIRST, Weights

PRUNABLE = OUTPUTS_FIRST
# Also, in a model that has embeddings of tokens: the 2020 study pruned all of BERT.
PRUNABLE_WITH_TOKENS = (*PRUNABLE, nn.Embedding, nn.LayerNorm)
_SHOWN = 8


def find_units(
    model: nn.Module,
    forward: Forward,
    *,
    head: str,
    granularity: str,
    coupling: str | None,
    targets: Sequence[str],
    include: Sequence[str],
    exclude: Sequence[str],
    biases: bool,
    products: Collection[str],
) -> Units:
    """The units of an unpruned model that may be pruned, by the names of a configuration.

    `head` makes the outputs; `biases` and `products` are as for `prunable_parameters`.

    Raises:
        InputError: patterns, targets or a model that leave nothing to prune.
    """

    @functools.cache
    def traced() -> tracing.Removable:
        return tracing.find_groups(model, forward, outputs=[head])

    if granularity == "weight":
        parameters = prunable_parameters(
            model, include=include, exclude=exclude, biases=biases, products=products
        )
        return Weights(model, parameters, lambda: traced().groups, forward)
    coupled = coupling != "independent"
    candidates = traced().groups if coupled else groups.filters(model, outputs=[head])
    if not candidates and coupled:
        reasons = "; ".join(sorted(set(traced().left_out.values()))) or "it has no such layers"
        raise InputError(f"no channels can be removed from this model: {reasons}")
    if not candidates:
        raise InputError(
            "coupling=independent prunes Conv2d filters, and this model has none to prune: pass "
            "coupling=group"
        )
    chosen = prunable_groups(model, candidates, targets=targets, include=include, exclude=exclude)
    found = traced()
    return Channels(model, chosen, found.groups, found.left_out, head=head, coupled=coupled)


def prunable_parameters(
    model: nn.Module,
    *,
    include: Iterable[str],
    exclude: Iterable[str],
    biases: bool,
    products: Collection[str] = (),
) -> dict[str, nn.Parameter]:
    """The parameters that may be pruned, by name, in model order.

    Weights, and biases if asked for, of convolutions, linear layers and attention projections,
    and of whatever else multiplies a matrix (`products`, as `cost.positions` has seen them); in a
    model with embeddings of tokens, of these and of LayerNorm as well. A pattern (`classifier.*`,
    `conv?`) is matched against the layer's name and the parameter's. No `include` means all.

    Raises:
        InputError: a pattern that matches nothing, or nothing left to prune.
    """
    tokens = any(isinstance(module, nn.Embedding) for module in model.modules())
    kinds = PRUNABLE_WITH_TOKENS if tokens else PRUNABLE
    multiplying = {name.rpartition(".")[0] for name in products}
    known: dict[str, tuple[str, str]] = {}
    for name, _ in model.named_parameters():
        layer, _, attribute = name.rpartition(".")
        of_kind = isinstance(model.get_submodule(layer), kinds)
        if "bias" in attribute:
            prunable = biases and (of_kind or layer in multiplying)
        else:
            prunable = of_kind or name in products
        if prunable:
            known[name] = (name, layer)
    chosen = _choose(known, [layer for _, layer in known.values()], include, exclude)
    if not chosen:
        raise InputError("include and exclude leave nothing to prune")
    return {name: p for name, p in model.named_parameters() if name in chosen}


def prunable_groups(
    model: nn.Module,
    groups: Sequence[Group],
    *,
    targets: Sequence[str],
    include: Iterable[str],
    exclude: Iterable[str],
) -> list[Group]:
    """The groups that may be pruned; no targets means every kind there is.

    A pattern (`layer1.*`) is matched against the names of the layers that make a group's units,
    and the group's own; a group goes as a whole, with every layer that is tied to a matching one.

    Raises:
        InputError: a target the model has not, a pattern that matches nothing, nothing left.
    """
    present = [target for target in TARGETS if any(g.target == target for g in groups)]
    for target in targets:
        if target not in present:
            raise InputError(
                f"targets={target} is not in this model: what can be removed from it is "
                f"{', '.join(present) or 'nothing'}"
            )
    known = {
        group.name: (group.name, *group.makers(model))
        for group in groups
        if not targets or group.target in targets
    }
    chosen = _choose(known, known, include, exclude)
    if not chosen:
        raise InputError("include, exclude and targets leave no channels to prune")
    return [group for group in groups if group.name in chosen]


def _choose(
    known: Mapping[str, Iterable[str]],
    shown: Iterable[str],
    include: Iterable[str],
    exclude: Iterable[str],
) -> set[str]:
    """What patterns choose of what is known, each by several names; `shown` is for messages."""

    def matching(pattern: str) -> set[str]:
        names = {name for name, also in known.items() if any(fnmatchcase(a, pattern) for a in also)}
        if not names:
            layers = list(dict.fromkeys(shown))
            more = f" and {len(layers) - _SHOWN} more" * (len(layers) > _SHOWN)
            raise InputError(
                f"pattern {pattern!r} matches no prunable layer; there are: "
                f"{', '.join(layers[:_SHOWN])}{more}"
            )
        return names

    included = [matching(pattern) for pattern in include] or [set(known)]
    return set().union(*included).difference(*map(matching, exclude))
