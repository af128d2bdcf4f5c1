"""Models that are not listed: timm's, image classifiers of Hugging Face, and those of factories.

Each is built, described for a checkpoint and rebuilt from that; `models` is what others call.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from pruneflow.errors import InputError, first_line, unknown
from pruneflow.workloads import factories
from pruneflow.workloads.splits import MEAN, RGB, STD

TIMM, HUGGING_FACE, FACTORY = "timm", "transformers_images", "factory"  # builders of checkpoints
BUILDERS = (TIMM, HUGGING_FACE, FACTORY)
_PREFIX = {"timm:": TIMM, "hf:": HUGGING_FACE}


def builder(name: str) -> str | None:
    """What builds the model of a name; None for a listed one."""
    for prefix, known in _PREFIX.items():
        if name.startswith(prefix):
            return known
    return FACTORY if factories.is_factory(name) else None


def check(name: str) -> None:
    """See that what a name says is there, before data are read.

    Raises:
        InputError: a missing package, an unknown name, or a factory that cannot be imported.
    """
    if builder(name) == FACTORY:
        factories.load_factory("model", name)
    elif builder(name) == TIMM:
        timm, architecture = _timm(name), name.removeprefix("timm:")
        if architecture.partition(".")[0] not in timm.list_models():
            raise unknown("timm model", architecture, timm.list_models())


def build(
    name: str, classes: int, *, weights: str, load: bool, vocabulary: int | None
) -> nn.Module:
    """A model with `classes` outputs, with published weights where `weights` is `pretrained`.

    Otherwise, and without `load`, they are new, drawn by torch's global generator. A factory is
    given the number of classes and, if it has a parameter `vocab_size`, the number of tokens.

    Raises:
        InputError: what cannot be made, with the reason.
    """
    pretrained, kind = weights == "pretrained", builder(name)
    if kind == FACTORY and pretrained:
        raise InputError(
            f"weights=pretrained is not valid for model={name}: load them in the factory, or pass "
            "weights=<safetensors file>"
        )
    if kind == FACTORY:
        return _from_factory(name, classes, vocabulary)
    if kind == TIMM:
        return _from_timm(name, classes, pretrained and load)
    return _from_hugging_face(name, classes, pretrained and load)


def describe(name: str, model: nn.Module) -> dict[str, object]:
    """What `rebuild` needs beside the model's name and classes, as JSON values."""
    kind = builder(name)
    if kind != HUGGING_FACE:
        return {"builder": kind}
    from pruneflow.workloads import encoders

    return {"builder": kind, "config": encoders.described(model)}


def rebuild(structure: Mapping[str, Any]) -> nn.Module:
    """A model as a checkpoint's structure describes it, with new weights.

    Raises:
        InputError: a factory or package that is not there: what to import.
    """
    name, classes = str(structure["model"]), int(structure["classes"])
    if structure["builder"] == FACTORY:
        return _from_factory(name, classes, structure.get("vocabulary"))
    if structure["builder"] == TIMM:
        return _from_timm(name, classes, pretrained=False)
    from transformers import AutoModelForImageClassification

    from pruneflow.workloads import encoders

    config = encoders.config_of(structure)
    return cast(nn.Module, AutoModelForImageClassification.from_config(config).float())


def normalisation(name: str, model: nn.Module) -> tuple[RGB, RGB]:
    """Mean and deviation of colours that a published model expects; ImageNet's if it says none."""
    if builder(name) == TIMM:
        stated = getattr(model, "pretrained_cfg", {})
        mean, deviation = stated.get("mean"), stated.get("std")
    elif builder(name) == HUGGING_FACE:
        from transformers.image_processing_utils import BaseImageProcessor

        from pruneflow.workloads import encoders

        try:
            source = encoders.source_of(name, "none")
            stated, _ = BaseImageProcessor.get_image_processor_dict(source)
        except (OSError, ValueError):  # it has no such file
            return MEAN, STD
        mean, deviation = stated.get("image_mean"), stated.get("image_std")
    else:
        return MEAN, STD
    if mean is None or deviation is None or len(mean) != 3 or len(deviation) != 3:
        return MEAN, STD
    return (mean[0], mean[1], mean[2]), (deviation[0], deviation[1], deviation[2])


def check_rebuilds(structure: Mapping[str, Any], model: nn.Module, inputs: Any) -> None:
    """See that a checkpoint could be loaded: the model made again computes the same.

    Raises:
        InputError: a factory that makes another model each time, or gives the same one again.
    """
    from pruneflow.workloads import models

    name = structure["model"]
    again = rebuild(structure).to(next(model.parameters()).device)
    if again is model or {*map(id, again.parameters())} & {*map(id, model.parameters())}:
        raise InputError(f"model={name}: its factory returns the same module again, not a new one")
    try:
        models.load_state(again, model.state_dict())
    except RuntimeError as error:
        reason = f"another call of its factory makes another model ({first_line(error)})"
        raise InputError(f"model={name} cannot be saved and loaded: {reason}") from None
    with models.looking(model, again), torch.inference_mode():
        torch.manual_seed(0)
        first = models.logits(model, inputs)
        torch.manual_seed(0)
        second = models.logits(models.channels_last(again), inputs)
    if not torch.equal(first, second):
        raise InputError(
            f"model={name} cannot be saved and loaded: with the same state dict it computes "
            "something else when its factory makes it again (keep all it computes with in "
            "parameters and buffers)"
        )


def _from_factory(name: str, classes: int, vocabulary: int | None) -> nn.Module:
    sizes = {} if vocabulary is None else {"vocab_size": vocabulary}
    model = factories.call("model", name, classes, **factories.accepted("model", name, sizes))
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise InputError(f"model={name!r} returned {kind}: it should return a torch.nn.Module")
    parameters = list(model.parameters())
    if not parameters:
        raise InputError(f"model={name!r} has no parameters: there is nothing to train or prune")
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in parameters):
        raise InputError(
            f"model={name!r} has lazy layers, whose sizes are not known: call it once in the "
            "factory, or state their sizes"
        )
    return model


def _timm(name: str) -> Any:
    if importlib.util.find_spec("timm") is None:
        raise InputError(f"model={name} needs timm: pip install 'pruneflow[timm]'")
    import timm

    return timm


def _from_timm(name: str, classes: int, pretrained: bool) -> nn.Module:
    timm, architecture = _timm(name), name.removeprefix("timm:")
    try:
        model: nn.Module = timm.create_model(
            architecture, pretrained=pretrained, num_classes=classes
        )
    except Exception as error:  # its builders and the hub raise what they meet
        way_out = "; pass weights=none or weights=<file>" if pretrained else ""
        raise InputError(f"model={name} cannot be made: {first_line(error)}{way_out}") from None
    return model


def _from_hugging_face(name: str, classes: int, pretrained: bool) -> nn.Module:
    from transformers import AutoConfig, AutoModelForImageClassification

    from pruneflow.workloads import encoders

    source = encoders.source_of(name, "pretrained" if pretrained else "none")
    with encoders.reading(source, "images"):
        config = AutoConfig.from_pretrained(source, num_labels=classes)
        if not pretrained:
            return cast(nn.Module, AutoModelForImageClassification.from_config(config).float())
    return encoders.load_weights(AutoModelForImageClassification, source, config, "images")
