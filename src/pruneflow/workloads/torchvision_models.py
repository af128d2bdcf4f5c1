"""Torchvision's classifiers by their names, and the weights that it publishes for them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from pruneflow.errors import InputError, first_line

# Their auxiliary heads, for training on ImageNet, are left out: here they would train on nothing.
_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")
# Arguments of torchvision's constructors that its builders set for some published weights, with
# what they are otherwise: whether images are normalised anew, and the size of a vision transformer.
_OPTIONS: dict[str, Any] = {"transform_input": False, "image_size": 224}
_FORCE_SAFE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def names() -> list[str]:
    """Names of torchvision's classifiers."""
    return list(torchvision.models.list_models(module=torchvision.models))


def new(name: str, classes: int, options: Mapping[str, Any]) -> nn.Module:
    """A classifier with `classes` outputs and new weights; `options` are those of `describe`.

    Raises:
        ValueError: an option that is not known.
    """
    if strange := options.keys() - _OPTIONS.keys():
        raise ValueError(f"the option {min(strange)!r} is not known")
    fixed = {"aux_logits": False, "init_weights": True} if name in _WITH_AUXILIARY_HEADS else {}
    model: nn.Module = torchvision.models.get_model(
        name, weights=None, num_classes=classes, **fixed, **options
    )
    return model


def describe(model: nn.Module) -> dict[str, Any]:
    """The options that a model was made with, where they are unusual."""
    values = {name: getattr(model, name, usual) for name, usual in _OPTIONS.items()}
    return {name: value for name, value in values.items() if value != _OPTIONS[name]}


def published_options(name: str) -> dict[str, Any]:
    """What torchvision's builder sets for its ImageNet weights, without fetching them."""
    if name.startswith("vit_"):
        weights = torchvision.models.get_model_weights(name).DEFAULT
        return {"image_size": weights.meta["min_size"][0]}
    return {"transform_input": True} if name in _WITH_AUXILIARY_HEADS else {}


def published(name: str) -> nn.Module:
    """A model with its ImageNet weights and all its heads, as torchvision's builder loads it."""
    forced = os.environ.get(_FORCE_SAFE)
    os.environ[_FORCE_SAFE] = "1"  # torch.load reads tensors alone, also where a builder calls it
    try:
        model: nn.Module = torchvision.models.get_model(name, weights="DEFAULT")
        return model
    except Exception as error:  # torch.hub raises what network, disk or the file's bytes lead it to
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise InputError(
            f"the ImageNet weights of {name} could not be downloaded ({first_line(error)}): "
            f"pass weights=none, weights=<file>, or put torchvision's file into {folder}"
        ) from None
    finally:
        del os.environ[_FORCE_SAFE]
        if forced is not None:
            os.environ[_FORCE_SAFE] = forced
