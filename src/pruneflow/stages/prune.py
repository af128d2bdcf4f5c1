"""Stages `prune_iterative`, `prune_direct` and `prune_gradual`: prune and fine-tune.

As in Han et al. 2015 (https://arxiv.org/abs/1506.02626): train, then in turns remove what matters
least and train what is left. Iterative and direct differ in their schedule alone; gradual has one
level, whose training the prunings of the schedule are spread over.
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import replace

import torch
from torch import Tensor, nn

from pruneflow.config import DirectConfig, GradualConfig, PruneConfig, short_model
from pruneflow.errors import InputError
from pruneflow.pruning import schedule
from pruneflow.pruning.criteria import CRITERIA, needs
from pruneflow.pruning.gradual import Gradual, pruned_after
from pruneflow.pruning.groups import BATCH_NORMS
from pruneflow.pruning.masks import Masks
from pruneflow.pruning.prunable import find_units
from pruneflow.pruning.schedule import Step
from pruneflow.pruning.selection import select, select_pattern
from pruneflow.pruning.units import Units
from pruneflow.report import charts, prose
from pruneflow.report.figures import RUN_FIGURES
from pruneflow.stages import base_run, budgets, sensitivity_run
from pruneflow.stages.base_run import Base
from pruneflow.stages.experiment import Experiment, prepare, report_finished
from pruneflow.stages.progress import Reporter, levels_table
from pruneflow.stages.recovery import Recovery, recovery
from pruneflow.tracking import resume
from pruneflow.tracking.checkpoints import Checkpoint
from pruneflow.tracking.fingerprints import fingerprint, workload_fingerprint
from pruneflow.tracking.finished import with_base
from pruneflow.tracking.levels import Layer, Level
from pruneflow.tracking.run import Ended, Run, open_run
from pruneflow.workloads import models
from pruneflow.workloads.training import Snapshot


def prune_iterative(
    config: PruneConfig, reporter: Reporter, *, experiment_id: str | None = None
) -> Ended:
    """Each level removes `fraction` of what is left, or as much as another schedule says.

    With `experiment_id` the run is a new one there, and not the one that was handed over.
    """
    steps = schedule.iterative(config.fraction, config.iterations, config.schedule)
    return _prune("prune_iterative", config, steps, reporter, experiment_id)


def prune_direct(config: DirectConfig, reporter: Reporter) -> Ended:
    """One level goes straight to where the iterative schedule would end."""
    return _prune("prune_direct", config, schedule.direct(config.final_sparsity), reporter)


def prune_gradual(config: GradualConfig, reporter: Reporter) -> Ended:
    """One level goes to where the iterative schedule would end, within its training."""
    return _prune("prune_gradual", config, schedule.direct(config.final_sparsity), reporter)


def _prune(
    stage: str,
    config: PruneConfig,
    steps: list[Step],
    reporter: Reporter,
    experiment_id: str | None = None,
) -> Ended:
    """Load a trained model, take it through a schedule level by level, and record each."""
    experiment, model = prepare(with_base(config), load=False)
    config, data = experiment.config, experiment.data
    reporter.say(data.summary)
    units = prunable_units(experiment, model)
    budgets.check(experiment, units)
    if isinstance(config, GradualConfig):
        _pruned_after(experiment)
    measured = sensitivity_run.load(config, data.digest, units)
    experiment = replace(experiment, curves=measured.curves)
    base = base_run.find_or_make(experiment, model, reporter)
    decisive = (config, data.digest, base.fingerprint, measured.fingerprint)
    tags = {
        "pruneflow.workload": workload_fingerprint(config, data.digest),
        "pruneflow.fingerprint": fingerprint(stage, *decisive),
    }
    tags |= {} if measured.run_id is None else {"pruneflow.sensitivity_run": measured.run_id}
    earlier = resume.earlier(config.resume, tags["pruneflow.fingerprint"], experiment_id)
    if earlier is not None and earlier.finished:
        return report_finished(earlier, reporter, experiment_id)

    name, interrupted = config.run_name(stage), None if earlier is None else earlier.id
    with open_run(
        stage, config, name=name, tags=tags, experiment_id=experiment_id, interrupted=interrupted
    ) as run:
        start = _load(experiment, units, base, run, goes_on=earlier is not None)
        reporter.say(f"{stage} {name}: run {run.id}{start}")
        reporter.say("\n".join(f"  {note}" for note in prose.notes(units)))
        reporter.plan(len(steps) * config.finetune_epochs)
        recover = recovery(experiment, units, base, run)
        experiment.log_counters(run)
        for step in [schedule.UNPRUNED, *steps][len(run.levels) :]:
            gradual = isinstance(config, GradualConfig) and step.level
            of_level = _gradual_level if gradual else _level
            with experiment.meter.measuring():
                level, layers = of_level(experiment, units, step, recover, run, reporter)
            reporter.say(f"  {prose.level_line(level, len(steps))}")
            for warning in prose.warnings(config, units, level, layers):
                reporter.say(f"    {warning}")
        experiment.log_total_energy(run, [one.energy_joules for one in run.levels], len(steps))
        _describe(stage, experiment, units, run)
    reporter.console.print(levels_table(run.levels))
    return run.ended


def prunable_units(experiment: Experiment[PruneConfig], model: nn.Module) -> Units:
    """What the configuration lets be pruned of a model; refused if that is nothing."""
    config = experiment.config
    normalised = any(isinstance(module, BATCH_NORMS) for module in model.modules())
    if "recalibrate_bn" in config.given and config.recalibrate_bn and not normalised:
        raise InputError(
            f"recalibrate_bn=True has no effect on {config.model}, which has no BatchNorm: leave "
            "it out"
        )
    units = find_units(
        model,
        experiment.probe,
        head=experiment.head,
        granularity=config.granularity,
        coupling=config.coupling,
        targets=config.targets,
        include=config.include,
        exclude=config.exclude,
        biases=config.prune_bias,
        products=experiment.uses,
    )
    units.check(config.criterion)
    experiment.check_statistics(units)
    axes = units.input_axes if config.block is not None else {}
    if config.block and all(
        units.masks[n].shape[axis] < config.block[1] for n, axis in axes.items()
    ):
        raise InputError(
            f"pattern={config.pattern} prunes nothing of this model: no prunable layer has "
            f"{config.block[1]} inputs"
        )
    return units


def _load(
    experiment: Experiment[PruneConfig], units: Units, base: Base, run: Run, *, goes_on: bool
) -> str:
    """Load the base run's model, or the last level of a run that goes on; says which."""
    saved = run.go_on() if goes_on else None
    if saved is not None:
        units.restore(saved.structure, saved.state, saved.masks)
        return f" goes on after level {len(run.levels) - 1}"
    experiment.log_workload(run)
    base_id, trained = base.open(run.experiment_id)
    models.load_state(units.model, trained.state)
    run.set_tags({"pruneflow.base_run": base_id})
    return f", from base run {base_id}"


def _level(
    experiment: Experiment[PruneConfig],
    units: Units,
    step: Step,
    recover: Recovery,
    run: Run,
    reporter: Reporter,
) -> tuple[Level, list[Layer]]:
    """One level: prune, measure, fine-tune, measure, record."""
    epochs = experiment.config.finetune_epochs if step.level else 0
    done = (step.level - 1) * epochs
    measured = {"score_seconds": 0.0, "finetune_seconds": 0.0, "evaluate_seconds": 0.0}

    def measure(when: str, *splits: str) -> None:
        reporter.at(f"level {step.level}, evaluating", done + epochs * (when == "after"))
        _measure(experiment, units, measured, when, *splits)

    def progress(epoch: int, share: float, loss: float) -> None:
        where = f"level {step.level}, epoch {epoch}/{epochs}"
        reporter.at(where, done + epoch - 1 + share, loss)

    if step.level:
        start = time.perf_counter()
        measured |= _remove_lowest(experiment, units, step)
        measured["score_seconds"] = time.perf_counter() - start
    measure("before", "test", "train")
    measured |= {f"{split}_after": measured[f"{split}_before"] for split in ("test", "train")}
    if epochs:
        recover.rewind(units)
        for epoch in experiment.train(
            units.model,
            run,
            epochs,
            level=step.level,
            after_step=units.keeper(),
            on_progress=progress,
            teacher=recover.teacher,
        ):
            measured["finetune_seconds"] = epoch.total_seconds
        measure("after", "test", "train")
    measure("after", "val")
    return _record(experiment, units, step, run, measured)


def _gradual_level(
    experiment: Experiment[PruneConfig],
    units: Units,
    step: Step,
    recover: Recovery,
    run: Run,
    reporter: Reporter,
) -> tuple[Level, list[Layer]]:
    """A level that is pruned within its training; "before" is right after the last pruning."""
    epochs, after = experiment.config.finetune_epochs, _pruned_after(experiment)
    last = max(after)
    measured = {"score_seconds": 0.0, "finetune_seconds": 0.0, "evaluate_seconds": 0.0}

    def prune(removal: Step) -> None:
        start = time.perf_counter()
        measured.update(_remove_lowest(experiment, units, removal))
        measured["score_seconds"] += time.perf_counter() - start
        if removal is after[last]:
            _measure(experiment, units, measured, "before", "test", "train")

    def progress(epoch: int, share: float, loss: float) -> None:
        reporter.at(f"epoch {epoch}/{epochs}", epoch - 1 + share, loss)

    def state() -> dict[str, Tensor]:
        """What the training's snapshot lacks, for `restore`."""
        values = {n: torch.tensor(v, dtype=torch.float64) for n, v in measured.items()}
        parts = {"masks": gradual.masks(), "measured": values}
        return {f"{part}.{n}": t for part, tensors in parts.items() for n, t in tensors.items()}

    def restore(saved: Snapshot) -> None:
        parts: dict[str, dict[str, Tensor]] = {"masks": {}, "measured": {}}
        for name, tensor in saved.tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        gradual.go_on(experiment.training_steps(saved.epoch), parts["masks"])
        measured.update({name: float(value) for name, value in parts["measured"].items()})

    gradual = Gradual(units, after, prune)
    train = functools.partial(
        experiment.train, beside=state, on_restore=restore, teacher=recover.teacher
    )
    for epoch in train(
        units.model, run, epochs, level=step.level, after_step=gradual, on_progress=progress
    ):
        pruning = measured["score_seconds"] + measured["evaluate_seconds"]
        measured["finetune_seconds"] = epoch.total_seconds - pruning
    reporter.at("evaluating", epochs)
    _measure(experiment, units, measured, "after", "test", "train", "val")
    return _record(experiment, units, step, run, measured)


def _pruned_after(experiment: Experiment[PruneConfig]) -> dict[int, Step]:
    """Training step -> what is removed after it; refused if there are too few for all."""
    config = experiment.config
    steps = schedule.iterative(config.fraction, config.iterations, config.schedule)
    training_steps = experiment.training_steps(config.finetune_epochs)
    try:
        return pruned_after(steps, training_steps)
    except ValueError as error:
        raise InputError(
            f"iterations={config.iterations} is too many: {error}; pass more finetune_epochs, or a "
            "smaller batch_size"
        ) from None


def _measure(
    experiment: Experiment[PruneConfig],
    units: Units,
    measured: dict[str, float],
    when: str,
    *splits: str,
) -> None:
    """Add the accuracy on some splits to what was measured, and how long it took."""
    start = time.perf_counter()
    for split in splits:
        samples = getattr(experiment.data, split)
        measured[f"{split}_{when}"] = experiment.accuracy(units.model, samples)
    measured["evaluate_seconds"] += time.perf_counter() - start


def _remove_lowest(
    experiment: Experiment[PruneConfig], units: Units, step: Step
) -> dict[str, float]:
    """Score the units that are left, select which of them stay, and prune the others.

    With a budget, returns the share of its cost that is the level's target, and what is achieved.
    """
    config = experiment.config
    criterion = CRITERIA[config.criterion]
    statistics = experiment.calibrate(units, needs(criterion))
    scores = units.scores(criterion, config.seed, step.level, statistics=statistics)
    least = units.least(1 - config.max_layer_sparsity)

    def remaining(fraction: float) -> Masks:
        return select(
            units.masks,
            scores,
            fraction=fraction,
            scope=config.scope,
            pools=units.pools(),
            least=least,
            inputs=units.input_axes,
            curves=experiment.curves,
        )

    cost: dict[str, float] = {}
    if config.block is not None:
        _, block = config.block
        # what is whole but for rounding is not rounded up
        keep = math.ceil(block * (1 - step.target_sparsity) - 1e-9)
        inputs = units.input_axes
        units.apply(select_pattern(units.masks, scores, keep=keep, block=block, inputs=inputs))
    elif config.cost_budget is None:
        units.apply(remaining(step.fraction))
    else:
        target = 1 - step.target_sparsity
        masks, achieved = budgets.within(experiment, units, remaining, target)
        cost = {"budget_target": target, "budget_achieved": achieved}
        units.apply(masks)
    if config.form == "compact":
        units.remove()
    experiment.recalibrate(units.model, step.level)
    return cost


def _record(
    experiment: Experiment[PruneConfig],
    units: Units,
    step: Step,
    run: Run,
    measured: dict[str, float],
) -> tuple[Level, list[Layer]]:
    """Record a level: what was measured of it, what is counted, and its checkpoint."""
    config = experiment.config
    compact, kept = (units.model, units.existing) if config.form == "compact" else units.compact()
    test_compact = None
    if config.form == "masked" and config.coupling == "independent" and step.level:
        # what tied layers lost separately goes together, which changes the outputs
        experiment.recalibrate(compact, step.level)
        test_compact = experiment.accuracy(compact, experiment.data.test)
    layers = Layer.of(units, step.level)
    counted = {"level": step.level, "target_sparsity": step.target_sparsity}
    joules = experiment.meter.joules()
    level = Level.of(
        units,
        compact,
        layers,
        experiment.uses,
        **counted,
        **measured,
        test_compact=test_compact,
        energy_joules=joules,
    )
    structure = experiment.structure | units.structure(kept)
    checkpoint = Checkpoint(structure, units.model.state_dict(), units.parameter_masks())
    run.record(level, layers, checkpoint, experiment.tokenizer)
    return level, layers


def _describe(stage: str, experiment: Experiment[PruneConfig], units: Units, run: Run) -> None:
    """Give the run its figures, and the text on its page."""
    config, data = experiment.config, experiment.data_name
    title = f"{short_model(config.model)} on {data}\n{stage}, {prose.method(config)}"
    pruned = [layer for layer in run.layers if layer.layer in units.prunable]
    for name, figure in RUN_FIGURES.items():
        run.log_figure(f"figures/{name}.png", charts.draw(figure(run.levels, pruned, title)))
    last = [layer for layer in run.layers if layer.level == run.levels[-1].level]
    run.describe(prose.summary(stage, config, data, units, run.levels, last))
