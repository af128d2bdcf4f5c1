"""Resolution: from what the caller gave to the configuration of a stage.

A value comes from the caller, else from the preset, where a model's own settings go before the
stage's and those before everyone's.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from pruneflow.config import (
    OF_RATE,
    OF_TRAINING,
    Config,
    FinetuneConfig,
    PruneConfig,
    SensitivityConfig,
    Settings,
)
from pruneflow.errors import InputError, unknown
from pruneflow.workloads.datasets import IMAGES, TEXTS

PRESET = "preset"  # what MLproject passes for a parameter that was not given
_ALTERNATIVES = {  # parameters that mean the same, of which one can be given -> what they mean
    ("target_sparsity", "fraction", "budget", "pattern"): "how far to prune",
    ("run", "study", "model"): "which runs to time",
}

C = TypeVar("C", bound=Config)


@functools.cache
def presets() -> dict[str, list[dict[str, Any]]]:
    """Name -> layers of the presets that the package carries."""
    files = (resources.files("pruneflow") / "presets").iterdir()
    return {f.name.removesuffix(".yaml"): yaml.safe_load(f.read_text("utf-8")) for f in files}


def _preset_values(kind: type[Settings], given: Mapping[str, Any]) -> dict[str, Any]:
    """The preset's values: of its layers, those that hold with what was given, the last first."""
    name = str(given.get("preset", kind.model_fields["preset"].default))
    if name not in presets():
        raise unknown("preset", name, presets())
    values: dict[str, Any] = {}
    for layer in presets()[name]:
        known = {**values, **given}
        model, texts = str(known.get("model")), str(known.get("dataset")) in TEXTS
        encoder = model.startswith("hf:") and str(given.get("dataset")) not in IMAGES
        published = model == "bert" and given.get("weights", "none") != "none"
        model = "hf" if published or encoder else model
        stage = "finetune" if kind is FinetuneConfig else "prune"
        known |= {"stage": stage, "model": model, "texts": texts}
        when = layer.get("when", {}).items()
        if all(known.get(name) in (v if isinstance(v, list) else [v]) for name, v in when):
            values |= layer
    values.pop("when")
    if issubclass(kind, PruneConfig):
        values["base_epochs"] = _preset_values(FinetuneConfig, given)["epochs"]
    return values


def resolve(kind: type[C], given: Mapping[str, Any]) -> C:
    """The configuration of a stage from what the caller gave, completed from the preset.

    A value that is None, empty or the word `preset` counts as not given.

    Raises:
        InputError: an unknown name, or a value that is not valid; the first one found.
    """
    known = kind.model_fields
    for name in given:
        if name not in known:
            raise unknown("parameter", name, known, listed=40)
    absent = (None, PRESET, "")
    values = {k: v for k, v in given.items() if v not in absent or (k == "model" and v == "")}
    for names, meaning in _ALTERNATIVES.items():
        both = [f"{name}={values[name]}" for name in names if name in values]
        if len(both) > 1:
            raise InputError(f"{' and '.join(both[:2])} both say {meaning}: give one of them")
    preset = _preset_values(kind, values) if issubclass(kind, Settings) else {}
    if issubclass(kind, SensitivityConfig):  # as pruning has them, and what that refuses is refused
        pruning = resolve(PruneConfig, {name: values[name] for name in _shared(values)})
        preset = {name: getattr(pruning, name) for name in _shared(known)}
    try:
        return kind.model_validate(preset | values, context=frozenset(values))
    except ValidationError as error:
        problem = error.errors()[0]
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, InputError):
            raise cause from None
        name, reason = str(problem["loc"][0]), problem["msg"].removeprefix("Input should be ")
        raise InputError(
            f"{name}={problem['input']!r} is not valid: it should be {reason} "
            f"(valid: {known[name].description})"
        ) from None


def _shared(names: Iterable[str]) -> list[str]:
    """Those of some names that are parameters of pruning too."""
    return [name for name in names if name in PruneConfig.model_fields]


def pruning_config(config: SensitivityConfig) -> PruneConfig:
    """The configuration of pruning that a sensitivity run takes its model, base and units from."""
    return resolve(PruneConfig, {name: getattr(config, name) for name in _shared(config.given)})


def given_for_base(config: PruneConfig) -> list[str]:
    """Names of what the caller gave that the newest base run has to have been trained with."""
    names = sorted(config.given & {"batch_size", *OF_TRAINING - OF_RATE})
    return [*names, "epochs"] if "base_epochs" in config.given else names


def base_config(config: PruneConfig) -> FinetuneConfig:
    """The finetune configuration of the base run that a pruning run starts when it finds none.

    What the caller gave applies to it as well, except for the learning rate and its schedule, which
    are the pruning run's own; the rest is the preset's for `finetune`.
    """
    shared = config.given & FinetuneConfig.model_fields.keys()
    shared -= OF_RATE | {"resume", "rewind_epoch"}
    shared |= {"preset", "device", "precision", "threads"}
    if not config.base_epochs:
        shared -= OF_TRAINING
    values = {name: getattr(config, name) for name in shared}
    if config.rewind == "weights" and config.named_base is None:
        values["rewind_epoch"] = config.rewind_epoch
    if config.resume == "never":
        values["resume"] = "never"
    base = resolve(FinetuneConfig, values | {"epochs": config.base_epochs})
    return base.resolved(image_size=config.image_size)  # None of data that turned out to be texts


def trained_as(config: PruneConfig, base: FinetuneConfig) -> PruneConfig:
    """A configuration that rewinds, with the training that follows: the rest of its base's.

    Raises:
        InputError: a base that was not trained any longer than to that epoch.
    """
    epochs = base.epochs - config.rewind_epoch
    if epochs < 1:
        raise InputError(
            f"rewind_epoch={config.rewind_epoch} leaves nothing to train again of the base's "
            f"{base.epochs} epochs: it should be less"
        )
    values = {name: getattr(base, name) for name in (*sorted(OF_TRAINING), "batch_size")}
    for name in sorted(config.given & values.keys()):
        if getattr(config, name) != values[name]:
            raise InputError(
                f"{name}={getattr(config, name)} has no effect with rewind={config.rewind}, which "
                f"trains as the base was, with {values[name]}: leave it out"
            )
    return config.resolved(finetune_epochs=epochs, **values)
