"""The base run, whose model a pruning run starts from: named, found, or made."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from pruneflow.config import NEWEST, PruneConfig
from pruneflow.resolution import base_config, given_for_base
from pruneflow.stages.experiment import Experiment, build
from pruneflow.stages.finetune import train_base
from pruneflow.stages.progress import Reporter
from pruneflow.tracking.checkpoints import Checkpoint
from pruneflow.tracking.fingerprints import fingerprint, workload_fingerprint
from pruneflow.tracking.finished import (
    check_epoch,
    find_base,
    fingerprint_of,
    newest_base,
    open_base,
)


@dataclass(frozen=True)
class Base:
    """The base run of a pruning run, there already or to be made.

    `open` gives its id and model, given the MLflow experiment to make it in, if it has to be.
    """

    fingerprint: str
    open: Callable[[str], tuple[str, Checkpoint]]


def find_or_make(experiment: Experiment[PruneConfig], model: nn.Module, reporter: Reporter) -> Base:
    """The base run of a pruning run: the one asked for, else the exact one, which may be made.

    The model is the pruning run's, untrained and without given weights; a base run may train it.
    All that can be refused is refused here, before any run is open.
    """
    config, digest = experiment.config, experiment.data.digest
    base = experiment.with_config(base_config(config))
    exact = fingerprint("finetune", base.config, digest, None)
    if config.base_run == NEWEST:
        wanted = {name: getattr(base.config, name) for name in given_for_base(config)}
        run_id = newest_base(workload_fingerprint(config, digest), wanted)
    else:
        run_id = config.base_run or find_base(exact)
    if run_id is not None:
        checkpoint = open_base(run_id, config, experiment.structure, digest)
        if config.rewind == "weights":
            check_epoch(run_id, config.rewind_epoch)
        return Base(fingerprint_of(run_id), lambda _experiment_id: (run_id, checkpoint))
    if config.weights != "none":
        classes = len(base.data.classes)
        model = build(base.config, classes, base.machine, load=True, tokenizer=base.tokenizer)

    def make(experiment_id: str) -> tuple[str, Checkpoint]:
        run = train_base(base, model, reporter, experiment_id=experiment_id)
        # not read back: where the run was sent may not answer at the moment
        return run.id, Checkpoint(base.structure, model.state_dict(), {})

    return Base(exact, functools.cache(make))
