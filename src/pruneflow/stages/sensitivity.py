"""Stage `sensitivity`: prunes each layer, or group of channels, alone, and measures what is lost.

As in Li et al. 2017 (https://arxiv.org/abs/1608.08710) and Han et al. 2015: nothing is trained
after it, and accuracy is that on the validation set, so that the test set decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from pruneflow.config import PruneConfig, SensitivityConfig, short_model
from pruneflow.pruning.criteria import CRITERIA, needs
from pruneflow.pruning.selection import Scores, select
from pruneflow.pruning.units import Units
from pruneflow.report import charts, prose
from pruneflow.report.sensitivity import SENSITIVITY_FIGURES, mean_drops, summary
from pruneflow.resolution import pruning_config
from pruneflow.stages import base_run
from pruneflow.stages.experiment import Experiment, prepare, report_finished
from pruneflow.stages.progress import Reporter
from pruneflow.stages.prune import prunable_units
from pruneflow.tracking import resume
from pruneflow.tracking.fingerprints import sensitivity_fingerprint, workload_fingerprint
from pruneflow.tracking.finished import with_base
from pruneflow.tracking.run import Ended, Run, open_run
from pruneflow.tracking.sensitivities import Sensitivity
from pruneflow.workloads import models


def sensitivity(config: SensitivityConfig, reporter: Reporter) -> Ended:
    """Prune each layer of a trained model alone, by each fraction, and record what that costs."""
    experiment, model = prepare(with_base(pruning_config(config)), load=False)
    pruning, data = experiment.config, experiment.data
    reporter.say(data.summary)
    units = prunable_units(experiment, model)
    base = base_run.find_or_make(experiment, model, reporter)
    tags = {
        "pruneflow.workload": workload_fingerprint(pruning, data.digest),
        "pruneflow.fingerprint": sensitivity_fingerprint(
            pruning, config.fractions, data.digest, base.fingerprint
        ),
    }
    earlier = resume.earlier(config.resume, tags["pruneflow.fingerprint"])
    if earlier is not None and earlier.finished:
        return report_finished(earlier, reporter, None)
    resolved = {name: getattr(pruning, name) for name in ("device", "threads", "weights")}
    config, interrupted = config.resolved(**resolved), None if earlier is None else earlier.id
    name = config.run_name("sensitivity")
    with open_run("sensitivity", config, name=name, tags=tags, interrupted=interrupted) as run:
        measured = run.measured_layers() if earlier is not None else []
        experiment.log_workload(run)
        base_id, trained = base.open(run.experiment_id)
        models.load_state(units.model, trained.state)
        run.set_tags({"pruneflow.base_run": base_id})
        goes_on = f", goes on after {len(measured)} measurements" if measured else ""
        reporter.say(f"sensitivity {name}: run {run.id}, from base run {base_id}{goes_on}")
        accuracy = experiment.accuracy(units.model, data.val)
        run.log_metrics({"accuracy/val": accuracy}, step=0, part="accuracy")
        for row in measurements(experiment, units, config.fractions, accuracy, measured, reporter):
            run.record_sensitivity(row)
        _describe(experiment, run, accuracy)
        ranked = mean_drops(run.sensitivities)
        for kind, (layer, drop) in {"most": ranked[0], "least": ranked[-1]}.items():
            reporter.say(f"  {kind} sensitive: {layer}, mean drop of accuracy {drop:.4f}")
    return run.ended


def measurements(
    experiment: Experiment[PruneConfig],
    units: Units,
    fractions: Sequence[float],
    accuracy: float,
    measured: Sequence[Sensitivity],
    reporter: Reporter,
) -> Iterator[Sensitivity]:
    """Rows for each layer and fraction but those that are measured; the model stays as it was.

    `accuracy` is the unpruned model's on the validation set.
    """
    config, done = experiment.config, {(row.layer, row.fraction) for row in measured}
    criterion = CRITERIA[config.criterion]
    statistics = experiment.calibrate(units, needs(criterion))
    scores = units.scores(criterion, config.seed, 1, statistics=statistics)
    state = {name: tensor.clone() for name, tensor in units.model.state_dict().items()}
    layers = units.layers()
    points = [(layer, fraction) for layer in layers for fraction in fractions]
    reporter.plan(len(points))
    for number, (layer, fraction) in enumerate(points):
        if (layer, fraction) in done:
            continue
        reporter.at(f"{layer}, {fraction:g} of it", number)
        masks = _masks(units, layers[layer], scores, fraction)
        with _restored(units.model, state):
            units.over_parameters(masks).apply(units.model)
            experiment.recalibrate(units.model, 1)
            pruned_accuracy = experiment.accuracy(units.model, experiment.data.val)
        total = sum(mask.numel() for mask in masks.values())
        kept = sum(int(mask.count_nonzero()) for mask in masks.values())
        drop = accuracy - pruned_accuracy
        yield Sensitivity(layer, fraction, total, total - kept, pruned_accuracy, drop)


def _masks(
    units: Units, names: Sequence[str], scores: Callable[[str], Scores], fraction: float
) -> Mapping[str, Tensor]:
    """Masks of one layer without its lowest-scored units."""
    masks = {name: units.masks[name] for name in names}
    return select(masks, scores, fraction=fraction, scope="layer", least=units.least(0.0))


@contextmanager
def _restored(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Afterwards the model's parameters and buffers are what `state` holds, to the last bit."""
    try:
        yield
    finally:
        models.load_state(model, state)


def _describe(experiment: Experiment[PruneConfig], run: Run, accuracy: float) -> None:
    """Give the run its figures, and the text on its page."""
    config, rows = experiment.config, run.sensitivities
    how = prose.scored_units(config)
    title = f"{short_model(config.model)} on {experiment.data_name}\nsensitivity, {how}"
    for name, figure in SENSITIVITY_FIGURES.items():
        run.log_figure(f"figures/{name}.png", charts.draw(figure(rows, title)))
    about = f"**{config.model}** on **{experiment.data_name}**: `sensitivity`, {how}, seed "
    run.describe(summary(rows, f"{about}{config.seed}.", accuracy))
