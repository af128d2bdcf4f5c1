"""Stages `prune_iterative` and `prune_direct`: level by level."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruneflow.config import NEWEST, PruneConfig, base_config, given_for_base, short_model
from pruneflow.errors import InputError
from pruneflow.pruning import compaction, cost, groups, schedule
from pruneflow.pruning.compaction import Found
from pruneflow.pruning.criteria import CRITERIA
from pruneflow.pruning.granularity import Channels, Granularity, Weights
from pruneflow.pruning.groups import Group
from pruneflow.pruning.masks import Masks
from pruneflow.pruning.schedule import Step
from pruneflow.pruning.selection import Scores, drop_lowest, prunable_parameters
from pruneflow.report import static
from pruneflow.report.figures import RUN_FIGURES
from pruneflow.stages.experiment import Experiment, build, prepare, report_finished, timed
from pruneflow.stages.finetune import train_base
from pruneflow.stages.progress import Reporter, levels_table
from pruneflow.tracking import checkpoints, resume
from pruneflow.tracking.checkpoints import Checkpoint
from pruneflow.tracking.fingerprints import fingerprint, workload_fingerprint
from pruneflow.tracking.finished import (
    base_weights,
    find_base,
    fingerprint_of,
    newest_base,
    open_base,
)
from pruneflow.tracking.levels import Layer, Level, to_markdown
from pruneflow.tracking.run import Ended, Run, open_run
from pruneflow.workloads import models, training

# A shortfall that is told: further from the target than rounding to whole channels explains.
_SHORTFALL = 0.005


@dataclass(frozen=True)
class State:
    """A model between levels.

    Attributes:
        model: as it is fine-tuned; `compact` makes a smaller one at every level.
        granularity: what its next level chooses among.
        kept: what is left of that.
        groups: gives every group of channels of the model, for its compact form.
        units: group -> boolean (units of the unpruned model,), False = physically gone by now.
        notes: what of the model cannot be pruned, and why.
    """

    model: nn.Module
    granularity: Granularity
    kept: Masks
    groups: Callable[[], list[Group]]
    units: dict[str, Tensor]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Whole:
    """Counts of the unpruned model, which every level is measured against.

    Attributes:
        params: entries of every parameter tensor, by name.
        prunable: names of those that can be pruned.
        units: units that can be pruned, by their target; of single weights none.
        macs: multiply-accumulates of one sample.
    """

    params: dict[str, int]
    prunable: frozenset[str]
    units: dict[str, int]
    macs: int


@dataclass(frozen=True)
class Base:
    """The base run of a pruning run, there already or to be made.

    Attributes:
        fingerprint: of it.
        open: gives its id and model; told in which MLflow experiment to make it, if it must.
    """

    fingerprint: str
    open: Callable[[str], tuple[str, Checkpoint]]


def prune_iterative(
    config: PruneConfig, reporter: Reporter, *, experiment_id: str | None = None
) -> Ended:
    """Each level removes `fraction` of what is left.

    With `experiment_id` the run is a new one there, and not the one that was handed over.
    """
    steps = schedule.iterative(config.fraction, config.iterations)
    return _prune("prune_iterative", config, steps, reporter, experiment_id)


def prune_direct(config: PruneConfig, reporter: Reporter) -> Ended:
    """One level goes straight to where the iterative schedule would end."""
    if {"iterations", "target_sparsity"} <= config.given:
        raise InputError(
            f"iterations={config.iterations} has no effect on prune_direct with target_sparsity, "
            "which it goes straight to: leave it out"
        )
    return _prune("prune_direct", config, schedule.direct(config.final_sparsity), reporter)


def _prune(
    stage: str,
    config: PruneConfig,
    steps: list[Step],
    reporter: Reporter,
    experiment_id: str | None = None,
) -> Ended:
    if config.named_base is not None:
        config = config.resolved(weights=base_weights(config.named_base))
    experiment, model = prepare(config, load=False)
    reporter.say(experiment.data.summary)
    config, data = experiment.config, experiment.data
    state = _start(experiment, model)
    base = _base(experiment, model, reporter)
    digest = fingerprint(stage, config, data.digest, base.fingerprint)
    before = resume.earlier(config.resume, digest, experiment_id)
    if before is not None and before.finished:
        return report_finished(before, reporter, experiment_id)

    name = config.run_name(stage)
    with open_run(
        stage,
        config,
        name=name,
        tags={
            "pruneflow.workload": workload_fingerprint(config, data.digest),
            "pruneflow.fingerprint": digest,
        },
        experiment_id=experiment_id,
        interrupted=None if before is None else before.id,
    ) as run:
        whole = _measure_whole(experiment, state)
        last = None if before is None else run.go_on()
        if last is None:
            experiment.log_workload(run)
            base_run, trained = base.open(run.experiment_id)
            models.load_state(model, trained.state)
            run.set_tags({"pruneflow.base_run": base_run})
            reporter.say(f"{stage} {name}: run {run.id}, from base run {base_run}")
        else:
            state = _restored(experiment, state, last)
            reporter.say(f"{stage} {name}: run {run.id} goes on after level {len(run.levels) - 1}")
        reporter.say("\n".join(f"  {note}" for note in _notes(state, whole)))
        reporter.plan(len(steps) * config.finetune_epochs)

        for step in [schedule.UNPRUNED, *steps][len(run.levels) :]:
            state, level = _level(experiment, state, whole, step, run, reporter)
            _tell(level, _warnings(config, whole, state, level, run), len(steps), reporter)
        _summarise(stage, experiment, whole, state, run)
    reporter.console.print(levels_table(run.levels))
    return run.ended


def _start(experiment: Experiment[PruneConfig], model: nn.Module) -> State:
    """What can be pruned of a model, by the configuration, and its groups of channels.

    Raises:
        InputError: patterns, targets or a model that leave nothing to prune.
    """
    config = experiment.config
    normalised = any(isinstance(module, groups.BATCH_NORMS) for module in model.modules())
    if "recalibrate_bn" in config.given and config.recalibrate_bn and not normalised:
        raise InputError(
            f"recalibrate_bn=True has no effect on {config.model}, which has no BatchNorm: leave "
            "it out"
        )

    @functools.cache
    def found() -> Found:
        return compaction.find_groups(model, experiment.probe, outputs=[experiment.head])

    if config.granularity == "weight":
        parameters = prunable_parameters(
            model,
            include=config.include,
            exclude=config.exclude,
            biases=config.prune_bias,
            products=experiment.uses,
        )
        weights = Weights(parameters)
        return State(model, weights, weights.everything(), lambda: found().groups, {})
    channels = _channels(experiment, model, found)
    units = {group.name: torch.ones(group.units, dtype=torch.bool) for group in found().groups}
    notes = (_left_out(found().left_out),) if found().left_out else ()
    return State(model, channels, channels.everything(), lambda: found().groups, units, notes)


def _restored(experiment: Experiment[PruneConfig], state: State, saved: Checkpoint) -> State:
    """A run's state after the level that a checkpoint was made of.

    Args:
        experiment: the run's.
        state: as it was before anything was pruned.
        saved: the level's checkpoint.

    Raises:
        InputError: a checkpoint that does not fit.
    """
    units = _from_text(saved.structure["units"])
    if experiment.config.form == "compact":
        model = training.to_machine(checkpoints.restore(saved), experiment.machine)
        state = _shrunk(experiment, state, model, units)
        for name, mask in state.kept.items():
            weight = f"{name}.weight"
            if weight in saved.masks:  # of filters that masks prune, and nothing can remove
                mask.copy_(saved.masks[weight].flatten(1).any(1))
        return state
    models.load_state(state.model, saved.state)
    left = units if isinstance(state.granularity, Channels) else saved.masks
    for name, mask in state.kept.items():
        if name in left:
            mask.copy_(left[name])
    return state


def _shrunk(
    experiment: Experiment[PruneConfig],
    state: State,
    smaller: nn.Module,
    left: Mapping[str, Tensor],
) -> State:
    """The state of a model from which units have been removed: channels numbered anew.

    Args:
        experiment: the run's.
        state: before.
        smaller: the model now.
        left: group -> boolean (units before,), False = removed.
    """
    assert isinstance(state.granularity, Channels)
    chosen = set(state.granularity.groups)
    before = state.groups()
    renumbered = groups.without(before, left)
    coupled = experiment.config.coupling == "group"
    candidates = renumbered if coupled else groups.filters(smaller, outputs=[experiment.head])
    own = [group for group in candidates if group.name in chosen]
    granularity = Channels(smaller, own, coupled=coupled)
    kept = granularity.everything()
    if not coupled:  # what is masked and could not be removed stays so
        gone = groups.removed(before, left)
        for name, mask in kept.items():
            there = torch.ones(len(state.kept[name]), dtype=torch.bool)
            there[gone.get((name, "out"), [])] = False
            mask.copy_(state.kept[name][there])
    units = {name: mask.clone() for name, mask in state.units.items()}
    for name, mask in left.items():
        if name in units:
            units[name][units[name].clone()] = mask.cpu()
    return State(smaller, granularity, kept, lambda: renumbered, units, state.notes)


def _channels(
    experiment: Experiment[PruneConfig], model: nn.Module, found: Callable[[], Found]
) -> Channels:
    """The channels that may be pruned, by the configuration."""
    config = experiment.config
    independent = config.coupling == "independent"
    heads = [experiment.head]
    candidates = groups.filters(model, outputs=heads) if independent else found().groups
    if not candidates and independent:
        raise InputError(
            f"coupling=independent prunes Conv2d filters, and {config.model} has none to prune: "
            "pass coupling=group"
        )
    if not candidates:
        reasons = "; ".join(sorted(set(found().left_out.values()))) or "it has no such layers"
        raise InputError(f"no channels can be removed from {config.model}: {reasons}")
    chosen = groups.choose(
        model,
        candidates,
        targets=config.targets,
        include=config.include,
        exclude=config.exclude,
    )
    return Channels(model, chosen, coupled=not independent)


def _base(experiment: Experiment[PruneConfig], model: nn.Module, reporter: Reporter) -> Base:
    """Decide on the base run: the one asked for, else the exact one, there already or to be made.

    Args:
        experiment: the pruning run's.
        model: its model, untrained and without given weights; a base run may train it.
        reporter: of the pruning run.

    Raises:
        InputError: here, before any run is open, for all that can be refused.
    """
    config = experiment.config
    base = experiment.with_config(base_config(config))
    digest = experiment.data.digest
    exact = fingerprint("finetune", base.config, digest, None)
    if config.base_run == NEWEST:
        wanted = {name: getattr(base.config, name) for name in given_for_base(config)}
        found = newest_base(workload_fingerprint(config, digest), wanted)
    else:
        found = config.base_run or find_base(exact)
    if found is not None:
        checkpoint = open_base(found, config, experiment.structure, digest)
        return Base(fingerprint_of(found), lambda _experiment_id: (found, checkpoint))

    untrained = model
    if config.weights != "none":
        untrained = build(
            base.config, base.classes, base.machine, load=True, tokenizer=base.tokenizer
        )

    def make(experiment_id: str) -> tuple[str, Checkpoint]:
        run = train_base(base, untrained, reporter, experiment_id=experiment_id)
        # not read back: where the run was sent may not answer at the moment
        return run.id, Checkpoint(base.structure, untrained.state_dict(), {})

    return Base(exact, make)


def _level(
    experiment: Experiment[PruneConfig],
    state: State,
    whole: Whole,
    step: Step,
    run: Run,
    reporter: Reporter,
) -> tuple[State, Level]:
    """Do one level and record it: prune, measure, fine-tune, measure."""
    config, data = experiment.config, experiment.data
    epochs = config.finetune_epochs if step.level else 0
    planned = (step.level - 1) * epochs

    def measure() -> tuple[float, float]:
        reporter.at(f"level {step.level}, evaluating", float(planned))
        return experiment.accuracy(model, data.test), experiment.accuracy(model, data.train)

    def train() -> float:
        def progress(epoch: int, share: float, loss: float) -> None:
            where = f"level {step.level}, epoch {epoch}/{epochs}"
            reporter.at(where, planned + epoch - 1 + share, loss)

        seconds = 0.0
        for epoch in experiment.train(
            model, run, epochs, level=step.level, after_step=keep_pruned, on_progress=progress
        ):
            seconds = epoch.total_seconds
        return seconds

    score_seconds = finetune_seconds = after_seconds = 0.0
    conv_params_masked = _conv_params(state.model)
    if step.level:
        (state, conv_params_masked), score_seconds = timed(
            lambda: _prune_level(experiment, state, step)
        )
    model = state.model
    masks = state.granularity.masks(state.kept)
    keep_pruned = masks.keeper(model)
    (test_before, train_before), before_seconds = timed(measure)
    test_after, train_after = test_before, train_before
    if epochs:
        finetune_seconds = train()
        planned += epochs
        (test_after, train_after), after_seconds = timed(measure)
    val_after, val_seconds = timed(lambda: experiment.accuracy(model, data.val))

    smaller, changed = _compact_form(experiment, state)
    test_compact = None
    if changed and step.level:
        experiment.recalibrate(smaller, step.level)
        test_compact = experiment.accuracy(smaller, data.test)
    layers = _layers(model, whole, step.level)
    zeros = sum(layer.zeros for layer in layers if layer.layer in whole.prunable)
    params = sum(whole.params.values())
    units = sum(_units(state).values())
    left: Mapping[str, Tensor] = {}
    if config.granularity == "channel":
        left = state.units if config.form == "compact" else state.kept
    level = Level(
        level=step.level,
        target_sparsity=step.target_sparsity,
        sparsity=zeros / sum(whole.params[name] for name in whole.prunable),
        params=params,
        params_left=1 - sum(layer.zeros for layer in layers) / params,
        macs=whole.macs,
        macs_left=cost.macs(model, experiment.uses)[1] / whole.macs,
        size_bytes=0,  # known once its checkpoint is written
        test_before=test_before,
        test_after=test_after,
        train_before=train_before,
        train_after=train_after,
        val_after=val_after,
        score_seconds=score_seconds,
        finetune_seconds=finetune_seconds,
        evaluate_seconds=before_seconds + after_seconds + val_seconds,
        channels_left=units / sum(whole.units.values()) if whole.units else None,
        conv_params_masked=conv_params_masked,
        conv_params_compact=_conv_params(smaller),
        params_compact=sum(p.numel() for p in smaller.parameters()),
        macs_compact=cost.macs(smaller, experiment.uses)[0],
        test_compact=test_compact,
    )
    structure = {"sizes": compaction.structure(model), "units": _as_text(left)}
    checkpoint = Checkpoint(experiment.structure | structure, model.state_dict(), masks)
    run.record(level, layers, checkpoint, experiment.tokenizer)
    return state, level


def _prune_level(
    experiment: Experiment[PruneConfig], state: State, step: Step
) -> tuple[State, int]:
    """Prune: choose, set to zero or remove; and how many parameters of convolutions masks keep."""
    config, model, granularity = experiment.config, state.model, state.granularity
    kept = state.kept
    _tighten(config, granularity, kept, step)
    masks = granularity.masks(kept)
    masks.without(granularity.laid_out_as_masks).keeper(model)()
    conv_params_masked = _conv_params(model) - _masked_out(model, masks)
    if config.form == "compact":
        left = _units_left(experiment, state)
        # laid out in memory as a restored one is, so that both compute the same to the last digit
        smaller = training.to_machine(
            compaction.compact(model, state.groups(), left), experiment.machine
        )
        state = _shrunk(experiment, state, smaller, left)
    experiment.recalibrate(state.model, step.level)
    return state, conv_params_masked


def _tighten(config: PruneConfig, granularity: Granularity, kept: Masks, step: Step) -> None:
    """Drop, of what the level before kept, what this level does not.

    The parameters that `laid_out_as_masks` has are set to zero there; the others are not yet.
    """
    criterion = CRITERIA[config.criterion]

    def scores(name: str) -> Scores:
        return granularity.scores(name, kept, criterion, (config.seed, step.level))

    for names in granularity.pools():
        pool = {name: kept[name] for name in names}
        drop_lowest(
            pool,
            scores,
            fraction=step.fraction,
            scope=config.scope,
            zero=granularity.laid_out_as_masks,
        )


def _units_left(experiment: Experiment[PruneConfig], state: State) -> dict[str, Tensor]:
    """Which units stay when a pruned model is made compact, by what was pruned of it."""
    if experiment.config.coupling == "group":
        return dict(state.kept)
    if experiment.config.coupling == "independent":
        return compaction.without_empty_filters(state.model, state.groups())
    return compaction.emptied(state.model, state.groups(), experiment.probe)


def _compact_form(experiment: Experiment[PruneConfig], state: State) -> tuple[nn.Module, bool]:
    """The compact form of a level's model, and whether its outputs are others."""
    config = experiment.config
    if config.form == "compact":
        return state.model, False
    if config.granularity == "weight" and not compaction.has_empty_channels(state.model):
        return state.model, False
    smaller = compaction.compact(state.model, state.groups(), _units_left(experiment, state))
    return smaller, config.coupling == "independent"


def _measure_whole(experiment: Experiment[PruneConfig], state: State) -> Whole:
    """Counts of the model before anything is pruned."""
    params = {name: p.numel() for name, p in state.model.named_parameters()}
    prunable = frozenset(state.granularity.parameters)
    macs, _ = cost.macs(state.model, experiment.uses)
    return Whole(params, prunable, _units(state), macs)


def _notes(state: State, whole: Whole) -> list[str]:
    """What of a model is not pruned, and which channels cannot be removed, with the reasons."""
    return [_not_pruned(state, whole), *state.notes]


def _not_pruned(state: State, whole: Whole) -> str:
    """What is not pruned, by kind of layer, with its share of the model's parameters."""
    rest: dict[str, int] = {}
    for name, params in whole.params.items():
        if name not in whole.prunable:
            layer, _, parameter = name.rpartition(".")
            kind = type(state.model.get_submodule(layer)).__name__
            kind = f"biases of {kind}" if parameter == "bias" else kind
            rest[kind] = rest.get(kind, 0) + params
    total = sum(whole.params.values())
    kinds = sorted(rest.items(), key=lambda item: -item[1])
    shown = [f"{kind} {100 * params / total:.3g} %" for kind, params in kinds]
    if len(shown) > 6:
        others = sum(params for _, params in kinds[5:])
        shown[5:] = [f"{len(kinds) - 5} other kinds {100 * others / total:.3g} %"]
    share = 100 * sum(rest.values()) / total
    return f"not pruned: {share:.3g} % of the parameters" + (f": {', '.join(shown)}" * bool(shown))


def _left_out(left_out: Mapping[str, str]) -> str:
    """Why channels of layers cannot be removed, with the number of layers for each reason."""
    layers: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        layers.setdefault(reason, []).append(name)
    return "channels cannot be removed from " + "; ".join(
        f"{names[0]}" + f" and {len(names) - 1} more" * (len(names) > 1) + f" ({reason})"
        for reason, names in sorted(layers.items(), key=lambda item: -len(item[1]))
    )


def _units(state: State) -> dict[str, int]:
    """How many units are left of each target; of single weights nothing."""
    if not isinstance(state.granularity, Channels):
        return {}
    left: dict[str, int] = {}
    for group in state.granularity.groups.values():
        kept = int(state.kept[group.name].count_nonzero())
        left[group.target] = left.get(group.target, 0) + kept
    return left


def _as_text(units: Mapping[str, Tensor]) -> dict[str, str]:
    """Which units are left, by group, as `structure.json` has them: "1101", a digit a unit."""
    return {name: "".join(map(str, mask.int().tolist())) for name, mask in units.items()}


def _from_text(units: Mapping[str, str]) -> dict[str, Tensor]:
    return {name: torch.tensor([one == "1" for one in text]) for name, text in units.items()}


def _conv_params(model: nn.Module) -> int:
    """Parameters of a model's convolutions, weights and biases."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    convolutions = (m for m in model.modules() if isinstance(m, kinds))
    return sum(p.numel() for conv in convolutions for p in conv.parameters(recurse=False))


def _masked_out(model: nn.Module, masks: Masks) -> int:
    """How many of those a model's masks prune."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return sum(
        mask.numel() - int(mask.count_nonzero())
        for name, mask in masks.items()
        if isinstance(model.get_submodule(name.rpartition(".")[0]), kinds)
    )


def _layers(model: nn.Module, whole: Whole, level: int) -> list[Layer]:
    """A row for every parameter tensor of the model, pruned or not, in model order."""
    rows = []
    for name, parameter in model.named_parameters():
        kind = type(model.get_submodule(name.rpartition(".")[0])).__name__
        params = whole.params[name]
        zeros = params - cost.nonzeros(parameter)
        shape = "x".join(map(str, parameter.shape))
        rows.append(Layer(level, name, kind, shape, params, zeros, zeros / params))
    return rows


def _tell(level: Level, warnings: list[str], levels: int, reporter: Reporter) -> None:
    """Say how a level went, and what is odd about it."""
    channels = "" if level.channels_left is None else f"channels left {level.channels_left:.4f}, "
    reporter.say(
        f"  level {level.level}/{levels}: {channels}sparsity {level.sparsity:.4f}, test "
        f"{level.test_before:.4f} -> {level.test_after:.4f}, train "
        f"{level.train_before:.4f} -> {level.train_after:.4f}"
    )
    for warning in warnings:
        reporter.say(f"    {warning}")


def _warnings(config: PruneConfig, whole: Whole, state: State, level: Level, run: Run) -> list[str]:
    """What a person should know of a level that the run has recorded."""
    warnings = []
    if emptied := _emptied(run, whole, level.level):
        instead = "" if config.scope == "layer" else ", or prune by scope=layer"
        warnings.append(f"nothing is left of {emptied}: exclude them{instead}")
    if config.granularity == "weight":
        asked = {"weights": (state.kept.sparsity, "whole weights only in every layer")}
    else:
        why = "whole units only, and one is left in every group"
        if config.coupling == "independent":
            why = "whole filters only"
            if config.form == "compact":
                why = "a filter goes with all that are tied to it"
        asked = {t: (1 - n / whole.units[t], why) for t, n in _units(state).items()}
    for target, (removed, why) in asked.items():
        if abs(removed - level.target_sparsity) > _SHORTFALL:
            warnings.append(
                f"asked to remove {level.target_sparsity:.4f} of {target}, removed "
                f"{removed:.4f}: {why}"
            )
    if config.form == "compact" and state.kept.kept < state.kept.total:
        left = state.kept.total - state.kept.kept
        warnings.append(
            f"{left} of the pruned filters cannot be removed from the model: they stay in it as "
            "zeros"
        )
    return warnings


def _emptied(run: Run, whole: Whole, level: int) -> str:
    """The pruned weights of which a level has left nothing: no signal passes their layers."""
    rows = [row for row in run.layers if row.level == level and row.layer in whole.prunable]
    names = [row.layer for row in rows if row.zeros == row.params and "weight" in row.layer]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _summarise(
    stage: str,
    experiment: Experiment[PruneConfig],
    whole: Whole,
    state: State,
    run: Run,
) -> None:
    """The run's own figures, and the text on its page."""
    config = experiment.config
    how = [config.criterion, config.scope]
    if config.granularity == "channel":
        how += [f"channels, {config.coupling}", config.form]
    title = f"{short_model(config.model)} on {experiment.data_name}\n{stage}, {', '.join(how)}"
    pruned = [layer for layer in run.layers if layer.layer in whole.prunable]
    for name, figure in RUN_FIGURES.items():
        run.log_figure(f"figures/{name}.png", static.draw(figure(run.levels, pruned, title)))
    first, last = run.levels[0], run.levels[-1]
    warnings = _warnings(config, whole, state, run.levels[-1], run)
    notes = "".join(f"{text[0].upper()}{text[1:]}.\n\n" for text in _notes(state, whole))
    bold = "".join(f"**{text[0].upper()}{text[1:]}**\n\n" for text in warnings)
    run.describe(
        f"**{config.model}** on **{experiment.data_name}**: `{stage}`, {', '.join(how)}, "
        f"seed {config.seed}.\n\n"
        f"{100 * last.params_left:.3g} % of the parameters left: test accuracy "
        f"{first.test_after:.4f} -> {last.test_after:.4f} after fine-tuning.\n\n"
        f"{bold}{to_markdown(run.levels)}\n\n{notes}"
        "Sparsity is zeros / prunable parameters; MACs left counts weights that are not zero, "
        "MACs compact what a dense kernel does in the compact form."
    )
