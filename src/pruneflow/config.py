"""The configuration of each stage: names, types, help and limits, in one place.

Configurations are made by `resolution.resolve`, and frozen; nothing is deleted or filled in later
except what only the machine can tell (`device` left to `auto`, `threads` not given).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from pruneflow.errors import InputError
from pruneflow.inference import EAGER, ENGINES, FORMS
from pruneflow.parameters import (
    Count,
    Counts,
    Names,
    Numbers,
    Pattern,
    Pixels,
    Positive,
    Text,
    among,
)
from pruneflow.pruning import TARGETS, schedule
from pruneflow.pruning.budgets import Budget
from pruneflow.pruning.criteria import CRITERIA, OF_CHANNELS, OF_OUTPUTS, OF_SAMPLES, SCALE, needs
from pruneflow.pruning.densities import SCOPES
from pruneflow.pruning.schedule import SCHEDULES
from pruneflow.workloads.datasets import DATASETS, IMAGES, TEXTS

NEWEST = "newest"  # of base_run, in place of an id
OF_TRAINING = frozenset({"learning_rate", "lr_schedule", "optimizer", "weight_decay"})


def short_model(model: str) -> str:
    """A model's name without where it comes from, as runs and files can be called."""
    name = model.removeprefix("hf:").rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.\-]+", "-", name)[:100]


def reads_texts(model: str) -> bool:
    """Whether a model's name means an encoder of texts."""
    return model == "bert" or model.startswith("hf:")


def as_text(value: object) -> str:
    """A value as it is written on the command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


class Config(BaseModel):
    """The configuration of a stage. The text below a field, or its description, is its help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )
    _given: frozenset[str] = frozenset()

    def model_post_init(self, given: Any) -> None:
        """Keep the names that `resolve` has from the caller."""
        self._given = frozenset(given or ())

    @property
    def given(self) -> frozenset[str]:
        """Names of the parameters that the caller gave, rather than the preset."""
        return self._given

    def resolved(self, **values: object) -> Self:
        """A copy in which what was left to the machine is settled."""
        return self.model_copy(update=values)

    def _refuse(self, names: Collection[str], reason: str) -> None:
        """Refuse the first of these parameters that was given."""
        for name in sorted(self.given.intersection(names)):
            raise InputError(f"{name}={as_text(getattr(self, name))} {reason}")


class Settings(Config):
    """What every training stage needs: the model, its data, how it is trained, and on what."""

    model: Text
    """alexnet, resnet18, any other torchvision classifier, bert, or hf:<hub id or folder>"""
    dataset: Annotated[str, among("data set", DATASETS)] = Field(
        description=f"images: {', '.join(IMAGES)}; texts: {', '.join(TEXTS)} (reviews: synthetic)"
    )
    data_dir: str | None = None
    """folder of the data set, instead of the Hugging Face hub"""
    weights: Text
    """none (new), pretrained (downloaded), a safetensors file or, of encoders, a folder of them"""
    preset: str = "quick"
    """named defaults: quick or paper"""
    image_size: Pixels | None
    """side of the square images the model sees, in pixels; not for texts"""
    train_limit: Count | None = None
    """use only this many training samples, an equal share of each class"""
    train_eval_samples: Count | None
    """training samples that accuracy on the training set is taken of, drawn by the seed, or all"""
    batch_size: Count
    """samples in a training step"""
    learning_rate: Positive
    """learning rate of this stage's own training (the peak, under one_cycle)"""
    lr_schedule: Literal["one_cycle", "constant"]
    """learning rate over one fine-tuning: one_cycle or constant"""
    optimizer: Literal["adamw", "sgd"]
    """adamw, or sgd with momentum 0.9"""
    weight_decay: Annotated[float, Field(ge=0)]
    """of the optimizer"""
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    """decides initial weights, split, data order, dropout and random scores"""
    resume: Text = "auto"
    """auto (the same run goes on, or is shown if it is finished), never, or a run's id"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto, cpu or cuda"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32, or bf16 (autocast; weights stay float32)"""
    threads: Count | None = None
    """CPU threads; all cores when not given"""

    @model_validator(mode="after")
    def _texts_have_no_image_size(self) -> Self:
        if self.dataset in TEXTS:
            reason = f"has no effect with dataset={self.dataset}, which holds texts: leave it out"
            self._refuse(["image_size"], reason)
        return self


class FinetuneConfig(Settings):
    """Configuration of `finetune`: train a model on a data set, to be a base run for pruning."""

    epochs: Annotated[int, Field(ge=0)]
    """passes over the training samples; with 0 the model is measured and kept as it is"""

    @model_validator(mode="after")
    def _training_has_epochs(self) -> Self:
        if not self.epochs:
            reason = "has no effect with epochs=0, which trains nothing: leave it out"
            self._refuse(OF_TRAINING, reason)
        return self

    @property
    def run_name(self) -> str:
        """What its run is called."""
        return f"base-{short_model(self.model)}-{self.dataset}-s{self.seed}"


class PruneConfig(Settings):
    """Configuration of `prune_iterative` and `prune_direct`, and what `prune_gradual`'s has."""

    granularity: Literal["weight", "channel"]
    """what is removed: weight (single ones) or channel (filters, neurons, heads)"""
    criterion: Annotated[str, among("criterion", CRITERIA)] = Field(
        description=f"scores of what to keep: {', '.join(CRITERIA)}"
    )
    calibration_samples: Count = 1024
    """training samples, at the most, of which a criterion sees gradients or activations"""
    scope: Annotated[str, among("scope", SCOPES)]
    """how the kept share is spread: global (all compete; channels: those of one target), layer (all
    lose the same), row (every output of every layer does), erk or lamp"""
    max_layer_sparsity: Annotated[float, Field(gt=0, le=1)] = 1.0
    """no layer (channels: group) is pruned further than this, in (0, 1]; the others are instead"""
    pattern: Pattern | None = None
    """N:M, single weights: of every M consecutive inputs of an output N are kept at most (2:4), so
    that sparsity ends at 1 - N/M; incomplete blocks and vectors stay as they are"""
    coupling: Literal["group", "independent"] | None
    """channels: group (tied layers lose the same) or independent (Conv2d by Conv2d, weight only)"""
    targets: Annotated[Names, among("target", TARGETS)] = Field(
        (), description=f"channels of what: {', '.join(TARGETS)}; by default all the model has"
    )
    form: Literal["masked", "compact"]
    """what is fine-tuned: masked (zeros in place), or compact (channels removed)"""
    fraction: Annotated[float, Field(ge=0, lt=1)]
    """share of what is left that each level removes, in (0, 1); 0 for a control that stays dense"""
    iterations: Annotated[int, Field(ge=1, le=99)]
    """number of levels (of prune_gradual: prunings within its training); prune_direct goes to
    where they would end, in one level"""
    target_sparsity: Annotated[float, Field(gt=0, lt=1)] | None = None
    """sparsity of the last level, in (0, 1); given instead of fraction"""
    budget: Annotated[str, AfterValidator(lambda text: str(Budget.parse(text)))] | None = Field(
        None,
        description="what the last level may cost, instead of fraction: params:, macs:, bytes: (of "
        "the checkpoint) or latency: with a share of the unpruned model in (0, 1), as macs:0.5; "
        "latency is timed here, and no other run need agree",
    )
    schedule: Annotated[str, among("schedule", SCHEDULES)] = Field(
        "geometric",
        description="how levels get there: geometric (each removes fraction of what is left), "
        "linear or cubic (much at first, ever less)",
    )
    finetune_epochs: Annotated[int, Field(ge=0)]
    """epochs of fine-tuning after each level; 0 is allowed, but not for prune_gradual"""
    base_epochs: Annotated[int, Field(ge=0)]
    """epochs of the base run, when this run has to make one; 0 to prune at initialisation"""
    include: Names = ()
    """prune only layers whose name matches one of these patterns (a,b*)"""
    exclude: Names = ()
    """leave out layers whose name matches one of these"""
    prune_bias: bool
    """prune biases too, as the 2020 study did"""
    recalibrate_bn: bool
    """re-estimate BatchNorm's statistics on training samples after each pruning"""
    base_run: str | None = None
    """id of the finetune run to prune, or newest; by default exactly the one it would make"""

    @model_validator(mode="after")
    def _all_has_effect(self) -> Self:
        if self.named_base is not None:
            reason = "has no effect with base_run, whose model is taken as it is: leave one out"
            self._refuse(["base_epochs", "weights"], reason)
        if self.granularity == "weight":
            reason = "has no effect with granularity=weight: pass granularity=channel"
            self._refuse(["coupling", "form", "targets"], reason)
        else:
            reason = "has no effect with granularity=channel, whose biases coupling decides on"
            self._refuse(["prune_bias"], reason)
        if self.pattern is not None:
            if self.granularity != "weight":
                self._refuse(["pattern"], "is of single weights: pass granularity=weight")
            reason = f"has no effect with pattern={self.pattern}, which spreads by itself"
            self._refuse(["scope", "max_layer_sparsity", "prune_bias"], f"{reason}: leave it out")
        seen = set(needs(CRITERIA[self.criterion]))
        if self.granularity == "weight" and seen & {*OF_CHANNELS}:
            self._refuse(["criterion"], "scores whole channels: pass granularity=channel")
        if not seen & {*OF_SAMPLES}:
            reason = f"has no effect with criterion={self.criterion}, which sees no samples"
            self._refuse(["calibration_samples"], f"{reason}: leave it out")
        if self.granularity == "channel" and SCOPES[self.scope].single_weights:
            self._refuse(["scope"], "spreads single weights: pass scope=global, layer or lamp")
        if self.coupling == "independent" and seen & {SCALE, *OF_OUTPUTS}:
            reason = "needs the layers that are tied to a filter: pass coupling=group"
            self._refuse(["criterion"], reason)
        alone = "does not go with coupling=independent, which prunes every Conv2d by itself"
        if self.coupling == "independent" and self.scope != "layer":
            self._refuse(["scope"], f"{alone}: pass scope=layer")
        if self.coupling == "independent":
            self._refuse(["budget"], f"{alone}: pass coupling=group")
        if self.granularity == "weight" and self.budget and self.budget.startswith("latency"):
            self._refuse(["budget"], "times the compact form: pass granularity=channel")
        if self.coupling == "independent" and self.targets not in ((), ("conv",)):
            self._refuse(["targets"], f"{alone}: pass coupling=group")
        return self

    @model_validator(mode="after")
    def _fraction_of_target(self) -> Self:
        """The fraction of a level, where a target, pattern or budget says what it leads to."""
        if self.target_sparsity is None and self.pattern is None and self.budget is None:
            return self
        fraction = self.final_sparsity
        if self.iterations > 1:  # one level takes the target as it is, to the last digit
            fraction = -math.expm1(math.log1p(-fraction) / self.iterations)
        no_bias = {} if self.pattern is None else {"prune_bias": False}
        return self.resolved(fraction=fraction, **no_bias)

    @property
    def block(self) -> tuple[int, int] | None:
        """N and M of the pattern, if there is one."""
        if self.pattern is None:
            return None
        kept, _, size = self.pattern.partition(":")
        return int(kept), int(size)

    @property
    def cost_budget(self) -> Budget | None:
        """What the last level may cost, if that is what the schedule goes by."""
        return None if self.budget is None else Budget.parse(self.budget)

    @property
    def named_base(self) -> str | None:
        """Id of the base run, where the configuration names one."""
        return None if self.base_run == NEWEST else self.base_run

    def run_name(self, stage: str) -> str:
        """What its run is called: what tells it from others first."""
        parts = {"prune_direct": ["direct"], "prune_gradual": ["gradual"]}.get(stage, [])
        parts += [self.criterion, self.granularity] if self.fraction else ["dense"]
        if self.block is not None:
            parts.append("{}of{}".format(*self.block))
        if self.granularity == "channel" and self.fraction:
            unusual = ("independent", "compact")
            parts += [kind for kind in (self.coupling, self.form) if kind in unusual]
        return "-".join([*parts, short_model(self.model), self.dataset, f"s{self.seed}"])

    @property
    def final_sparsity(self) -> float:
        """Sparsity that the last level aims at; of a budget, the share of the cost that goes."""
        if self.cost_budget is not None:
            return 1 - self.cost_budget.share
        if self.block is not None:
            return 1 - self.block[0] / self.block[1]
        last = schedule.iterative(self.fraction, self.iterations)[-1]
        return last.target_sparsity if self.target_sparsity is None else self.target_sparsity


class GradualConfig(PruneConfig):
    """Configuration of `prune_gradual`."""

    schedule: Annotated[str, among("schedule", SCHEDULES)] = Field(
        "cubic", description=PruneConfig.model_fields["schedule"].description
    )

    @model_validator(mode="after")
    def _prunes_in_training(self) -> Self:
        if not self.finetune_epochs:
            raise InputError(
                "finetune_epochs=0 is not valid: prune_gradual prunes within a training, which has "
                "1 epoch or more"
            )
        if self.form == "compact":
            raise InputError(
                "form=compact is not valid: prune_gradual masks while it trains, and the compact "
                "form can be had of what it ends with; leave it out"
            )
        return self


class BenchmarkConfig(Config):
    """Configuration of `benchmark_latency`: which levels are timed, how they are run, how long."""

    run: Names = ()
    """ids of pruning runs to time (a,b); by default the newest finished one"""
    study: str | None = None
    """time the finished pruning runs of this study"""
    model: str | None = None
    """time the newest finished pruning run of this model"""
    levels: Numbers = ()
    """levels to time (0,3,6); by default all"""
    forms: Annotated[Names, among("form", FORMS)] = Field(
        (), description=f"forms to time: {', '.join(FORMS)}; by default all that a level has"
    )
    batch_sizes: Annotated[Counts, Field(min_length=1)] = (1, 4, 16, 64, 256)
    """samples in a batch (1,16)"""
    threads: Counts = ()
    """numbers of CPU threads to time with (1,2); all cores when not given"""
    device: Annotated[Names, among("device", ("cpu", "cuda"))] = ()
    """cpu, cuda or both (cpu,cuda); by default those that are there"""
    engines: Annotated[Names, among("engine", ENGINES)] = Field(
        (EAGER,), description=f"{', '.join(ENGINES)}; all but eager need pruneflow[engines]"
    )
    image_size: Pixels | None = None
    """side of the images, in pixels; as the run had it when not given"""
    sequence_length: Annotated[int, Field(ge=1, le=512)] | None = None
    """tokens of a text; the median of the run's data when not given"""
    rounds: Annotated[int, Field(ge=3, le=2000)] = 40
    """times that each form is timed at least, side by side and undisturbed; 30 for an interval"""
    seconds: Positive = 20.0
    """but no longer than this for a level, device and batch size (yet three rounds at least)"""


class ReportConfig(Config):
    """Configuration of `report`: of which runs, and where it is written."""

    experiment: str | None = None
    """name or id of the MLflow experiment; by default the current one"""
    study: str | None = None
    """only the runs of this study"""
    output_dir: Text = "pruneflow_report"
    """folder that the report is written to"""
    reference: bool = False
    """compare with the 2020 study: its own curves beneath, its claims judged"""


class SweepConfig(Config):
    """Configuration of `sweep`: which study is run, and how."""

    study: Text = "smoke"
    """a study: smoke, paper, paper_small, or a YAML file of your own"""
    data_dir: str | None = None
    """folder with a folder for each data set of the study (cifar10, sst2), instead of the hub"""
    workers: Count = 1
    """runs at a time, which share the CPU threads; benchmarks run alone"""
    dry_run: bool = False
    """show what would be run, and start nothing"""
