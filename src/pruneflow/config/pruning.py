"""Configurations of what prunes."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, create_model, model_validator

from pruneflow.config.base import NEWEST, Config, workload_name
from pruneflow.config.training import OF_RATE, OF_TRAINING, Settings
from pruneflow.errors import InputError
from pruneflow.parameters import (
    Count,
    Fractions,
    Names,
    Pattern,
    Positive,
    among,
)  # fmt: skip
from pruneflow.pruning import TARGETS, schedule
from pruneflow.pruning.budgets import Budget
from pruneflow.pruning.criteria import CRITERIA, OF_CHANNELS, OF_OUTPUTS, OF_SAMPLES, SCALE, needs
from pruneflow.pruning.densities import SCOPES
from pruneflow.pruning.schedule import SCHEDULES

_ROUNDING = 1e-9  # of a sparsity that levels lead to


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
    lose the same), row (every output of every layer does), erk, lamp or sensitivity (as far as
    each bears, by sensitivity_run)"""
    sensitivity_run: str | None = None
    """of scope=sensitivity: id of a sensitivity run, or newest (of the same model, samples, seed,
    granularity, criterion and coupling; the default)"""
    max_layer_sparsity: Annotated[float, Field(gt=0, le=1)] = 1.0
    """no layer (channels: group) is pruned further than this, in (0, 1]; where layers compete
    (scope global or lamp) the others are instead"""
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
    rewind: Literal["none", "weights", "learning_rate"] = "none"
    """after each level train again as the base was from rewind_epoch on: with its values of then of
    what is kept (weights), or as it is (learning_rate)"""
    rewind_epoch: Annotated[int, Field(ge=0)] = 0
    """epoch of the base run that rewind goes back to; 0 is its beginning"""
    distill: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """share of the loss that is the distance to the base's outputs, in [0, 1)"""
    temperature: Positive = 4.0
    """what both outputs are divided by before distill compares them"""
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
            spreading = ["scope", "sensitivity_run", "max_layer_sparsity", "prune_bias"]
            self._refuse(spreading, f"{reason}: leave it out")
        seen = set(needs(CRITERIA[self.criterion]))
        if self.granularity == "weight" and seen & {*OF_CHANNELS}:
            self._refuse(["criterion"], "scores whole channels: pass granularity=channel")
        if not seen & {*OF_SAMPLES}:
            reason = f"has no effect with criterion={self.criterion}, which sees no samples"
            self._refuse(["calibration_samples"], f"{reason}: leave it out")
        if self.granularity == "channel" and SCOPES[self.scope].single_weights:
            self._refuse(["scope"], "spreads single weights: pass scope=global, layer or lamp")
        if not SCOPES[self.scope].of_curves:
            reason = f"has no effect with scope={self.scope}: pass scope=sensitivity"
            self._refuse(["sensitivity_run"], reason)
        if self.coupling == "independent" and seen & {SCALE, *OF_OUTPUTS}:
            reason = "needs the layers that are tied to a filter: pass coupling=group"
            self._refuse(["criterion"], reason)
        alone = "does not go with coupling=independent, which prunes every Conv2d by itself"
        if self.coupling == "independent" and self.scope != "layer":
            self._refuse(["scope"], f"{alone}: pass scope=layer")
        if self.coupling == "independent":
            self._refuse(["budget"], f"{alone}: pass coupling=group")
        if self.granularity == "weight" and self.cost_budget and self.cost_budget.measured:
            self._refuse(["budget"], "times the compact form: pass granularity=channel")
        if self.coupling == "independent" and self.targets not in ((), ("conv",)):
            self._refuse(["targets"], f"{alone}: pass coupling=group")
        return self

    @model_validator(mode="after")
    def _recovery_has_effect(self) -> Self:
        if not self.distill:
            self._refuse(["temperature"], "has no effect without distill: leave it out")
        if self.rewind == "none":
            self._refuse(["rewind_epoch"], "has no effect without rewind: pass rewind=weights")
            if not self.finetune_epochs:
                makes_base = self.named_base is None and self.base_epochs
                reason = "has no effect with finetune_epochs=0, which trains nothing: leave it out"
                self._refuse(["distill", *(OF_RATE if makes_base else OF_TRAINING)], reason)
            self._refuse_warmup(self.finetune_epochs)
            return self
        reason = (
            f"has no effect with rewind={self.rewind}, which trains as the base was: leave it out"
        )
        self._refuse([*OF_RATE, "finetune_epochs"], reason)
        if self.rewind == "weights" and self.form == "compact":
            self._refuse(["form"], "lacks what rewind=weights goes back to: pass form=masked")
        if self.base_run == NEWEST:
            self._refuse(
                ["base_run"], f"is not known to rewind={self.rewind}: pass its id, or none"
            )
        if self.named_base is None and self.rewind_epoch >= self.base_epochs:
            raise InputError(
                f"rewind_epoch={self.rewind_epoch} leaves nothing to train again of a base run of "
                f"base_epochs={self.base_epochs}: it should be less"
            )
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

    @model_validator(mode="after")
    def _levels_can_be_reached(self) -> Self:
        if self.scope in ("layer", "row") and self.budget is None:
            reason = f"has no effect with scope={self.scope}, where all layers lose the same"
            self._refuse(["max_layer_sparsity"], f"{reason}: leave it out")
        if self.iterations == 1:
            self._refuse(["schedule"], "has no effect with iterations=1: leave it out")
        if self.budget is None and self.final_sparsity > self.max_layer_sparsity + _ROUNDING:
            raise InputError(
                f"max_layer_sparsity={self.max_layer_sparsity:g} keeps every layer from the "
                f"sparsity of the last level, {self.final_sparsity:.4g}: pass a larger one, or "
                "prune less far"
            )
        return self

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
        return "-".join([*parts, workload_name(self.model, self.dataset, self.seed)])

    @property
    def final_sparsity(self) -> float:
        """Sparsity that the last level aims at; of a budget, the share of the cost that goes."""
        if self.cost_budget is not None:
            return 1 - self.cost_budget.share
        if self.block is not None:
            return 1 - self.block[0] / self.block[1]
        last = schedule.iterative(self.fraction, self.iterations)[-1]
        return last.target_sparsity if self.target_sparsity is None else self.target_sparsity


class DirectConfig(PruneConfig):
    """Configuration of `prune_direct`."""

    @model_validator(mode="after")
    def _has_one_level(self) -> Self:
        self._refuse(
            ["schedule"], "has no effect on prune_direct, which has one level: leave it out"
        )
        for name in sorted({"budget", "pattern", "target_sparsity"} & self.given):
            reason = f"has no effect on prune_direct with {name}, which it goes straight to"
            self._refuse(["iterations"], f"{reason}: leave it out")
        return self


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
        if self.rewind != "none":
            raise InputError(
                f"rewind={self.rewind} is not valid: prune_gradual prunes within one training, "
                "and goes back to nothing: leave it out"
            )
        if self.form == "compact":
            raise InputError(
                "form=compact is not valid: prune_gradual masks while it trains, and the compact "
                "form can be had of what it ends with; leave it out"
            )
        return self


# What of pruning applies where each layer is pruned alone and nothing is trained after it.
_OF_PRUNING = (
    "model", "dataset", "columns", "data_dir", "weights", "preset", "image_size", "train_limit",
    "batch_size", "seed", "resume", "device", "precision", "threads", "granularity", "criterion",
    "calibration_samples", "coupling", "targets", "base_epochs", "include", "exclude",
    "prune_bias", "recalibrate_bn", "base_run",
)  # fmt: skip
_FIELDS = {name: PruneConfig.model_fields[name] for name in _OF_PRUNING}
_Shared: Any = create_model(
    "_Shared", __base__=Config, **{name: (f.annotation, f) for name, f in _FIELDS.items()}
)  # type: ignore[call-overload]


class SensitivityConfig(_Shared):  # type: ignore[misc]
    """Configuration of `sensitivity`: which layers of what are pruned alone, and how far."""

    fractions: Annotated[Fractions, Field(min_length=1)] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """shares of a layer (channels: of a group) that are pruned of it alone (0.1,0.5), in (0, 1)"""

    def run_name(self, stage: str) -> str:
        """What its run is called."""
        parts = [stage, self.criterion, self.granularity]
        parts += ["independent"] if self.coupling == "independent" else []
        return "-".join([*parts, workload_name(self.model, self.dataset, self.seed)])
