"""Stages `prune_iterative` and `prune_direct`: prune and fine-tune, level by level.

As in Han et al. 2015 (https://arxiv.org/abs/1506.02626): train, then in turns remove what matters
least and train what is left. The two stages differ in their schedule alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from pruneflow.config import PruneConfig, short_model
from pruneflow.errors import InputError
from pruneflow.pruning import compaction, schedule
from pruneflow.pruning.criteria import CRITERIA
from pruneflow.pruning.groups import BATCH_NORMS
from pruneflow.pruning.schedule import Step
from pruneflow.pruning.selection import select
from pruneflow.pruning.units import Units, as_text, find_units
from pruneflow.report import charts, prose
from pruneflow.report.figures import RUN_FIGURES
from pruneflow.stages import base_run
from pruneflow.stages.base_run import Base
from pruneflow.stages.experiment import Experiment, prepare, report_finished, timed
from pruneflow.stages.progress import Reporter, levels_table
from pruneflow.tracking import resume
from pruneflow.tracking.checkpoints import Checkpoint
from pruneflow.tracking.fingerprints import fingerprint, workload_fingerprint
from pruneflow.tracking.finished import base_weights
from pruneflow.tracking.levels import Layer, Level
from pruneflow.tracking.run import Ended, Run, open_run
from pruneflow.workloads import models


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
    """Load a trained model, take it through a schedule level by level, and record each."""
    if config.named_base is not None:
        config = config.resolved(weights=base_weights(config.named_base))
    experiment, model = prepare(config, load=False)
    config, data = experiment.config, experiment.data
    reporter.say(data.summary)
    units = _units(experiment, model)
    base = base_run.find_or_make(experiment, model, reporter)
    tags = {
        "pruneflow.workload": workload_fingerprint(config, data.digest),
        "pruneflow.fingerprint": fingerprint(stage, config, data.digest, base.fingerprint),
    }
    earlier = resume.earlier(config.resume, tags["pruneflow.fingerprint"], experiment_id)
    if earlier is not None and earlier.finished:
        return report_finished(earlier, reporter, experiment_id)

    with open_run(
        stage,
        config,
        name=config.run_name(stage),
        tags=tags,
        experiment_id=experiment_id,
        interrupted=None if earlier is None else earlier.id,
    ) as run:
        where = _load(experiment, units, base, run, goes_on=earlier is not None)
        reporter.say(f"{stage} {config.run_name(stage)}: run {run.id}{where}")
        reporter.say("\n".join(f"  {note}" for note in prose.notes(units)))
        reporter.plan(len(steps) * config.finetune_epochs)
        for step in [schedule.UNPRUNED, *steps][len(run.levels) :]:
            level, layers = _level(experiment, units, step, run, reporter)
            reporter.say(f"  {prose.level_line(level, len(steps))}")
            for warning in prose.warnings(config, units, level, layers):
                reporter.say(f"    {warning}")
        _describe(stage, experiment, units, run)
    reporter.console.print(levels_table(run.levels))
    return run.ended


def _units(experiment: Experiment[PruneConfig], model: nn.Module) -> Units:
    """What the configuration lets be pruned of a model.

    Raises:
        InputError: a configuration that leaves nothing to prune, or has no effect on this model.
    """
    config = experiment.config
    normalised = any(isinstance(module, BATCH_NORMS) for module in model.modules())
    if "recalibrate_bn" in config.given and config.recalibrate_bn and not normalised:
        raise InputError(
            f"recalibrate_bn=True has no effect on {config.model}, which has no BatchNorm: leave "
            "it out"
        )
    return find_units(
        model,
        experiment.probe,
        name=config.model,
        head=experiment.head,
        granularity=config.granularity,
        coupling=config.coupling,
        targets=config.targets,
        include=config.include,
        exclude=config.exclude,
        biases=config.prune_bias,
        products=experiment.uses,
    )


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
    experiment: Experiment[PruneConfig], units: Units, step: Step, run: Run, reporter: Reporter
) -> tuple[Level, list[Layer]]:
    """One level: prune, measure, fine-tune, measure, record."""
    config, data = experiment.config, experiment.data
    epochs = config.finetune_epochs if step.level else 0
    reached = float((step.level - 1) * epochs)
    score_seconds = finetune_seconds = again_seconds = 0.0

    if step.level:
        _, score_seconds = timed(lambda: _remove_lowest(experiment, units, step))
    reporter.at(f"level {step.level}, evaluating", reached)
    (test_before, train_before), before_seconds = timed(lambda: _accuracy(experiment, units))
    test_after, train_after = test_before, train_before
    if epochs:
        finetune_seconds = _finetune(experiment, units, step, run, reporter)
        reporter.at(f"level {step.level}, evaluating", reached + epochs)
        (test_after, train_after), again_seconds = timed(lambda: _accuracy(experiment, units))
    val_after, val_seconds = timed(lambda: experiment.accuracy(units.model, data.val))

    return _record(
        experiment,
        units,
        run,
        level=step.level,
        target_sparsity=step.target_sparsity,
        test_before=test_before,
        test_after=test_after,
        train_before=train_before,
        train_after=train_after,
        val_after=val_after,
        score_seconds=score_seconds,
        finetune_seconds=finetune_seconds,
        evaluate_seconds=before_seconds + again_seconds + val_seconds,
    )


def _remove_lowest(experiment: Experiment[PruneConfig], units: Units, step: Step) -> None:
    """Score the units that are left, select which of them stay, and prune the others."""
    config = experiment.config
    scores = units.scores(CRITERIA[config.criterion], config.seed, step.level)
    masks = select(
        units.masks, scores, fraction=step.fraction, scope=config.scope, pools=units.pools()
    )
    units.apply(masks)
    if config.form == "compact":
        units.remove()
    experiment.recalibrate(units.model, step.level)


def _accuracy(experiment: Experiment[PruneConfig], units: Units) -> tuple[float, float]:
    """Accuracy on the test split and on the training split."""
    data = experiment.data
    return experiment.accuracy(units.model, data.test), experiment.accuracy(units.model, data.train)


def _finetune(
    experiment: Experiment[PruneConfig], units: Units, step: Step, run: Run, reporter: Reporter
) -> float:
    """Train what is left; the seconds that took."""
    epochs = experiment.config.finetune_epochs

    def progress(epoch: int, share: float, loss: float) -> None:
        where = f"level {step.level}, epoch {epoch}/{epochs}"
        reporter.at(where, (step.level - 1) * epochs + epoch - 1 + share, loss)

    seconds = 0.0
    for epoch in experiment.train(
        units.model,
        run,
        epochs,
        level=step.level,
        after_step=units.keeper(),
        on_progress=progress,
    ):
        seconds = epoch.total_seconds
    return seconds


def _record(
    experiment: Experiment[PruneConfig], units: Units, run: Run, level: int, **measured: float
) -> tuple[Level, list[Layer]]:
    """Record a level: what was measured of it, what is counted, and its checkpoint."""
    config = experiment.config
    compact: nn.Module = units.model
    kept: Mapping[str, Tensor] = units.existing
    test_compact = None
    if config.form == "masked":
        compact, kept = units.compact()
    if config.form == "masked" and config.coupling == "independent" and level:
        # what tied layers lost separately goes together, which changes the outputs
        experiment.recalibrate(compact, level)
        test_compact = experiment.accuracy(compact, experiment.data.test)
    layers = Layer.of(units, level)
    counted = Level.of(
        units,
        compact,
        layers,
        experiment.uses,
        level=level,
        test_compact=test_compact,
        **measured,
    )
    structure = {"sizes": compaction.structure(units.model), "units": as_text(kept)}
    checkpoint = Checkpoint(
        experiment.structure | structure, units.model.state_dict(), units.parameter_masks()
    )
    run.record(counted, layers, checkpoint, experiment.tokenizer)
    return counted, layers


def _describe(stage: str, experiment: Experiment[PruneConfig], units: Units, run: Run) -> None:
    """Give the run its figures, and the text on its page."""
    config, data = experiment.config, experiment.data_name
    title = f"{short_model(config.model)} on {data}\n{stage}, {prose.method(config)}"
    pruned = [layer for layer in run.layers if layer.layer in units.prunable]
    for name, figure in RUN_FIGURES.items():
        run.log_figure(f"figures/{name}.png", charts.draw(figure(run.levels, pruned, title)))
    last = [layer for layer in run.layers if layer.level == run.levels[-1].level]
    run.describe(prose.summary(stage, config, data, units, run.levels, last))
