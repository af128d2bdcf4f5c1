"""Query: the runs of experiments, studies or ids as tidy DataFrames.

What a search of the store brings along (params, tags, last metrics) is read first: `runs` and
`levels` need nothing else. `layers`, `latencies` and exact levels are artifacts, one file a run.
Only MLflow's client is used, so SQLite, PostgreSQL and a server are read alike.
"""

from __future__ import annotations

import json
import re
import types
import typing
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pruneflow.config import (
    BenchmarkConfig,
    FinetuneConfig,
    PruneConfig,
    ReportConfig,
    SweepConfig,
)
from pruneflow.errors import InputError, first_line
from pruneflow.tracking import environment, reader, tables
from pruneflow.tracking.finished import in_study
from pruneflow.tracking.latencies import Latency
from pruneflow.tracking.levels import Layer, Level
from pruneflow.tracking.run import experiment_named

IDENTITY = (
    "run_id",
    "model",
    "dataset",
    "criterion",
    "granularity",
    "scope",
    "coupling",
    "fraction",
    "seed",
    "stage",
)
_ABOUT = ("name", "status", "study", "form", "base_run", "fingerprint", "start_time", "end_time")
_TAGS = ("study", "fingerprint", "base_run", "pruning_run", "resumed_from", "failure")
_TIMES = "benchmark_latency"  # the stage whose runs have latencies
_CURVES = "pruneflow.curves"  # the tag of runs that have levels
_PLAIN = re.compile(r"[\w./ -]+")  # names that a filter of MLflow can say between its quotes
_LARGEST = 2**63 - 1  # whole number that a column can hold
Ids = str | Sequence[str]


def runs(
    experiment: Ids | None = None,
    *,
    study: str | None = None,
    run_ids: Ids | None = None,
    filter_string: str | None = None,
) -> pd.DataFrame:
    """A row a run, the oldest first, of every stage and status.

    Args:
        experiment: name or id of an MLflow experiment, or several; by default the current one.
        study: only runs of this study.
        run_ids: only these runs, of whatever experiment.
        filter_string: only runs that also fit this MLflow filter.

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
    return _runs_frame(
        [_run_row(run) for run in _matching(experiment, study, run_ids, filter_string)]
    )


def levels(
    experiment: Ids | None = None,
    *,
    study: str | None = None,
    run_ids: Ids | None = None,
    filter_string: str | None = None,
    artifacts: bool = False,
) -> pd.DataFrame:
    """A row a level of every pruning run, with the columns of `levels.csv`.

    They come from the tag `pruneflow.curves`, to six digits, and are NaN where it had no room for
    a column; with `artifacts` from `levels.csv` itself, one download a run. The other arguments are
    those of `runs`. The run's own columns are `run_id, model, ..., stage` and `name, status, study,
    form, base_run, fingerprint, start_time, end_time`.

    Raises:
        InputError, ExperimentError: as `runs`.
    """
    table = _Table(Level)
    for run in _matching(experiment, study, run_ids, filter_string):
        if artifacts and _CURVES in run.data.tags:
            table.add_csv(run, "levels.csv")
        else:
            table.add_curves(run)
    return table.frame()


def runs_and_levels(
    experiment: Ids | None = None,
    *,
    study: str | None = None,
    run_ids: Ids | None = None,
    filter_string: str | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What `runs` and `levels` give, of one search: the search is nearly all that either costs.

    Raises:
        InputError, ExperimentError: as `runs`.
    """
    rows, table = [], _Table(Level)
    for run in _matching(experiment, study, run_ids, filter_string):
        rows.append(_run_row(run))
        table.add_curves(run)
    return _runs_frame(rows), table.frame()


def layers(
    experiment: Ids | None = None,
    *,
    study: str | None = None,
    run_ids: Ids | None = None,
    filter_string: str | None = None,
) -> pd.DataFrame:
    """A row a level and parameter tensor of every pruning run: `layers.csv`, one download a run.

    Arguments, the run's own columns and errors are those of `levels`.
    """
    table = _Table(Layer)
    for run in _matching(experiment, study, run_ids, filter_string):
        if _CURVES in run.data.tags:
            table.add_csv(run, "layers.csv")
    return table.frame()


def latencies(
    experiment: Ids | None = None,
    *,
    study: str | None = None,
    run_ids: Ids | None = None,
    filter_string: str | None = None,
) -> pd.DataFrame:
    """A row a machine, level, form, engine, device, threads and batch size: `latency.csv`.

    That is a download a run. `run_id`, `name`, `run_status` and times of day are the benchmark's;
    `pruning_run` and all that describes an experiment are those of the pruning run it timed.
    `run_ids` may name either, and finds the benchmarks of a pruning run in every experiment.
    The other arguments and errors are those of `levels`.
    """
    about = tuple(name for name in _ABOUT if name not in ("form", "status"))
    table = _Table(Latency, (*about, "run_status", "pruning_run"))
    pruned: dict[str, Mapping[str, Any]] = {}
    for run in _benchmarks(experiment, study, run_ids, filter_string):
        timed = run.data.tags.get("pruneflow.pruning_run", "")
        if timed not in pruned:
            try:
                pruned[timed] = _run_row(MlflowClient().get_run(timed))
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
            described[run_id] = json.loads(reader.text(run_id, "environment.json"))
        except (*reader.FAILURES, ValueError):
            continue
    return described


# ---------------------------------------------------------------------------------- reading runs


def _matching(
    experiment: Ids | None,
    study: str | None,
    run_ids: Ids | None,
    filter_string: str | None,
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


def _benchmarks(
    experiment: Ids | None, study: str | None, run_ids: Ids | None, filter_string: str | None
) -> Iterator[MlflowRun]:
    """The benchmark runs that a query names, by their own ids or those of what they timed."""
    if run_ids is None:
        yield from _matching(experiment, study, None, filter_string, _TIMES)
        return
    seen, timed = set(), set()
    for run in _matching(experiment, study, run_ids, filter_string):
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


# ---------------------------------------------------------------------------------- making frames

_RUN_COLUMNS = (
    "name",
    "status",
    "study",
    "experiment_id",
    "start_time",
    "end_time",
    "seconds",
    "fingerprint",
    "base_run",
    "pruning_run",
    "resumed_from",
    "failure",
)


def _kinds() -> dict[str, str]:
    """Parameter -> pandas' type of it, from the configurations; texts and lists are strings."""
    found: dict[str, str] = {}
    for config in (FinetuneConfig, PruneConfig, BenchmarkConfig, ReportConfig, SweepConfig):
        for name, field in config.model_fields.items():
            options = {field.annotation}
            if isinstance(field.annotation, types.UnionType) or (
                typing.get_origin(field.annotation) is typing.Union
            ):
                options = set(typing.get_args(field.annotation))
            bare = {typing.get_args(o)[0] if hasattr(o, "__metadata__") else o for o in options}
            kinds = {int: "Int64", float: "float64", bool: "boolean"}
            kind = next((kinds[one] for one in bare if one in kinds), "string")
            found[name] = kind if found.get(name, kind) == kind else "string"
    return found


_KINDS = _kinds()
_PARAMETERS = [name for name in _KINDS if name not in (*IDENTITY, *_RUN_COLUMNS)]


def _typed(values: Sequence[Any], name: str) -> pd.Series[Any]:
    """A column of what MLflow tells as text, as what it is; NA where there is nothing."""
    if name in ("start_time", "end_time"):
        return pd.to_datetime(pd.Series(values, dtype="Int64"), unit="ms", utc=True)
    known = [None if value == "" else value for value in values]
    kind = _KINDS.get(name, "string")
    if kind == "boolean":
        truths = {"True": True, "False": False, None: None}
        return pd.Series([truths.get(value) for value in known], dtype="boolean")
    if kind == "Int64":
        return pd.Series([_whole(value) for value in known], dtype="Int64")
    if kind == "float64":
        numbers = pd.to_numeric(pd.Series(known, dtype=object), errors="coerce")
        return numbers.astype("float64")
    return pd.Series(known, dtype="string")


def _whole(text: str | None) -> int | None:
    """A whole number; None for what is none, as another program may have logged it."""
    try:
        number = int(text or "")
    except ValueError:
        return None
    return number if abs(number) <= _LARGEST else None


def _run_row(run: MlflowRun) -> dict[str, Any]:
    """What a search tells of a run."""
    tags, params = run.data.tags, run.data.params
    row: dict[str, Any] = {name: params.get(f"cfg/{name}") for name in _KINDS}
    row |= {name: tags.get(f"pruneflow.{name}") for name in (*_TAGS, "stage")}
    row |= {
        "run_id": run.info.run_id,
        "name": run.info.run_name,
        "status": run.info.status,
        "experiment_id": run.info.experiment_id,
        "start_time": run.info.start_time,
        "end_time": run.info.end_time,
    }
    return row


def _runs_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            name: _typed([row.get(name) for row in rows], name)
            for name in (*IDENTITY, *_RUN_COLUMNS, *_PARAMETERS)
        }
    )
    frame["seconds"] = (frame["end_time"] - frame["start_time"]).dt.total_seconds()
    return _oldest_first(frame)


def _oldest_first(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values("start_time", kind="stable", ignore_index=True)


class _Table:
    """Rows of many runs, each with what it is of."""

    def __init__(self, record: type[Any], about: Sequence[str] = _ABOUT) -> None:
        self._record = record
        self._about = about
        self._unreadable: list[str] = []
        self._runs: list[dict[str, Any]] = []  # a row a run
        self._parts: list[Mapping[str, Any]] = []  # its columns

    def add_curves(self, run: MlflowRun) -> None:
        """Add the rows that a run's tag of curves has; one that is torn is remembered."""
        if _CURVES in run.data.tags:
            try:
                self._add(run, dict(json.loads(run.data.tags[_CURVES])))
            except (ValueError, TypeError, RecursionError):  # of brackets in brackets
                self._unreadable.append(run.info.run_id)

    def add_csv(self, run: MlflowRun, path: str, about: Mapping[str, Any] | None = None) -> None:
        """Add the rows of an artifact; one that is torn is remembered, none at all is left out.

        Args:
            run: whose it is.
            path: of the artifact.
            about: replaces what the run says of itself.
        """
        try:
            cells = tables.cells(reader.text(run.info.run_id, path))
        except (*reader.FAILURES, ValueError):
            if _holds(run.info.run_id, path):
                self._unreadable.append(run.info.run_id)
            return
        self._add(run, {str(name): list(column) for name, column in cells.items()}, about)

    def _add(
        self, run: MlflowRun, columns: Mapping[str, Any], about: Mapping[str, Any] | None = None
    ) -> None:
        self._runs.append({**_run_row(run), **(about or {})})
        self._parts.append(columns)

    def frame(self) -> pd.DataFrame:
        """All rows, the oldest run's first, with the types of the record they are of."""
        records = self._records()
        if self._unreadable:
            shown = ", ".join(self._unreadable[:5])
            more = f" and {len(self._unreadable) - 5} more" if len(self._unreadable) > 5 else ""
            warnings.warn(
                f"runs without readable records were left out: {shown}{more}", stacklevel=3
            )
        counts = [len(part["level"]) for part in self._parts]
        run_of_row = pd.Series(range(len(counts)), dtype="int64").repeat(counts)
        about = {
            name: _typed([row.get(name) for row in self._runs], name)
            .iloc[run_of_row]
            .reset_index(drop=True)
            for name in (*IDENTITY, *self._about)
        }
        columns = {name: records[name] for name in tables.dtypes(self._record)}
        return _oldest_first(pd.DataFrame(about | columns))

    def _records(self) -> pd.DataFrame:
        """The records of all runs; those that cannot be read are left out and remembered."""
        try:
            return tables.frame(
                _joined(self._parts, list(tables.dtypes(self._record))), self._record
            )
        except (ValueError, LookupError, TypeError):
            readable = [self._is_readable(part) for part in self._parts]
        kept = [
            (r, p) for r, p, fine in zip(self._runs, self._parts, readable, strict=True) if fine
        ]
        self._unreadable += [
            str(row["run_id"]) for row, fine in zip(self._runs, readable, strict=True) if not fine
        ]
        self._runs, self._parts = [row for row, _ in kept], [part for _, part in kept]
        return tables.frame(_joined(self._parts, list(tables.dtypes(self._record))), self._record)

    def _is_readable(self, part: Mapping[str, Any]) -> bool:
        try:
            tables.frame(_joined([part], list(tables.dtypes(self._record))), self._record)
        except (ValueError, LookupError, TypeError):
            return False
        return True


def _joined(parts: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, list[Any]]:
    """The columns of tables, one table below the other; NA where one lacks a column.

    Raises:
        ValueError, LookupError, TypeError: columns that are no lists of one length.
    """
    joined: dict[str, list[Any]] = {name: [] for name in names}
    for part in parts:
        count = len(part["level"])
        for name, column in joined.items():
            values = part.get(name, [None] * count)
            if not isinstance(values, list) or len(values) != count:
                raise ValueError(f"{name} is no list as long as the others")
            column.extend(values)
    return joined


def _holds(run_id: str, path: str) -> bool:
    """Whether a run has an artifact, or does not let itself be asked."""
    try:
        return path in {entry.path for entry in MlflowClient().list_artifacts(run_id)}
    except reader.FAILURES:
        return True
