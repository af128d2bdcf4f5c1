"""Recovery: what the training after a level goes back to and learns from, beside its samples."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from pruneflow.config import PruneConfig
from pruneflow.pruning.units import Units
from pruneflow.stages.base_run import Base
from pruneflow.stages.experiment import Experiment
from pruneflow.tracking import checkpoints, finished
from pruneflow.tracking.run import Run


@dataclass(frozen=True)
class Recovery:
    """What a pruning run recovers by.

    Attributes:
        teacher: the base, to distill from; None without distillation.
        early: state of the base of after `rewind_epoch`; None where weights are not rewound.
    """

    teacher: nn.Module | None
    early: Mapping[str, Tensor] | None

    def rewind(self, units: Units) -> None:
        """Give what is kept the early values, where weights are rewound.

        Frankle et al. 2020, https://arxiv.org/abs/1912.05671.
        """
        if self.early is not None:
            units.rewind(self.early)


def recovery(experiment: Experiment[PruneConfig], units: Units, base: Base, run: Run) -> Recovery:
    """What a run recovers by, once its units are loaded: those of the base, or of a later level."""
    config, teacher, early = experiment.config, None, None
    if config.distill and run.levels:
        teacher = experiment.machine.move(checkpoints.restore(run.checkpoint(0)))
    elif config.distill:
        teacher = copy.deepcopy(units.model)
    if config.rewind == "weights":
        base_id, _ = base.open(run.experiment_id)
        early = finished.load_epoch(base_id, config.rewind_epoch).state
    return Recovery(teacher, early)
