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
from pruneflow.tracking import environment, reader, tables
from pruneflow.tracking.finished import in_study
from pruneflow.tracking.frames import ABOUT, IDENTITY, RUN_COLUMNS, records_frame, runs_frame
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
    return _runs(experiment, **which)[[*RUN_COLUMNS]]


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
    found = _runs(experiment, **which)
    return records_frame(found, _csv(found, "levels.csv") if artifacts else _curves(found), Level)


def runs_and_levels(
    experiment: Ids | None = None, **which: Unpack[Which]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What `runs` and `levels` give, of one search: the search is nearly all that either costs.

    Raises:
        InputError, ExperimentError: as `runs`.
    """
    found = _runs(experiment, **which)
    return found[[*RUN_COLUMNS]], records_frame(found, _curves(found), Level)


def layers(experiment: Ids | None = None, **which: Unpack[Which]) -> pd.DataFrame:
    """A row a level and parameter tensor of every pruning run: `layers.csv`, one download a run.

    Arguments, the run's own columns and errors are those of `levels`.
    """
    found = _runs(experiment, **which)
    return records_frame(found, _csv(found, "layers.csv"), Layer)


def latencies(experiment: Ids | None = None, **which: Unpack[Which]) -> pd.DataFrame:
    """A row a machine, level, form, engine, device, threads and batch size: `latency.csv`.

    That is a download a run. `run_id`, `name`, `run_status` and times of day are the benchmark's;
    `pruning_run` and all that describes an experiment are those of the pruning run it timed.
    `run_ids` may name either, and finds the benchmarks of a pruning run in every experiment.
    The other arguments and errors are those of `levels`.
    """
    found = runs_frame(_benchmarks(experiment, **which))
    rows = _csv(found.assign(curves="there"), "latency.csv")
    timed = runs_frame(filter(None, map(_found, found["pruning_run"].dropna().unique())))
    theirs = [*IDENTITY[1:-1], "base_run"]  # all but the run's id and stage
    found[theirs] = timed.set_index("run_id")[theirs].reindex(found["pruning_run"]).to_numpy()
    found = found.astype(timed.dtypes[theirs].to_dict()).assign(run_status=found["status"])
    about = [name for name in ABOUT if name not in ("form", "status")]
    frame = records_frame(found, rows, Latency, (*about, "run_status", "pruning_run"))
    return _with_machines(frame)


def _found(run_id: str) -> MlflowRun | None:
    try:
        return MlflowClient().get_run(run_id)
    except MlflowException:
        return None


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


# ------------------------------------------------------------------------------- reading records


def _curves(runs: pd.DataFrame) -> dict[str, Mapping[str, Any] | None]:
    """The columns of the levels that runs' tags of curves have, by run id."""
    columns: dict[str, Mapping[str, Any] | None] = {}
    for run_id, text in runs.dropna(subset="curves")[["run_id", "curves"]].itertuples(index=False):
        try:
            columns[run_id] = dict(json.loads(text))
        except (ValueError, TypeError, RecursionError):  # of brackets in brackets
            columns[run_id] = None
    return columns


def _csv(runs: pd.DataFrame, path: str) -> dict[str, Mapping[str, Any] | None]:
    """The columns of an artifact, by run id, of the runs that have levels and that artifact."""
    columns: dict[str, Mapping[str, Any] | None] = {}
    for run_id in runs.dropna(subset="curves")["run_id"]:
        try:
            cells = tables.cells(reader.text_of(run_id, path))
            columns[run_id] = {str(name): list(cells[name]) for name in cells}
        except (*reader.FAILURES, ValueError):
            if _holds(run_id, path):
                columns[run_id] = None
    return columns


def _holds(run_id: str, path: str) -> bool:
    """Whether a run has an artifact, or does not let itself be asked."""
    try:
        return path in {entry.path for entry in MlflowClient().list_artifacts(run_id)}
    except reader.FAILURES:
        return True


# ---------------------------------------------------------------------------------- reading runs


def _runs(experiment: Ids | None, **which: Unpack[Which]) -> pd.DataFrame:
    return runs_frame(_matching(experiment, **which))


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
