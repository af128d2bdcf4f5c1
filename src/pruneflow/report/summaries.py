"""The summaries of a study over its seeds, from its runs, as runs that the UI shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
from pandas import DataFrame

from pruneflow import query
from pruneflow.errors import first_line
from pruneflow.report import evidence
from pruneflow.tracking import summaries
from pruneflow.tracking.levels import METRICS
from pruneflow.tracking.store import experiment_named
from pruneflow.tracking.summaries import LevelSummary, Summary


def update(study: str, experiment: str | None, say: Callable[[str], None]) -> None:
    """Write a study's summary runs anew where its runs have changed.

    They are a view of what is there: a store that does not take them is told of, and no error.
    """
    try:
        runs, levels = query.runs_and_levels(experiment, study=study)
        found = list(over_seeds(runs, levels))
        summaries.replace(study, experiment_named(experiment), found)
    except Exception as error:  # whatever a store, a driver or a network has to say
        say(
            f"  the summaries over seeds of {study} were not written ({first_line(error)}); "
            f"later: pruneflow report --study {study}"
        )
    else:
        if found:
            say(f"  summaries over seeds of {study}: {len(found)} runs, of stage summary")


def over_seeds(runs: DataFrame, levels: DataFrame) -> Iterator[Summary]:
    """A summary of each configuration with two seeds or more, of the frames of a query."""
    finished = evidence.with_configuration(runs[runs["run_id"].isin(levels["run_id"])])
    pruning = evidence.newest_of_each(finished)
    pruning = pruning[pruning.groupby("configuration")["seed"].transform("nunique") > 1]
    if pruning.empty:
        return
    table = pruning.groupby("configuration", sort=True).first()
    names = evidence.labels(table).to_dict()
    curves = _curves(levels.merge(pruning[["run_id", "configuration"]], on="run_id"))
    for configuration, row in table.iterrows():
        model, _, others = names[configuration].partition(", ")
        name = f"{others}, {model}" if others else model  # the UI shows the beginning
        repeated = pruning[pruning["configuration"] == configuration].sort_values("seed")
        yield Summary(
            name=f"{name} (n={len(repeated)})",
            parameters={n: str(row[n]) for n in evidence.DECIDING if not pd.isna(row[n])},
            run_ids=repeated["run_id"].tolist(),
            seeds=[int(seed) for seed in repeated["seed"]],
            rows=curves[configuration],
        )


def _curves(levels: DataFrame) -> dict[object, list[LevelSummary]]:
    """The rows of each configuration: level by level, in the order of `levels.csv`."""
    by = ["configuration", "level"]
    parts = []
    for quantity in METRICS:
        values = levels.assign(**{quantity: levels[quantity].astype(float)})
        parts.append(evidence.summary(values, by, quantity).assign(quantity=quantity))
    everything = pd.concat(parts).sort_values(by, kind="stable")

    def row(record: dict[Any, Any]) -> LevelSummary:
        known: dict[str, Any] = {k: None if pd.isna(v) else v for k, v in record.items()}
        return LevelSummary(**known)

    return {
        configuration: [row(r) for r in part.drop(columns="configuration").to_dict("records")]
        for configuration, part in everything.groupby("configuration")
    }
