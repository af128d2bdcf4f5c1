"""What masks cost in the currency of a run's budget: counted, as files, or timed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from pruneflow.config import PruneConfig
from pruneflow.errors import InputError
from pruneflow.inference import latency
from pruneflow.inference.engines import eager
from pruneflow.inference.load import Load
from pruneflow.pruning import budgets
from pruneflow.pruning.budgets import CURRENCIES, MET, Budget, Entries, Prices
from pruneflow.pruning.units import Units
from pruneflow.stages.experiment import Experiment
from pruneflow.tracking import checkpoints
from pruneflow.tracking.checkpoints import Checkpoint
from pruneflow.workloads import models

_ROUNDS, _SECONDS = 30, 10.0  # of a timing
_TIMINGS = 12  # at the most, of a level
Masks = Mapping[str, Tensor]  # over units, of the names and shapes of `Units.masks`


class _Unwatched(Load):
    """Does not ask what other processes do."""

    window_seconds = 0.0

    def others(self) -> float | None:
        return None


def check(experiment: Experiment[PruneConfig], units: Units) -> None:
    """See that a budget can be met at all; InputError if what cannot be pruned costs more."""
    config = experiment.config
    if (budget := config.cost_budget) is None:
        return
    least = _cost(experiment, units, budget)(units.fewest(1 - config.max_layer_sparsity))
    if least > budget.share * (1 + MET):
        raise InputError(
            f"budget={budget} cannot be met: with all pruned that may be, {least:.4f} of the "
            f"{CURRENCIES[budget.currency].of} would be left: pass a larger share"
        )


def within(
    experiment: Experiment[PruneConfig],
    units: Units,
    select: Callable[[float], Masks],
    target: float,
) -> tuple[Masks, float]:
    """The masks whose cost is nearest to a share of the unpruned model's, and that cost.

    `select`: fraction of what is kept that goes -> masks.
    """
    budget = experiment.config.cost_budget
    assert budget is not None
    cost = _cost(experiment, units, budget)
    if budget.measured:  # no two timings agree further than this
        return budgets.search(select, cost, target, units.masks, close=MET, steps=_TIMINGS)
    return budgets.search(select, cost, target, units.masks)


def _cost(
    experiment: Experiment[PruneConfig], units: Units, budget: Budget
) -> Callable[[Masks], float]:
    """What gives the cost of masks over units, as a share of the unpruned model's."""
    count = CURRENCIES[budget.currency].count
    if count is None:
        with models.same_random_state():
            dense = experiment.machine.move(models.rebuild(experiment.structure))
        return lambda masks: time_share(experiment, dense, units.smaller(masks))
    prices = Prices(experiment.uses, _stored_bytes(experiment, units))
    unpruned = count(units.sizes, prices)
    return lambda masks: count(units.kept_entries(masks), prices) / unpruned


def _stored_bytes(experiment: Experiment[PruneConfig], units: Units) -> Callable[[Entries], float]:
    """Parameter -> entries kept of it; of that, about the bytes of a level's checkpoint."""
    structure = experiment.structure | units.structure(units.existing)
    with tempfile.TemporaryDirectory(prefix="pruneflow-") as folder:
        nothing = Checkpoint(structure, {}, {})
        fixed = checkpoints.save(Path(folder), nothing, experiment.tokenizer)
    packed, state = experiment.config.form == "masked", units.model.state_dict()
    return lambda entries: fixed + checkpoints.expected_bytes(state, entries, packed=packed)


def time_share(experiment: Experiment[PruneConfig], dense: nn.Module, compact: nn.Module) -> float:
    """Least time of a batch by a compact model over that by the dense one, timed side by side.

    Other processes lengthen most times but hardly the least of many, so they are not waited for.
    """
    config, machine, structure = experiment.config, experiment.machine, experiment.structure
    (size,) = experiment.identity["input"].values()  # type: ignore[attr-defined]
    inputs = models.random_inputs(structure, config.batch_size, size=size, device=machine.device)
    both = {"dense": dense, "compact": compact}
    with models.looking(dense, compact):
        calls = {name: eager(model, inputs, machine.threads) for name, model in both.items()}
        timer = latency.timer(machine.device)
        times = latency.interleaved(calls, timer, _ROUNDS, _SECONDS, load=_Unwatched()).seconds
    return float(times["compact"].min() / times["dense"].min())
