"""Query: the runs of experiments, studies or ids as tidy DataFrames.

What a search of the store brings along (params, tags, last metrics) is read first: `runs` and
`levels` need nothing else. `layers`, `latencies` and exact levels are artifacts, one file a run.
Only MLflow's client is used, so SQLite, PostgreSQL and a server are read alike.
"""

from __future__ import annotations

import csv
import io
import json
import re
import tempfile
import types
import typing
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import mlflow
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
from pruneflow.errors import ExperimentError, InputError, first_line
from pruneflow.tracking import environment
from pruneflow.tracking.finished import in_study
from pruneflow.tracking.latencies import Latency
from pruneflow.tracking.levels import Layer, Level
from pruneflow.tracking.run import experiment_named

PAGE = 1_000  # runs that are held as MLflow's objects at a time
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
_ENDED = "FINISHED"
_CLOCKS_AGREE = pd.Timedelta(minutes=10)  # those of the machines whose runs share a store
_TIMES = "benchmark_latency"  # the stage whose runs have latencies
_PLAIN = re.compile(r"[\w./ -]+")  # names that a filter of MLflow can say between its quotes
_TROUBLE = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"}
_LARGEST = 2**63 - 1  # whole number that a column can hold
Ids = str | Sequence[str]


def runs(
    experiment: Ids | None = None,
    *,
    study: str | None = None,
    run_ids: Ids | None = None,
    filter_string: str | None = None,
    previous: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """A row a run, the oldest first, of every stage and status.

    Args:
        experiment: name or id of an MLflow experiment, or several; by default the current one.
        study: only runs of this study.
        run_ids: only these runs, of whatever experiment.
        filter_string: only runs that also fit this MLflow filter.
        previous: what this function gave before for the same arguments. Runs that were finished
            there are not read again, so that the cost is that of what is new; of a study all are
            looked through, since a finished run can join one late. Runs that were deleted since
            stay in it, and finished ones that have come to fit `filter_string` are not found.

    Returns:
        The run contract's columns (`run_id, model, ..., stage`), then `name`, `status` (RUNNING,
        FINISHED, FAILED, KILLED), `study`, `experiment_id`, `start_time`, `end_time`, `seconds`,
        `fingerprint`, `base_run`, `pruning_run` (that a benchmark times), `resumed_from`,
        `failure`, and every other parameter by its name. Texts are `string`, whole numbers
        `Int64`, truths `boolean`, all with NA where there is nothing; others floats with NaN.

    Raises:
        InputError: an experiment or run that the store does not know or that is deleted, a filter
            that is not valid, a `previous` that is of something else.
        ExperimentError: a store that does not answer.
    """
    _check_previous(previous, _RUN_FRAME)
    rows = [_run_row(run) for run in _found(experiment, study, run_ids, filter_string, previous)]
    return _joined(previous, _runs_frame(rows))


def levels(
    experiment: Ids | None = None,
    *,
    study: str | None = None,
    run_ids: Ids | None = None,
    filter_string: str | None = None,
    previous: pd.DataFrame | None = None,
    artifacts: bool = False,
) -> pd.DataFrame:
    """A row a level of every pruning run, with the columns of `levels.csv`.

    They come from the tag `pruneflow.curves`, to six digits, and are NaN where it had no room for
    a column; with `artifacts` from `levels.csv` itself, one download a run. The other arguments are
    those of `runs`. The run's own columns are `run_id, model, ..., stage` and `name, status, study,
    form, base_run, fingerprint, start_time, end_time`.

    Raises:
        InputError: as `runs`.
    """
    table = _Table(Level)
    _check_previous(previous, table.columns)
    for run in _found(experiment, study, run_ids, filter_string, previous):
        if artifacts and "pruneflow.curves" in run.data.tags:
            table.add_csv(run, "levels.csv")
        else:
            table.add_curves(run)
    return _joined(previous, table.frame())


def runs_and_levels(
    experiment: Ids | None = None,
    *,
    study: str | None = None,
    run_ids: Ids | None = None,
    filter_string: str | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What `runs` and `levels` give, of one search: the search is nearly all that either costs.

    Raises:
        InputError: as `runs`.
    """
    rows, table = [], _Table(Level)
    for run in _found(experiment, study, run_ids, filter_string, None):
        rows.append(_run_row(run))
        table.add_curves(run)
    return _joined(None, _runs_frame(rows)), _joined(None, table.frame())


def layers(
    experiment: Ids | None = None,
    *,
    study: str | None = None,
    run_ids: Ids | None = None,
    filter_string: str | None = None,
    previous: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """A row a level and parameter tensor of every pruning run: `layers.csv`, one download a run.

    Arguments, the run's own columns and errors are those of `levels`.
    """
    table = _Table(Layer)
    _check_previous(previous, table.columns)
    for run in _found(experiment, study, run_ids, filter_string, previous):
        if "pruneflow.curves" in run.data.tags:
            table.add_csv(run, "layers.csv")
    return _joined(previous, table.frame())


def latencies(
    experiment: Ids | None = None,
    *,
    study: str | None = None,
    run_ids: Ids | None = None,
    filter_string: str | None = None,
    previous: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """A row a machine, level, form, engine, device, threads and batch size: `latency.csv`.

    That is a download a run. `run_id`, `name`, `run_status` and times of day are the benchmark's;
    `pruning_run` and all that describes an experiment are those of the pruning run it timed.
    `run_ids` may name either, and finds the benchmarks of a pruning run in every experiment.
    The other arguments and errors are those of `levels`.
    """
    about = tuple(name for name in _ABOUT if name not in ("form", "status"))
    table = _Table(Latency, (*about, "run_status", "pruning_run"))
    _check_previous(previous, table.columns)
    pruned: dict[str, Mapping[str, Any]] = {}
    for run in _benchmarks(experiment, study, run_ids, filter_string, previous):
        timed = run.data.tags.get("pruneflow.pruning_run", "")
        if timed not in pruned:
            try:
                pruned[timed] = _run_row(MlflowClient().get_run(timed))
            except MlflowException:
                pruned[timed] = {}
        own = {name: pruned[timed].get(name) for name in (*IDENTITY[1:], "base_run")}
        own |= {"stage": _TIMES, "run_status": run.info.status}
        table.add_csv(run, "latency.csv", own)
    return _joined(previous, _with_machines(table.frame()))


def _with_machines(rows: pd.DataFrame) -> pd.DataFrame:
    """Times with the machine they are of; rows of before there was that column get their run's."""
    lacking = rows["machine"].isna()
    known = environments(rows.loc[lacking, "run_id"].unique().tolist())
    for run_id, one in known.items():
        for device in ("cpu", "cuda"):
            own = lacking & (rows["run_id"] == run_id) & (rows["device"] == device)
            if own.any():
                name = environment.machine(device, str(one.get("cpu")), str(one.get("gpu")))
                rows.loc[own, "machine"] = name
    return rows


def environments(run_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`environment.json` of runs, by run id; those that have none are left out."""
    found = {}
    for run_id in run_ids:
        with tempfile.TemporaryDirectory(prefix="pruneflow-") as folder:
            try:
                local = MlflowClient().download_artifacts(run_id, "environment.json", folder)
                found[run_id] = json.loads(Path(local).read_text("utf-8"))
            except (MlflowException, OSError, ValueError):
                continue
    return found


# ---------------------------------------------------------------------------------- reading runs


def _found(
    experiment: Ids | None,
    study: str | None,
    run_ids: Ids | None,
    filter_string: str | None,
    previous: pd.DataFrame | None,
    stage: str | None = None,
) -> Iterator[MlflowRun]:
    """The runs that a query names, without those that `previous` has finished, each once."""
    client = MlflowClient()
    known = _finished_ids(previous)
    wanted = None
    if run_ids is not None:
        ids = _names("run_ids", run_ids)
        wanted = {run_id: _by_id(client, run_id) for run_id in ids if run_id not in known}
        if filter_string is None or not wanted:
            yield from (run for run in wanted.values() if _fits(run, study))
            return
        experiments = sorted({run.info.experiment_id for run in wanted.values()})
    else:
        experiments = _experiments(experiment)
    for own in _conditions(study, stage, previous):
        for run in _pages(client, experiments, own, filter_string):
            run_id = run.info.run_id
            if run_id in known or (wanted is not None and run_id not in wanted):
                continue
            if _fits(run, study):
                known.add(run_id)
                yield run


def _conditions(study: str | None, stage: str | None, previous: pd.DataFrame | None) -> list[str]:
    """Filters that together find the runs of a study and stage that `previous` has not finished."""
    of_stage = [] if stage is None else [f"tags.`pruneflow.stage` = '{stage}'"]
    if study is not None and _PLAIN.fullmatch(study):
        # as `in_study` has it; not by time, since a sweep adopts runs that finished long before
        alternatives = [
            f"tags.`pruneflow.study` = '{study}'",
            f"tags.`pruneflow.study.{study}` LIKE '%'",
        ]
    else:
        ended = pd.NaT if previous is None else _finished(previous)["end_time"].max()
        alternatives = [""]
        if study is None and not pd.isna(ended):
            since = int((ended - _CLOCKS_AGREE).timestamp() * 1000)
            alternatives = [
                f"attributes.status != '{_ENDED}'",
                f"attributes.end_time >= {since}",
            ]
    return [" and ".join(filter(None, [*of_stage, one])) for one in alternatives]


def _check_previous(previous: pd.DataFrame | None, columns: Sequence[str]) -> None:
    """See that earlier rows are of the function that is to go on with them.

    Raises:
        InputError: they are not.
    """
    lacking = [] if previous is None else [name for name in columns if name not in previous]
    if lacking:
        shown = ", ".join(lacking[:3]) + (", ..." if len(lacking) > 3 else "")
        raise InputError(f"previous lacks {shown}: pass what this function gave before, whole")


def _finished(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs that were finished, and so will not change."""
    return frame[frame["run_status" if "run_status" in frame else "status"] == _ENDED]


def _finished_ids(previous: pd.DataFrame | None) -> set[str]:
    return set() if previous is None else set(_finished(previous)["run_id"])


def _benchmarks(
    experiment: Ids | None,
    study: str | None,
    run_ids: Ids | None,
    filter_string: str | None,
    previous: pd.DataFrame | None,
) -> Iterator[MlflowRun]:
    """The benchmark runs that a query names, by their own ids or those of what they timed."""
    if run_ids is None:
        yield from _found(experiment, study, None, filter_string, previous, _TIMES)
        return
    seen = _finished_ids(previous)
    timed = set()
    for run in _found(experiment, study, run_ids, filter_string, previous):
        if _is_benchmark(run):
            seen.add(run.info.run_id)
            yield run
        else:
            timed.add(run.info.run_id)
    if timed:
        everywhere = [str(one.experiment_id) for one in mlflow.search_experiments()]
        for run in _pages(MlflowClient(), everywhere, f"tags.`pruneflow.stage` = '{_TIMES}'"):
            of = run.data.tags.get("pruneflow.pruning_run")
            if of in timed and run.info.run_id not in seen:
                yield run


def _is_benchmark(run: MlflowRun) -> bool:
    return bool(run.data.tags.get("pruneflow.stage") == _TIMES)


def _fits(run: MlflowRun, study: str | None) -> bool:
    tags = run.data.tags
    return "pruneflow.stage" in tags and (study is None or in_study(tags, study))


def _pages(
    client: MlflowClient, experiments: list[str], own: str, filter_string: str | None = None
) -> Iterator[MlflowRun]:
    """The runs of experiments that fit a condition of ours and one of the caller's."""
    given = (filter_string or "").strip()
    token: str | None = None
    while True:
        try:
            page = client.search_runs(
                experiments,
                filter_string=" and ".join(filter(None, [given, own])),
                max_results=PAGE,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
        except MlflowException as error:
            raise _refused(f"filter_string={given!r} is not valid", error) from None
        yield from page
        token = page.token
        if not token:
            return


def _by_id(client: MlflowClient, run_id: str) -> MlflowRun:
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise _refused(f"run_ids={run_id!r} is not valid", error) from None
    if run.info.lifecycle_stage != "active":
        raise InputError(f"run_ids={run_id!r} is deleted: restore it, or leave it out")
    return run


def _refused(what: str, error: MlflowException) -> InputError | ExperimentError:
    """What the store did not take; or that the store itself is in trouble, whatever was asked."""
    if error.error_code in _TROUBLE:
        return ExperimentError(f"the store cannot be read: {first_line(error)}")
    return InputError(f"{what}: {first_line(error)}")


def _experiments(wanted: Ids | None) -> list[str]:
    """Ids of experiments by name or id; by default MLflow's current one.

    Raises:
        InputError: one that is not there.
    """
    if wanted is None:
        return [experiment_named(None)]
    return [experiment_named(name) for name in _names("experiment", wanted)]


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
_RUN_FRAME = (*IDENTITY, *_RUN_COLUMNS, *_PARAMETERS)


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
        {name: _typed([row.get(name) for row in rows], name) for name in _RUN_FRAME}
    )
    frame["seconds"] = (frame["end_time"] - frame["start_time"]).dt.total_seconds()
    return frame


# What reading a record that is cut short, or is not ours, can raise; brackets in brackets recurse.
_TORN = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
_READ = {"int": int, "float": float, "str": str}


def _field_kinds(record: type[Any]) -> dict[str, str]:
    """Field of a dataclass -> `int`, `float` or `str`; each may be missing but the level."""
    return {field.name: str(field.type).removesuffix(" | None") for field in fields(record)}


def _columns_of(table: Mapping[str, Sequence[Any]], record: type[Any]) -> dict[str, list[Any]]:
    """The columns of a record, every value seen to be of its field's kind.

    Raises:
        ValueError, TypeError, LookupError, AttributeError, ArithmeticError: they are not.
    """
    kinds = _field_kinds(record)
    count = len(table["level"])  # which every record has
    columns = {}
    for name, kind in kinds.items():
        values = table.get(name)
        if values is None:
            values = [None] * count
        if not isinstance(values, list) or len(values) != count:
            raise ValueError(f"{name} is no list as long as the others")
        columns[name] = [None if value is None else _as_kind(value, kind) for value in values]
    if None in columns["level"]:
        raise ValueError("level is missing")
    return columns


def _as_kind(value: Any, kind: str) -> Any:
    taken = {"int": (int,), "float": (int, float), "str": (str,)}[kind]
    if isinstance(value, bool) or not isinstance(value, taken):
        raise TypeError(f"{value!r} is no {kind}")
    if kind == "int" and abs(int(value)) > _LARGEST:
        raise ValueError(f"{value!r} is too large")
    return float(value) if kind == "float" else value


def _columns_of_csv(text: str, record: type[Any]) -> dict[str, list[Any]]:
    """The columns of a record from its CSV, to the last digit; fields that it lacks are missing.

    Raises:
        ValueError, and what `_columns_of` raises: it is torn, or something else.
    """
    header, *rows = csv.reader(io.StringIO(text))
    kinds = _field_kinds(record)
    table: dict[str, list[Any]] = {}
    for name, *cells in zip(header, *rows, strict=True):  # a row that is cut short is too short
        if name in kinds:
            read = _READ[kinds[name]]
            table[name] = [None if cell == "" else read(cell) for cell in cells]
    return _columns_of(table, record)


class _Table:
    """Rows of many runs, column by column, each with what it is of."""

    def __init__(self, record: type[Any], about: Sequence[str] = _ABOUT) -> None:
        self.record = record
        self.about = about
        self.unreadable: list[str] = []
        self._rows: list[dict[str, Any]] = []  # a row a run
        self._counts: list[int] = []
        self._columns: dict[str, list[Any]] = {field.name: [] for field in fields(record)}

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of its frame."""
        return (*IDENTITY, *self.about, *self._columns)

    def add(
        self,
        run: MlflowRun,
        columns: Mapping[str, Sequence[Any]],
        own: Mapping[str, Any] | None = None,
    ) -> None:
        """Add the rows of a run; `own` replaces what the run says of itself."""
        self._rows.append({**_run_row(run), **(own or {})})
        self._counts.append(len(columns[next(iter(self._columns))]))
        for name, values in self._columns.items():
            values.extend(columns[name])

    def add_curves(self, run: MlflowRun) -> None:
        """Add the rows that a run's tag of curves has; one that is torn is remembered."""
        text = run.data.tags.get("pruneflow.curves")
        if text is None:
            return
        try:
            columns = _columns_of(json.loads(text), self.record)
        except _TORN:
            self.unreadable.append(run.info.run_id)
            return
        self.add(run, columns)

    def add_csv(self, run: MlflowRun, path: str, own: Mapping[str, Any] | None = None) -> None:
        """Add the rows of an artifact; one that is torn is remembered, none at all is left out."""
        run_id, client = run.info.run_id, MlflowClient()
        with tempfile.TemporaryDirectory(prefix="pruneflow-") as folder:
            try:
                local = client.download_artifacts(run_id, path, folder)
                columns = _columns_of_csv(Path(local).read_text("utf-8"), self.record)
            except (MlflowException, OSError, *_TORN):
                if _holds(client, run_id, path):
                    self.unreadable.append(run_id)
                return
        self.add(run, columns, own)

    def frame(self) -> pd.DataFrame:
        """All rows, with the types of the record they are of."""
        if self.unreadable:
            shown = ", ".join(self.unreadable[:5])
            more = f" and {len(self.unreadable) - 5} more" if len(self.unreadable) > 5 else ""
            warnings.warn(
                f"runs without readable records were left out: {shown}{more}", stacklevel=3
            )
        repeated = pd.Series(range(len(self._rows)), dtype="int64").repeat(self._counts)
        columns = {
            name: _typed([row.get(name) for row in self._rows], name)
            .iloc[repeated]
            .reset_index(drop=True)
            for name in (*IDENTITY, *self.about)
        }
        dtypes = {"int": "Int64", "float": "float64", "str": "string"}
        for name, kind in _field_kinds(self.record).items():
            columns[name] = pd.Series(self._columns[name], dtype=dtypes[kind])
        return pd.DataFrame(columns)


def _holds(client: MlflowClient, run_id: str, path: str) -> bool:
    """Whether a run has an artifact, or does not let itself be asked."""
    try:
        return path in {one.path for one in client.list_artifacts(run_id)}
    except (MlflowException, OSError):
        return True


def _joined(previous: pd.DataFrame | None, new: pd.DataFrame) -> pd.DataFrame:
    """What was known of finished runs, and what was read now, the oldest run first."""
    if previous is not None:
        kept = _finished(previous)
        kept = kept[~kept["run_id"].isin(new["run_id"])]
        new = pd.concat([kept, new], ignore_index=True) if len(kept) else new
    return new.sort_values("start_time", kind="stable", ignore_index=True)
