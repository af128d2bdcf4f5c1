"""Stage `finetune`: train a model on a data set; its run is a base that pruning runs start from."""

from __future__ import annotations

from torch import nn

from pruneflow.config import FinetuneConfig
from pruneflow.stages.experiment import Experiment, prepare, report_finished, timed
from pruneflow.stages.progress import Reporter
from pruneflow.tracking import resume
from pruneflow.tracking.checkpoints import Checkpoint
from pruneflow.tracking.fingerprints import fingerprint, workload_fingerprint
from pruneflow.tracking.run import Ended, open_run


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
    config, data = experiment.config, experiment.data
    digest = fingerprint("finetune", config, data.digest, None)
    before = resume.earlier(config.resume, digest, experiment_id)
    if before is not None and before.finished:
        return report_finished(before, reporter, experiment_id)
    tags = {
        "pruneflow.fingerprint": digest,
        "pruneflow.workload": workload_fingerprint(config, data.digest),
    }
    name = config.run_name
    with open_run(
        "finetune",
        config,
        name=name,
        tags=tags,
        experiment_id=experiment_id,
        interrupted=None if before is None else before.id,
    ) as run:
        if before is not None:
            run.go_on()
        experiment.log_workload(run)
        reporter.say(f"finetune {name}: run {run.id}{', which goes on' if before else ''}")
        reporter.plan(config.epochs)

        def progress(epoch: int, share: float, loss: float) -> None:
            reporter.at(f"base, epoch {epoch}/{config.epochs}", epoch - 1 + share, loss)

        for epoch in experiment.train(model, run, config.epochs, level=0, on_progress=progress):
            validation = experiment.accuracy(model, data.val)
            run.log_metrics(
                {
                    "train/loss": epoch.loss,
                    "train/accuracy": epoch.accuracy,
                    "val/accuracy": validation,
                    "time/epoch_seconds": epoch.seconds,
                    "throughput/samples_per_second": epoch.samples_per_second,
                },
                step=epoch.number,
                part=f"epoch {epoch.number}",
            )
            reporter.say(
                f"  epoch {epoch.number}/{config.epochs}: loss {epoch.loss:.4f}, train "
                f"{epoch.accuracy:.4f}, val {validation:.4f}, {epoch.seconds:.1f} s "
                f"({epoch.samples_per_second:.0f} samples/s)"
            )
        reporter.at("base, evaluating", config.epochs)
        test, seconds = timed(lambda: experiment.accuracy(model, data.test))
        train = experiment.accuracy(model, data.train)
        final = {"accuracy/test": test, "accuracy/train": train}
        run.log_metrics(final, step=config.epochs, part="accuracy")
        checkpoint = Checkpoint(experiment.structure, model.state_dict(), {})
        size = run.log_checkpoint(0, checkpoint, experiment.tokenizer)
        run.describe(
            f"**{config.model}** on **{experiment.data_name}**, {config.epochs} epochs "
            f"from weights `{config.weights}`.\n\n| test | train | checkpoint |\n|---:|---:|---:|\n"
            f"| {test:.4f} | {train:.4f} | {size / 1e6:.1f} MB |"
        )
        reporter.say(f"  test {test:.4f}, train {train:.4f} ({seconds:.1f} s for test)")
    return run.ended
