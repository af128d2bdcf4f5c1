"""The sensitivity run that `scope=sensitivity` goes by: named, or the newest that fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pruneflow.config import NEWEST, PruneConfig
from pruneflow.errors import InputError
from pruneflow.pruning.densities import Curve
from pruneflow.pruning.units import Units
from pruneflow.tracking import finished
from pruneflow.tracking.fingerprints import workload_fingerprint
from pruneflow.tracking.sensitivities import Sensitivity


@dataclass(frozen=True)
class SensitivityRun:
    """A sensitivity run, and its curve for each name of `Units.masks`; without one, no curves."""

    run_id: str | None = None
    fingerprint: str | None = None  # of that run
    curves: Mapping[str, Curve] = field(default_factory=dict)


def find(config: PruneConfig, data_digest: str) -> str | None:
    """Id of the sensitivity run that a configuration names, or of the newest; None: there is none.

    Raises:
        InputError: one that is named, and is not of this model, data, seed, units or criterion.
    """
    run_id, workload = config.sensitivity_run, workload_fingerprint(config, data_digest)
    same = {name: getattr(config, name) for name in ("granularity", "criterion", "coupling")}
    if run_id in (None, NEWEST):  # of the same layers, too: one that is named may have more
        same |= {name: getattr(config, name) for name in ("include", "exclude", "targets")}
        return finished.newest_sensitivity(workload, same)
    finished.check_sensitivity(run_id, workload, same)
    return run_id


def load(config: PruneConfig, data_digest: str, units: Units) -> SensitivityRun:
    """The run whose curves a scope goes by; one without curves for a scope that needs none.

    Raises:
        InputError: no sensitivity run, or one that has not measured all of these units.
    """
    if config.scope != "sensitivity":
        return SensitivityRun()
    run_id = find(config, data_digest)
    if run_id is None:
        units_of = f"--granularity {config.granularity} --criterion {config.criterion}"
        raise InputError(
            "scope=sensitivity needs a finished sensitivity run of the same model, samples, seed "
            f"and layers: make it by pruneflow sensitivity --model {config.model} --dataset "
            f"{config.dataset} --seed {config.seed} {units_of}, and what else was given"
        )
    rows = finished.sensitivities_of(run_id)
    return SensitivityRun(run_id, finished.fingerprint_of(run_id), _curves(run_id, rows, units))


def _curves(run_id: str, rows: list[Sensitivity], units: Units) -> dict[str, Curve]:
    drops: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        drops.setdefault(row.layer, []).append((row.fraction, row.drop))
    curves: dict[str, Curve] = {}
    for layer, names in units.layers().items():
        if layer not in drops:
            raise InputError(
                f"sensitivity_run={run_id!r} has not measured {layer}: pass the include, exclude "
                "and targets that it has, or make one without them"
            )
        curves |= {name: Curve(units.numbers[name], tuple(drops[layer])) for name in names}
    return curves
