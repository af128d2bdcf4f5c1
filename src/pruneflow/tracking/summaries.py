"""Summaries: a run for each configuration of a study, which has its level curves over the seeds.

They are a view of other runs: made anew where those have changed, and left out of queries.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient
from mlflow.tracking.context.registry import resolve_tags

from pruneflow.tracking import reader, tables
from pruneflow.tracking.levels import METRICS, TAG_LIMIT

STAGE, TABLE = "summary", "summary.csv"
_CONTENT = "pruneflow.content"  # hash of what a summary says
_MOST_METRICS, _LONGEST_VALUE = 1_000, 6_000  # of a call, and of a parameter


@dataclass(frozen=True)
class LevelSummary:
    """One quantity of one level over the runs of a configuration, as a row of `summary.csv`."""

    level: int
    quantity: str  # a column of `levels.csv`
    mean: float
    sd: float | None  # of the sample; None of a single run, as the interval
    low: float | None  # Student's 95 % interval of the mean
    high: float | None
    n: int  # runs


@dataclass(frozen=True)
class Summary:
    """A configuration of a study, and what its runs say together."""

    name: str
    parameters: Mapping[str, str]
    run_ids: Sequence[str]
    seeds: Sequence[int]
    rows: Sequence[LevelSummary]

    @property
    def content(self) -> str:
        """Hash of all that it says."""
        rows = tables.to_csv(self.rows, LevelSummary)
        parts = [self.name, dict(self.parameters), list(self.run_ids), list(self.seeds), rows]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def replace(study: str, experiment_id: str, summaries: Sequence[Summary]) -> None:
    """Have a study's summary runs in an experiment be these; what says the same already is kept.

    New ones are there before old ones are deleted, so that an interruption loses none.
    """
    client = MlflowClient()
    of_stage = reader.equal("tags.`pruneflow.stage`", STAGE)
    there = list(reader.runs([experiment_id], of_stage, study=study))
    whole = [run for run in there if run.info.status == "FINISHED"]
    known = {run.data.tags.get(_CONTENT): run.info.run_id for run in whole}
    kept = {
        known.get(summary.content) or _make(client, study, experiment_id, summary)
        for summary in summaries
    }
    for run in there:
        if run.info.run_id not in kept:
            client.delete_run(run.info.run_id)


def _make(client: MlflowClient, study: str, experiment_id: str, summary: Summary) -> str:
    """Write a summary as a new run; its id."""
    tags = {"pruneflow.stage": STAGE, "pruneflow.study": study, _CONTENT: summary.content}
    tags["mlflow.note.content"] = _described(experiment_id, summary)[:TAG_LIMIT]
    run = client.create_run(experiment_id, tags=resolve_tags() | tags, run_name=summary.name)
    run_id = str(run.info.run_id)
    seeds = {"seeds": ",".join(map(str, summary.seeds))}
    values = {f"cfg/{name}": value for name, value in {**summary.parameters, **seeds}.items()}
    params = [Param(name, value[:_LONGEST_VALUE]) for name, value in values.items()]
    of_run = [RunTag("pruneflow.runs", ",".join(summary.run_ids)[:TAG_LIMIT])]
    client.log_batch(run_id, params=params, tags=of_run)
    metrics = list(_metrics(summary.rows))
    for start in range(0, len(metrics), _MOST_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + _MOST_METRICS])
    client.log_text(run_id, tables.to_csv(summary.rows, LevelSummary), TABLE)
    client.set_terminated(run_id)
    return run_id


def _metrics(rows: Sequence[LevelSummary]) -> Iterator[Metric]:
    """Means under the names that runs have them by, so that charts lay them beside the runs."""
    now = int(time.time() * 1000)
    means = {(row.quantity, row.level): row.mean for row in rows}
    for row in rows:
        name = METRICS[row.quantity]
        spread = {"sd": row.sd, "low": row.low, "high": row.high, "n": float(row.n)}
        yield Metric(name, row.mean, now, row.level)
        for part, value in spread.items():
            if value is not None and math.isfinite(value):
                yield Metric(f"{name}_{part}", value, now, row.level)
        sparsity = means.get(("sparsity", row.level))
        if row.quantity == "test_after" and sparsity is not None:
            yield Metric("by_sparsity/test_after", row.mean, now, round(1000 * sparsity))


def _described(experiment_id: str, summary: Summary) -> str:
    """What the run's page says: the levels, and links to the runs."""
    values = {(row.level, row.quantity): row for row in summary.rows}
    text = [f"Mean of {len(summary.run_ids)} runs, seeds {', '.join(map(str, summary.seeds))}."]
    text += [
        "",
        "| level | sparsity | test accuracy | 95 % interval | n |",
        "|---|---|---|---|---|",
    ]
    for level in sorted({row.level for row in summary.rows}):
        sparsity, test = values[level, "sparsity"], values[level, "test_after"]
        known = test.low is not None and test.high is not None
        interval = f"{test.low:.4f} to {test.high:.4f}" if known else ""
        text.append(f"| {level} | {sparsity.mean:.4f} | {test.mean:.4f} | {interval} | {test.n} |")
    runs = f"#/experiments/{experiment_id}/runs"
    return "\n".join([*text, "", *(f"- [{run_id}]({runs}/{run_id})" for run_id in summary.run_ids)])
