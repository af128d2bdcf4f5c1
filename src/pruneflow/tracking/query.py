"""Query: the runs of experiments, studies or ids as tidy DataFrames.

What a search of the store brings along (params, tags, last metrics) is read first: `runs` and
`levels` need nothing else. `layers`, `latencies` and exact levels are artifacts, one file a run.
Only MLflow's client is used, so SQLite, PostgreSQL and a server are read alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypedDict, Unpack

import pandas as pd
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pruneflow.errors import InputError, first_line
from pruneflow.tracking import environment, reader
from pruneflow.tracking.finished import in_study
from pruneflow.tracking.frames import ABOUT, CURVES, IDENTITY, Table, run_row, runs_frame
from pruneflow.tracking.latencies import Latency
from pruneflow.tracking.levels import Layer, Level
from pruneflow.tracking.store import experiment_named

_TIMES = "benchmark_latency"  # the stage whose runs have latencies
_PLAIN = re.compile(r"[\w./ -]+")  # names that a filter of MLflow can say between its quotes
Ids = str | Sequence[str]


class Which(TypedDict, total=False):
    """Which runs a query is of, beside their experiment; all of it where nothing is given.

    Attributes:
        study: only runs of this study.
        run_ids: only these runs, of whatever experiment.
        filter_string: only runs that also fit this MLflow filter.
    """

    study: str | None
    run_ids: Ids | None
    filter_string: str | None


def runs(experiment: Ids | None = None, **which: Unpack[Which]) -> pd.DataFrame:
    """A row a run, the oldest first, of every stage and status.

    Args:
        experiment: name or id of an MLflow experiment, or several; by default the current one.
        which: `study`, `run_ids`, `filter_string`, see `Which`.

    Returns:
        The run contract's columns (`run_id, model, ..., stage`), then `name`, `status` (RUNNING,
        FINISHED, FAILED, KILLED), `study`, `experiment_id`, `start_time`, `end_time`, `seconds`,
        `fingerprint`, `base_run`, `pruning_run` (that a benchmark times), `resumed_from`,
        `failure`, and every other parameter by its name. Texts are `string`, whole numbers
        `Int64`, truths `boolean`, all with NA where there is nothing; others floats with NaN.

    Raises:
        InputError: an experiment or run that the store does not know or that is deleted, or a
            filter that is not valid.
        ExperimentError: a store that does not answer.
    """
    return runs_frame([run_row(run) for run in _matching(experiment, **which)])


def levels(
    experiment: Ids | None = None, *, artifacts: bool = False, **which: Unpack[Which]
) -> pd.DataFrame:
    """A row a level of every pruning run, with the columns of `levels.csv`.

    They come from the tag `pruneflow.curves`, to six digits, and are NaN where it had no room for
    a column; with `artifacts` from `levels.csv` itself, one download a run. The other arguments are
    those of `runs`. The run's own columns are `run_id, model, ..., stage` and `name, status, study,
    form, base_run, fingerprint, start_time, end_time`.

    Raises:
        InputError, ExperimentError: as `runs`.
    """
    table = Table(Level)
    for run in _matching(experiment, **which):
        if artifacts and CURVES in run.data.tags:
            table.add_csv(run, "levels.csv")
        else:
            table.add_curves(run)
    return table.frame()


def runs_and_levels(
    experiment: Ids | None = None, **which: Unpack[Which]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What `runs` and `levels` give, of one search: the search is nearly all that either costs.

    Raises:
        InputError, ExperimentError: as `runs`.
    """
    rows, table = [], Table(Level)
    for run in _matching(experiment, **which):
        rows.append(run_row(run))
        table.add_curves(run)
    return runs_frame(rows), table.frame()


def layers(experiment: Ids | None = None, **which: Unpack[Which]) -> pd.DataFrame:
    """A row a level and parameter tensor of every pruning run: `layers.csv`, one download a run.

    Arguments, the run's own columns and errors are those of `levels`.
    """
    table = Table(Layer)
    for run in _matching(experiment, **which):
        if CURVES in run.data.tags:
            table.add_csv(run, "layers.csv")
    return table.frame()


def latencies(experiment: Ids | None = None, **which: Unpack[Which]) -> pd.DataFrame:
    """A row a machine, level, form, engine, device, threads and batch size: `latency.csv`.

    That is a download a run. `run_id`, `name`, `run_status` and times of day are the benchmark's;
    `pruning_run` and all that describes an experiment are those of the pruning run it timed.
    `run_ids` may name either, and finds the benchmarks of a pruning run in every experiment.
    The other arguments and errors are those of `levels`.
    """
    about = tuple(name for name in ABOUT if name not in ("form", "status"))
    table = Table(Latency, (*about, "run_status", "pruning_run"))
    pruned: dict[str, Mapping[str, Any]] = {}
    for run in _benchmarks(experiment, **which):
        timed = run.data.tags.get("pruneflow.pruning_run", "")
        if timed not in pruned:
            try:
                pruned[timed] = run_row(MlflowClient().get_run(timed))
            except MlflowException:
                pruned[timed] = {}
        about_it = {name: pruned[timed].get(name) for name in (*IDENTITY[1:], "base_run")}
        about_it |= {"stage": _TIMES, "run_status": run.info.status}
        table.add_csv(run, "latency.csv", about_it)
    return _with_machines(table.frame())


def _with_machines(rows: pd.DataFrame) -> pd.DataFrame:
    """Times with the machine they are of; rows of before there was that column get their run's."""
    lacking = rows["machine"].isna()
    known = environments(rows.loc[lacking, "run_id"].unique().tolist())
    for run_id, described in known.items():
        for device in ("cpu", "cuda"):
            its = lacking & (rows["run_id"] == run_id) & (rows["device"] == device)
            if its.any():
                names = str(described.get("cpu")), str(described.get("gpu"))
                rows.loc[its, "machine"] = environment.machine(device, *names)
    return rows


def environments(run_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`environment.json` of runs, by run id; those that have none are left out."""
    described = {}
    for run_id in run_ids:
        try:
            described[run_id] = json.loads(reader.text_of(run_id, "environment.json"))
        except (*reader.FAILURES, ValueError):
            continue
    return described


# ---------------------------------------------------------------------------------- reading runs


def _matching(
    experiment: Ids | None,
    *,
    study: str | None = None,
    run_ids: Ids | None = None,
    filter_string: str | None = None,
    stage: str | None = None,
) -> Iterator[MlflowRun]:
    """The runs that a query names, each once."""
    named = None
    if run_ids is not None:
        named = {run_id: _by_id(run_id) for run_id in _names("run_ids", run_ids)}
        if filter_string is None or not named:
            yield from (run for run in named.values() if _fits(run, study))
            return
        experiments = sorted({run.info.experiment_id for run in named.values()})
    else:
        names = [None] if experiment is None else _names("experiment", experiment)
        experiments = [experiment_named(name) for name in names]
    given = (filter_string or "").strip()
    of_stage = "" if stage is None else f"tags.`pruneflow.stage` = '{stage}'"
    seen = set()
    for of_study in _of_study(study):
        try:
            for run in reader.runs(experiments, given, of_stage, of_study):
                run_id = run.info.run_id
                if run_id not in seen and (named is None or run_id in named) and _fits(run, study):
                    seen.add(run_id)
                    yield run
        except MlflowException as error:
            reason = f"filter_string={given!r} is not valid: {first_line(error)}"
            raise reader.refused(error, reason) from None


def _of_study(study: str | None) -> list[str]:
    """Filters that together find the runs of a study, as `in_study` has it."""
    if study is None or not _PLAIN.fullmatch(study):
        return [""]
    return [f"tags.`pruneflow.study` = '{study}'", f"tags.`pruneflow.study.{study}` LIKE '%'"]


def _fits(run: MlflowRun, study: str | None) -> bool:
    tags = run.data.tags
    return "pruneflow.stage" in tags and (study is None or in_study(tags, study))


def _benchmarks(experiment: Ids | None, **which: Unpack[Which]) -> Iterator[MlflowRun]:
    """The benchmark runs that a query names, by their own ids or those of what they timed."""
    if which.get("run_ids") is None:
        yield from _matching(experiment, **which, stage=_TIMES)
        return
    seen, timed = set(), set()
    for run in _matching(experiment, **which):
        if run.data.tags.get("pruneflow.stage") == _TIMES:
            seen.add(run.info.run_id)
            yield run
        else:
            timed.add(run.info.run_id)
    if timed:
        for run in reader.runs(None, f"tags.`pruneflow.stage` = '{_TIMES}'"):
            of = run.data.tags.get("pruneflow.pruning_run")
            if of in timed and run.info.run_id not in seen:
                yield run


def _by_id(run_id: str) -> MlflowRun:
    run = reader.run(run_id, "run_ids", "ids of runs")
    if run.info.lifecycle_stage != "active":
        raise InputError(f"run_ids={run_id!r} is deleted: restore it, or leave it out")
    return run


def _names(parameter: str, given: Ids) -> list[str]:
    """One text or several, as a list.

    Raises:
        InputError: it is something else (an id as a number, say).
    """
    names = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"{parameter}={name!r} is not text: write {str(name)!r}")
    return names
