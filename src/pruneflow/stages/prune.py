"""Stages `prune_iterative` and `prune_direct`: level by level."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pruneflow.config import PruneConfig, base_config, given_for_base
from pruneflow.pruning import cost, schedule
from pruneflow.pruning.criteria import CRITERIA
from pruneflow.pruning.masks import Masks
from pruneflow.pruning.schedule import Step
from pruneflow.pruning.selection import prunable_parameters, select
from pruneflow.report.figures import RUN_FIGURES
from pruneflow.stages.experiment import Experiment, build, prepare, timed
from pruneflow.stages.finetune import train_base
from pruneflow.stages.progress import Reporter, levels_table
from pruneflow.tracking.checkpoints import Checkpoint
from pruneflow.tracking.levels import Layer, Level, to_markdown
from pruneflow.tracking.run import (
    Run,
    find_base,
    fingerprint,
    fingerprint_of,
    load_checkpoint,
    open_base,
    open_run,
    workload_fingerprint,
)
from pruneflow.workloads import training

Parameters = Mapping[str, nn.Parameter]


def prune_iterative(config: PruneConfig, reporter: Reporter) -> Run:
    """Each level removes `fraction` of what is left."""
    steps = schedule.iterative(config.fraction, config.iterations)
    return _prune("prune_iterative", config, steps, reporter)


def prune_direct(config: PruneConfig, reporter: Reporter) -> Run:
    """One level goes straight to where the iterative schedule would end."""
    return _prune("prune_direct", config, schedule.direct(config.final_sparsity), reporter)


def _prune(stage: str, config: PruneConfig, steps: list[Step], reporter: Reporter) -> Run:
    experiment, model = prepare(config, weights="none")
    config, data = experiment.config, experiment.data
    parameters = prunable_parameters(
        model, include=config.include, exclude=config.exclude, biases=config.prune_bias
    )
    base_of = _base(experiment, model, reporter)

    name = f"{config.criterion}-{config.granularity}-{config.model}-{config.dataset}-s{config.seed}"
    tags = {"pruneflow.workload": workload_fingerprint(config, data.digest)}
    with open_run(stage, config, name=name, tags=tags) as run:
        experiment.log_data(run)
        base, checkpoint = base_of(run.experiment_id)
        model.load_state_dict(checkpoint.state)
        digest = fingerprint(stage, config, data.digest, fingerprint_of(base))
        run.set_tags({"pruneflow.base_run": base, "pruneflow.fingerprint": digest})
        reporter.say(f"{stage} {name}: run {run.id}, from base run {base}")
        reporter.plan(len(steps) * config.finetune_epochs)

        masks = Masks.keep_all(parameters)
        for step in [schedule.UNPRUNED, *steps]:
            masks = _level(experiment, model, parameters, masks, step, run, reporter)
            level = run.levels[-1]
            reporter.say(
                f"  level {level.level}/{len(steps)}: sparsity {level.sparsity:.4f}, test "
                f"{level.test_before:.4f} -> {level.test_after:.4f}, train "
                f"{level.train_before:.4f} -> {level.train_after:.4f}"
            )
            if emptied := _emptied(run, parameters, level.level):
                reporter.say(
                    f"    nothing is left of {emptied}: exclude them, or prune by scope=layer"
                )
        _summarise(stage, config, parameters, run)
    reporter.console.print(levels_table(run.levels))
    return run


def _base(
    experiment: Experiment[PruneConfig], model: nn.Module, reporter: Reporter
) -> Callable[[str], tuple[str, Checkpoint]]:
    """Decide on the base run: the one named, else the newest that fits, else one to be made.

    Args:
        experiment: the pruning run's.
        model: its model, untrained and without given weights; a base run may train it.
        reporter: of the pruning run.

    Returns:
        What gives its id and model; told in which MLflow experiment to make it, if it must.

    Raises:
        InputError: here, before any run is open, for all that can be refused.
    """
    config = experiment.config
    made_by = base_config(config)
    found = config.base_run or find_base(
        workload_fingerprint(config, experiment.data.digest),
        {name: getattr(made_by, name) for name in given_for_base(config)},
    )
    if found is not None:
        checkpoint = open_base(found, config, experiment.classes)
        return lambda _experiment_id: (found, checkpoint)

    base = Experiment(made_by, experiment.data, experiment.machine, experiment.uses)
    untrained = model
    if config.weights != "none":
        untrained = build(base.config, base.classes, base.machine, weights=config.weights)

    def make(experiment_id: str) -> tuple[str, Checkpoint]:
        run = train_base(base, untrained, reporter, experiment_id=experiment_id)
        return run.id, load_checkpoint(run.id, 0)

    return make


def _level(
    experiment: Experiment[PruneConfig],
    model: nn.Module,
    parameters: Parameters,
    masks: Masks,
    step: Step,
    run: Run,
    reporter: Reporter,
) -> Masks:
    """Do one level and record it: tighten the masks, measure, fine-tune, measure."""
    config, data = experiment.config, experiment.data
    epochs = config.finetune_epochs if step.fraction else 0
    planned = (step.level - 1) * epochs

    def measure() -> tuple[float, float]:
        reporter.at(f"level {step.level}, evaluating", float(planned))
        return experiment.accuracy(model, data.test), experiment.accuracy(model, data.train)

    def train() -> None:
        recipe = experiment.recipe(epochs, level=step.level)

        def progress(epoch: int, share: float, loss: float) -> None:
            where = f"level {step.level}, epoch {epoch}/{epochs}"
            reporter.at(where, planned + epoch - 1 + share, loss)

        for _ in training.fit(
            model,
            data.train,
            recipe,
            experiment.machine,
            after_step=keep_pruned,
            on_progress=progress,
        ):
            pass

    score_seconds = finetune_seconds = after_seconds = 0.0
    if step.fraction:
        masks, score_seconds = timed(lambda: _tighten(config, parameters, masks, step))
    keep_pruned = masks.keeper(model)
    keep_pruned()
    (test_before, train_before), before_seconds = timed(measure)
    test_after, train_after = test_before, train_before
    if epochs:
        _, finetune_seconds = timed(train)
        planned += epochs
        (test_after, train_after), after_seconds = timed(measure)
    val_after, val_seconds = timed(lambda: experiment.accuracy(model, data.val))

    prunable = sum(p.numel() for p in parameters.values())
    zeros = sum(p.numel() - int(p.count_nonzero()) for p in parameters.values())
    layers = _layers(model, step.level)
    params = sum(layer.params for layer in layers)
    macs, macs_left = cost.macs(model, experiment.uses)
    size = run.log_checkpoint(step.level, model.state_dict(), masks, experiment.structure)
    level = Level(
        level=step.level,
        target_sparsity=step.target_sparsity,
        sparsity=zeros / prunable,
        params=params,
        params_left=1 - sum(layer.zeros for layer in layers) / params,
        macs=macs,
        macs_left=macs_left / macs,
        size_bytes=size,
        test_before=test_before,
        test_after=test_after,
        train_before=train_before,
        train_after=train_after,
        val_after=val_after,
        score_seconds=score_seconds,
        finetune_seconds=finetune_seconds,
        evaluate_seconds=before_seconds + after_seconds + val_seconds,
    )
    run.record(level, layers)
    return masks


def _tighten(config: PruneConfig, parameters: Parameters, masks: Masks, step: Step) -> Masks:
    """The masks of a level from those of the level before."""
    criterion = CRITERIA[config.criterion]

    def scores(name: str) -> Tensor:
        weight = parameters[name].data
        generator = torch.Generator(weight.device).manual_seed(_seed(config.seed, step.level, name))
        return criterion(weight, generator)

    return select(scores, masks, parameters, fraction=step.fraction, scope=config.scope)


def _seed(*parts: object) -> int:
    """A seed of 63 bits for one level of one tensor, so that scores can be drawn again."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def _layers(model: nn.Module, level: int) -> list[Layer]:
    """A row for every parameter tensor of the model, pruned or not, in model order."""
    rows = []
    for name, parameter in model.named_parameters():
        kind = type(model.get_submodule(name.rpartition(".")[0])).__name__
        params = parameter.numel()
        zeros = params - int(parameter.count_nonzero())
        shape = "x".join(map(str, parameter.shape))
        rows.append(Layer(level, name, kind, shape, params, zeros, zeros / params))
    return rows


def _emptied(run: Run, parameters: Parameters, level: int) -> str:
    """The pruned weights of which a level has left nothing: no signal passes their layers."""
    rows = [row for row in run.layers if row.level == level and row.layer in parameters]
    names = [row.layer for row in rows if row.zeros == row.params and "weight" in row.layer]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _summarise(stage: str, config: PruneConfig, parameters: Parameters, run: Run) -> None:
    """The run's own figures, and the text on its page."""
    title = f"{config.model} on {config.dataset}: {stage}, {config.criterion}, {config.scope}"
    pruned = [layer for layer in run.layers if layer.layer in parameters]
    for name, figure in RUN_FIGURES.items():
        run.log_figure(f"figures/{name}.png", figure(run.levels, pruned, title))
    first, last = run.levels[0], run.levels[-1]
    emptied = _emptied(run, parameters, last.level)
    warning = f"**Nothing is left of {emptied}.**\n\n" if emptied else ""
    run.describe(
        f"**{config.model}** on **{config.dataset}**: `{stage}`, criterion `{config.criterion}`, "
        f"scope `{config.scope}`, seed {config.seed}.\n\n"
        f"{100 * last.params_left:.3g} % of the parameters left: test accuracy "
        f"{first.test_after:.4f} -> {last.test_after:.4f} after fine-tuning.\n\n"
        f"{warning}{to_markdown(run.levels)}\n\n"
        "Sparsity is zeros / prunable parameters; MACs left counts weights that are not zero."
    )
