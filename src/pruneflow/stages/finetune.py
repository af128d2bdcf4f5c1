"""Stage `finetune`: train a model on a data set; its run is a base that pruning runs start from."""

from __future__ import annotations

from torch import nn

from pruneflow.config import FinetuneConfig
from pruneflow.stages.experiment import Experiment, prepare, report_finished, timed
from pruneflow.stages.progress import Reporter
from pruneflow.tracking import resume
from pruneflow.tracking.checkpoints import Checkpoint
from pruneflow.tracking.fingerprints import fingerprint, workload_fingerprint
from pruneflow.tracking.run import Ended, Run, open_run

_JOULES = "energy/epoch_joules"  # of an epoch's training and its validation


def finetune(config: FinetuneConfig, reporter: Reporter) -> Ended:
    """Train, measure and keep a model, in the run that was handed over or a new one."""
    experiment, model = prepare(config, load=True)
    reporter.say(experiment.data.summary)
    return train_base(experiment, model, reporter, experiment_id=None)


def train_base(
    experiment: Experiment[FinetuneConfig],
    model: nn.Module,
    reporter: Reporter,
    *,
    experiment_id: str | None,
) -> Ended:
    """Train a model, in a run of its own; the trained model is its checkpoint of level 0."""
    config, digest = experiment.config, experiment.data.digest
    tags = {
        "pruneflow.fingerprint": fingerprint("finetune", config, digest, None),
        "pruneflow.workload": workload_fingerprint(config, digest),
    }
    earlier = resume.earlier(config.resume, tags["pruneflow.fingerprint"], experiment_id)
    if earlier is not None and earlier.finished:
        return report_finished(earlier, reporter, experiment_id)
    with open_run(
        "finetune",
        config,
        name=config.run_name,
        tags=tags,
        experiment_id=experiment_id,
        interrupted=None if earlier is None else earlier.id,
    ) as run:
        if earlier is not None:
            run.go_on()
        experiment.log_workload(run)
        goes_on = ", which goes on" if earlier else ""
        reporter.say(f"finetune {config.run_name}: run {run.id}{goes_on}")
        reporter.plan(config.epochs)
        experiment.log_counters(run)
        with experiment.meter.measuring():
            _train(experiment, model, run, reporter)
            _measure(experiment, model, run, reporter)
    return run.ended


def _train(
    experiment: Experiment[FinetuneConfig], model: nn.Module, run: Run, reporter: Reporter
) -> None:
    epochs = experiment.config.epochs

    def progress(epoch: int, share: float, loss: float) -> None:
        reporter.at(f"base, epoch {epoch}/{epochs}", epoch - 1 + share, loss)

    def keep(epoch: int) -> None:
        if epoch == experiment.config.rewind_epoch:
            checkpoint = Checkpoint(experiment.structure, model.state_dict(), {})
            run.log_epoch(epoch, checkpoint, experiment.tokenizer)

    keep(0)
    for epoch in experiment.train(model, run, epochs, level=0, on_progress=progress):
        keep(epoch.number)
        validation = experiment.accuracy(model, experiment.data.val)
        metrics = {
            "train/loss": epoch.loss,
            "train/accuracy": epoch.accuracy,
            "val/accuracy": validation,
            "time/epoch_seconds": epoch.seconds,
            "throughput/samples_per_second": epoch.samples_per_second,
        }
        joules = experiment.meter.joules()
        metrics |= {} if joules is None else {_JOULES: joules}
        run.log_metrics(metrics, step=epoch.number, part=f"epoch {epoch.number}")
        reporter.say(
            f"  epoch {epoch.number}/{epochs}: loss {epoch.loss:.4f}, "
            f"train {epoch.accuracy:.4f}, val {validation:.4f}, "
            f"{epoch.seconds:.1f} s ({epoch.samples_per_second:.0f} samples/s)"
        )


def _measure(
    experiment: Experiment[FinetuneConfig], model: nn.Module, run: Run, reporter: Reporter
) -> None:
    config, data = experiment.config, experiment.data
    reporter.at("base, evaluating", config.epochs)
    test, seconds = timed(lambda: experiment.accuracy(model, data.test))
    train = experiment.accuracy(model, data.train)
    joules, logged = experiment.meter.joules(), run.logged(_JOULES)
    of_epochs = [logged.get(epoch) for epoch in range(1, config.epochs + 1)]
    experiment.log_total_energy(run, [*of_epochs, joules], step=config.epochs)
    checkpoint = Checkpoint(experiment.structure, model.state_dict(), {})
    size = run.log_checkpoint(0, checkpoint, experiment.tokenizer)
    accuracies = {"accuracy/test": test, "accuracy/train": train}
    run.log_metrics(accuracies, step=config.epochs, part="accuracy", model=0)
    trained = f"{config.epochs} epochs" if config.epochs else "not trained,"
    run.describe(
        f"**{config.model}** on **{experiment.data_name}**, {trained} "
        f"from weights `{config.weights}`.\n\n| test | train | checkpoint |\n|---:|---:|---:|\n"
        f"| {test:.4f} | {train:.4f} | {size / 1e6:.1f} MB |"
    )
    reporter.say(f"  test {test:.4f}, train {train:.4f} ({seconds:.1f} s for test)")
