"""The configuration of each stage: names, types, help and limits, in one place.

A value comes from the caller, else from the preset, where a model's own settings go before the
stage's and those before everyone's. Configurations are frozen; nothing is deleted or filled in
later except what only the machine can tell (`device` left to `auto`, `threads` not given).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from pruneflow.errors import InputError, unknown
from pruneflow.inference import EAGER, ENGINES, FORMS
from pruneflow.pruning import TARGETS, schedule
from pruneflow.pruning.criteria import CRITERIA
from pruneflow.workloads.datasets import DATASETS, IMAGES, TEXTS

PRESET = "preset"  # what MLproject passes for a parameter that was not given
NEWEST = "newest"  # of base_run, in place of an id


def short_model(model: str) -> str:
    """A model's name without where it comes from, as runs and files can be called."""
    name = model.removeprefix("hf:").rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.\-]+", "-", name)[:100]


def reads_texts(model: str) -> bool:
    """Whether a model's name means an encoder of texts."""
    return model == "bert" or model.startswith("hf:")


def _names(value: object) -> object:
    """'a, b' -> ('a', 'b'); one number is a list of one; lists pass through."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return (value,) if isinstance(value, int) else value


def _once(value: tuple[int, ...]) -> tuple[int, ...]:
    """Each number once, in the order given."""
    return tuple(dict.fromkeys(value))


def _criterion(value: str) -> str:
    if value not in CRITERIA:
        raise unknown("criterion", value, CRITERIA)
    return value


def _among(kind: str, valid: Sequence[str]) -> Callable[[tuple[str, ...]], tuple[str, ...]]:
    """What refuses names that are not valid, or come twice."""

    def check(value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in valid:
                raise unknown(kind, name, valid)
        return tuple(dict.fromkeys(value))

    return check


def _dataset(value: str) -> str:
    if value not in DATASETS:
        raise unknown("data set", value, DATASETS)
    return value


Fraction = Annotated[float, Field(gt=0, lt=1)]
_UNUSUAL = ("independent", "compact")  # what a run's name says of coupling and form
Count = Annotated[int, Field(ge=1)]
Counts = Annotated[tuple[Count, ...], BeforeValidator(_names), AfterValidator(_once)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """The configuration of a stage: frozen, and nothing in it that is not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    _given: frozenset[str] = PrivateAttr(default=frozenset())

    @property
    def given(self) -> frozenset[str]:
        """Names of the parameters that the caller gave, rather than the preset."""
        return self._given

    def resolved(self, **values: object) -> Self:
        """A copy in which what was left to the machine is settled."""
        copy = self.model_copy(update=values)
        copy._given = self._given
        return copy


class Settings(Config):
    """What every training stage needs: the model, its data, how it is trained, and on what."""

    model: Annotated[str, Field(min_length=1)] = Field(
        description="alexnet, vgg16, resnet18, resnet50, any other torchvision classifier, bert, "
        "or hf:<hub id or folder> of another encoder"
    )
    dataset: Annotated[str, AfterValidator(_dataset)] = Field(
        description=f"images: {', '.join(IMAGES)}; texts: {', '.join(TEXTS)} (reviews: synthetic)"
    )
    data_dir: str | None = Field(
        None, description="folder of the data set, instead of the Hugging Face hub"
    )
    weights: Annotated[str, Field(min_length=1)] = Field(
        description="none (new), pretrained (downloaded), a safetensors file or, for bert and hf:, "
        "a folder in Hugging Face layout"
    )
    preset: str = Field("quick", description="named defaults: quick or paper")
    image_size: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        description="side of the square images the model sees, in pixels; not for texts"
    )
    train_limit: Count | None = Field(
        None, description="use only this many training samples, an equal share of each class"
    )
    train_eval_samples: Count | None = Field(
        description="training samples that accuracy on the training set is taken of, drawn by the "
        "seed; all where the preset says nothing, as for paper"
    )
    batch_size: Count = Field(description="samples in a training step")
    learning_rate: Annotated[float, Field(gt=0)] = Field(
        description="learning rate of this stage's own training (the peak, under one_cycle)"
    )
    lr_schedule: Literal["one_cycle", "constant"] = Field(
        description="learning rate over one fine-tuning: one_cycle or constant"
    )
    optimizer: Literal["adamw", "sgd"] = Field(description="adamw, or sgd with momentum 0.9")
    weight_decay: Annotated[float, Field(ge=0)] = Field(description="of the optimizer")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        description="decides initial weights, split, data order, dropout and random scores"
    )
    resume: Annotated[str, Field(min_length=1)] = Field(
        "auto",
        description="auto (go on with an interrupted run of the same configuration, report a "
        "finished one), never, or the id of the run to go on with",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto, cpu or cuda")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="fp32, or bf16 (autocast; weights stay float32)"
    )
    threads: Count | None = Field(None, description="CPU threads; all cores when not given")


class FinetuneConfig(Settings):
    """Configuration of `finetune`: train a model on a data set, to be a base run for pruning."""

    epochs: Count = Field(description="passes over the training samples")

    @property
    def run_name(self) -> str:
        """What its run is called."""
        return f"base-{short_model(self.model)}-{self.dataset}-s{self.seed}"


class PruneConfig(Settings):
    """Configuration of `prune_iterative` and `prune_direct`."""

    granularity: Literal["weight", "channel"] = Field(
        description="what is removed: weight (single ones) or channel (filters, neurons, heads)"
    )
    criterion: Annotated[str, AfterValidator(_criterion)] = Field(
        description=f"scores of what to keep: {', '.join(CRITERIA)}"
    )
    scope: Literal["global", "layer"] = Field(
        description="where scores compete: global (channels: those of one target), or layer (each "
        "loses the same fraction)"
    )
    coupling: Literal["group", "independent"] | None = Field(
        description="channels: group (tied layers lose the same ones, so that masked and compact "
        "agree) or independent (every Conv2d by itself, weight only, as torch's ln_structured)"
    )
    targets: Annotated[Names, AfterValidator(_among("target", TARGETS))] = Field(
        (), description=f"channels of what: {', '.join(TARGETS)}; by default all the model has"
    )
    form: Literal["masked", "compact"] = Field(
        description="what is fine-tuned: masked (zeros in place), or compact (channels removed)"
    )
    fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="share of what is left that each level removes, in (0, 1); 0 for a control "
        "that is fine-tuned as long and stays dense"
    )
    iterations: Annotated[int, Field(ge=1, le=99)] = Field(
        description="number of levels; prune_direct goes to where they would end, in one level"
    )
    target_sparsity: Fraction | None = Field(
        None, description="sparsity of the last level, in (0, 1); given instead of fraction"
    )
    finetune_epochs: Annotated[int, Field(ge=0)] = Field(
        description="epochs of fine-tuning after each level; 0 is allowed"
    )
    base_epochs: Count = Field(description="epochs of the base run, when this run has to make one")
    include: Names = Field(
        (), description="prune only layers whose name matches one of these patterns (a,b*)"
    )
    exclude: Names = Field((), description="leave out layers whose name matches one of these")
    prune_bias: bool = Field(description="prune biases too, as the 2020 study did")
    recalibrate_bn: bool = Field(
        description="re-estimate BatchNorm's statistics on training samples after each pruning"
    )
    base_run: str | None = Field(
        None,
        description="id of the finetune run to prune, or newest (the newest that fits); by default "
        "the one trained exactly as this configuration would train it, made if there is none",
    )

    @model_validator(mode="before")
    @classmethod
    def _fraction_from_target(cls, values: dict[str, Any]) -> dict[str, Any]:
        """With a target sparsity, the fraction a level follows from it and the iterations."""
        target, iterations = values.get("target_sparsity"), values.get("iterations")
        try:
            target, iterations = float(target), int(iterations)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return values  # not given, or for the field's own check to refuse
        if not (0 < target < 1 and iterations >= 1):
            return values
        # one level takes the target as it is given, so that it is prune_direct to the last digit
        one = iterations == 1
        fraction = target if one else -math.expm1(math.log1p(-target) / iterations)
        return values | {"fraction": fraction}

    @property
    def named_base(self) -> str | None:
        """Id of the base run, where the configuration names one."""
        return None if self.base_run == NEWEST else self.base_run

    def run_name(self, stage: str) -> str:
        """What its run is called: what tells it from others first."""
        what = ["direct"] if stage == "prune_direct" else []
        what += [self.criterion, self.granularity] if self.fraction else ["dense"]
        if self.granularity == "channel" and self.fraction:
            what += [kind for kind in (self.coupling, self.form) if kind in _UNUSUAL]
        return "-".join([*what, short_model(self.model), self.dataset, f"s{self.seed}"])

    @property
    def final_sparsity(self) -> float:
        """Sparsity that the last level aims at."""
        if self.target_sparsity is not None:
            return self.target_sparsity
        return schedule.iterative(self.fraction, self.iterations)[-1].target_sparsity


class BenchmarkConfig(Config):
    """Configuration of `benchmark_latency`: which levels are timed, how they are run, how long."""

    run: Names = Field(
        (),
        description="ids of pruning runs to time (a,b); by default the newest finished one",
    )
    study: str | None = Field(None, description="time the finished pruning runs of this study")
    model: str | None = Field(
        None, description="time the newest finished pruning run of this model"
    )
    levels: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_names), AfterValidator(_once)
    ] = Field((), description="levels to time (0,3,6); by default all")
    forms: Annotated[Names, AfterValidator(_among("form", FORMS))] = Field(
        (), description=f"forms to time: {', '.join(FORMS)}; by default all that a level has"
    )
    batch_sizes: Annotated[Counts, Field(min_length=1)] = Field(
        (1, 4, 16, 64, 256), description="samples in a batch (1,16)"
    )
    threads: Counts = Field(
        (), description="numbers of CPU threads to time with (1,2); all cores when not given"
    )
    device: Annotated[Names, AfterValidator(_among("device", ("cpu", "cuda")))] = Field(
        (), description="cpu, cuda or both (cpu,cuda); by default those that are there"
    )
    engines: Annotated[Names, AfterValidator(_among("engine", ENGINES))] = Field(
        (EAGER,),
        description=f"what runs the dense and compact forms: {', '.join(ENGINES)}; eager PyTorch "
        "is always timed, the others need the extra pruneflow[engines]",
    )
    image_size: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None, description="side of the images, in pixels; as the run had it when not given"
    )
    sequence_length: Annotated[int, Field(ge=1, le=512)] | None = Field(
        None, description="tokens of a text; the median of the run's data when not given"
    )
    rounds: Annotated[int, Field(ge=3, le=2000)] = Field(
        40,
        description="least number of times that each form is timed, side by side, while other work "
        "leaves the processors alone; under 30 there is no interval",
    )
    seconds: Annotated[float, Field(gt=0)] = Field(
        20.0,
        description="but no longer than this for a level, device and batch size (three rounds at "
        "least, and not counting what prepares and explains them)",
    )


class ReportConfig(Config):
    """Configuration of `report`: of which runs, and where it is written."""

    experiment: str | None = Field(
        None, description="name or id of the MLflow experiment; by default the current one"
    )
    study: str | None = Field(None, description="only the runs of this study")
    output_dir: Annotated[str, Field(min_length=1)] = Field(
        "pruneflow_report", description="folder that the report is written to"
    )
    reference: bool = Field(
        False, description="compare with the 2020 study: its own curves beneath, its claims judged"
    )


class SweepConfig(Config):
    """Configuration of `sweep`: which study is run, and how."""

    study: Annotated[str, Field(min_length=1)] = Field(
        "smoke", description="a study: smoke, paper, paper_small, or a YAML file of your own"
    )
    data_dir: str | None = Field(
        None,
        description="folder with a folder for each data set of the study (cifar10, sst2), instead "
        "of the Hugging Face hub",
    )
    workers: Count = Field(
        1, description="runs at a time, which share the CPU threads; benchmarks run alone"
    )
    dry_run: bool = Field(False, description="show what would be run, and start nothing")

    @property
    def study_name(self) -> str:
        """What the study's runs are tagged with: its name, or that of its file."""
        return Path(self.study).stem


def presets() -> list[str]:
    """Names of the presets that the package carries."""
    folder = resources.files("pruneflow") / "presets"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith("yaml"))


def _preset_values(name: str, kind: type[Settings], given: Mapping[str, Any]) -> dict[str, Any]:
    if name not in presets():
        raise unknown("preset", name, presets())
    text = (resources.files("pruneflow") / "presets" / f"{name}.yaml").read_text("utf-8")
    preset: dict[str, dict[str, Any]] = yaml.safe_load(text)
    model = str(given.get("model") or preset["all"]["model"])
    if "model" not in given and str(given.get("dataset")) in TEXTS:
        model = "bert"
    pretrained = given.get("weights", "none") != "none"
    encoder = model.startswith("hf:") or (model == "bert" and pretrained)
    own = preset["models"].get("hf" if encoder else model, {})
    of_stage = {name: own.get(name, {}) for name in ("finetune", "prune", "channel")}
    own = {name: value for name, value in own.items() if name not in of_stage}
    values = preset["all"] | {"model": model}
    finetune: dict[str, Any] = values | preset["finetune"] | own | of_stage["finetune"]
    if kind is FinetuneConfig:
        return finetune
    channel = given.get("granularity") == "channel"
    values |= preset["prune"] | (preset["channel"] if channel else {}) | own | of_stage["prune"]
    if channel:
        values |= of_stage["channel"]
    if given.get("coupling", values["coupling"]) == "independent":
        values["scope"] = "layer"
    return values | {"base_epochs": finetune["epochs"]}


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
    values = {
        name: value
        for name, value in given.items()
        if value is not None and value != PRESET and (value != "" or name == "model")
    }
    if "target_sparsity" in values and "fraction" in values:
        raise InputError(
            f"target_sparsity={values['target_sparsity']} and fraction={values['fraction']} both "
            "say how far to prune: give one of them"
        )
    ignored = sorted({"weights", "base_epochs"} & values.keys())
    if values.get("base_run", NEWEST) != NEWEST and ignored:
        raise InputError(
            f"{ignored[0]}={values[ignored[0]]} has no effect with base_run, whose model is taken "
            "as it is: leave one of them out"
        )
    try:
        config = kind.model_validate(_defaults(kind, values) | values)
    except ValidationError as error:
        raise InputError(_first_problem(error, kind)) from None
    config._given = frozenset(values)
    if isinstance(config, Settings) and config.dataset in TEXTS and "image_size" in values:
        raise InputError(
            f"image_size={config.image_size} has no effect with dataset={config.dataset}, which "
            "holds texts: leave it out"
        )
    if isinstance(config, PruneConfig):
        _refuse_without_effect(config)
    if isinstance(config, BenchmarkConfig):
        _refuse_two_ways(config)
    return config


def _defaults(kind: type[Config], given: Mapping[str, Any]) -> dict[str, Any]:
    """What the preset says; a stage that trains nothing has its defaults in its fields."""
    if not issubclass(kind, Settings):
        return {}
    return _preset_values(
        str(given.get("preset", kind.model_fields["preset"].default)), kind, given
    )


def _refuse_two_ways(config: BenchmarkConfig) -> None:
    """Refuse more than one way to say which runs are timed.

    Raises:
        InputError: naming two.
    """
    ways = sorted({"run", "study", "model"} & config.given)
    if len(ways) > 1:
        raise InputError(
            f"{ways[0]}={_shown(getattr(config, ways[0]))} and {ways[1]}="
            f"{_shown(getattr(config, ways[1]))} both say which runs to time: give one of them"
        )


def _refuse_without_effect(config: PruneConfig) -> None:
    """Refuse what was given and would change nothing.

    Raises:
        InputError: the first such parameter.
    """
    of_channels = {"coupling", "targets", "form"} & config.given
    if config.granularity == "weight" and of_channels:
        name = min(of_channels)
        raise InputError(
            f"{name}={_shown(getattr(config, name))} has no effect with granularity=weight: "
            "pass granularity=channel"
        )
    if config.granularity == "channel" and "prune_bias" in config.given:
        raise InputError(
            "prune_bias has no effect with granularity=channel: a channel's bias goes with it "
            "(coupling=group) or stays (coupling=independent)"
        )
    if config.coupling == "independent":
        if config.scope == "global":
            raise InputError(
                "scope=global does not go with coupling=independent, where every Conv2d is pruned "
                "by itself: pass scope=layer"
            )
        if config.targets not in ((), ("conv",)):
            raise InputError(
                f"targets={_shown(config.targets)} does not go with coupling=independent, which "
                "prunes Conv2d filters: pass coupling=group"
            )


def _shown(value: object) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


_OF_BASE = {"batch_size", "lr_schedule", "optimizer", "weight_decay"}


def given_for_base(config: PruneConfig) -> list[str]:
    """Names of what the caller gave that the newest base run has to have been trained with."""
    epochs = ["epochs"] if "base_epochs" in config.given else []
    return sorted(config.given & _OF_BASE) + epochs


def base_config(config: PruneConfig) -> FinetuneConfig:
    """The finetune configuration of the base run that a pruning run starts when it finds none.

    What the caller gave applies to it as well, except `learning_rate`, which is the pruning
    run's own; the rest is the preset's for `finetune`.
    """
    shared = (config.given & FinetuneConfig.model_fields.keys()) - {"learning_rate", "resume"}
    values = {name: getattr(config, name) for name in shared}
    if config.resume == "never":
        values["resume"] = "never"
    machine = {"device": config.device, "precision": config.precision, "threads": config.threads}
    return resolve(
        FinetuneConfig, values | machine | {"preset": config.preset, "epochs": config.base_epochs}
    )


def _first_problem(error: ValidationError, kind: type[Config]) -> str:
    problem = error.errors()[0]
    name = str(problem["loc"][0]) if problem["loc"] else "configuration"
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return str(cause)
    field = kind.model_fields.get(name)
    valid = f" (valid: {field.description})" if field is not None else ""
    reason = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{name}={problem['input']!r} is not valid: it should be {reason}{valid}"
