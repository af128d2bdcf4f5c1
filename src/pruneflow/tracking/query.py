"""Query: the runs of experiments, studies or ids as tidy DataFrames.

What a search of the store brings along (params, tags, last metrics) is read first: `runs` and
`levels` need nothing else. `layers`, `latencies` and exact levels are artifacts, one file a run.
Only MLflow's client is used, so SQLite, PostgreSQL and a server are read alike.
"""

from __future__ import annotations

import json
import tempfile
import types
import typing
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pruneflow.config import BenchmarkConfig, FinetuneConfig, PruneConfig, SweepConfig
from pruneflow.errors import InputError, first_line
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
            there are not read again, so that the cost is that of what is new; runs that were
            deleted since stay in it.

    Returns:
        The run contract's columns (`run_id, model, ..., stage`), then `name`, `status` (RUNNING,
        FINISHED, FAILED, KILLED), `study`, `experiment_id`, `start_time`, `end_time`, `seconds`,
        `fingerprint`, `base_run`, `pruning_run` (that a benchmark times), `resumed_from`,
        `failure`, and every other parameter by its name. Texts are `string`, whole numbers
        `Int64`, truths `boolean`, all with NA where there is nothing; others floats with NaN.

    Raises:
        InputError: an experiment, run or filter that the store does not know.
    """
    rows = [_run_row(run) for run in _found(experiment, study, run_ids, filter_string, previous)]
    columns = [*IDENTITY, *_RUN_COLUMNS, *_PARAMETERS]
    frame = pd.DataFrame({name: _typed([row.get(name) for row in rows], name) for name in columns})
    frame["seconds"] = (frame["end_time"] - frame["start_time"]).dt.total_seconds()
    return _joined(previous, frame)


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
    names = [field.name for field in fields(Level)]
    table = _Table(names)
    for run in _found(experiment, study, run_ids, filter_string, previous):
        text = run.data.tags.get("pruneflow.curves")
        if text is None:
            continue
        if artifacts:
            table.add_csv(run, "levels.csv")
            continue
        try:
            curves = json.loads(text)
            count = len(curves["level"])
            columns = {name: curves.get(name) or [None] * count for name in names}
            if any(len(column) != count for column in columns.values()):
                raise ValueError("its columns differ in length")
        except (ValueError, LookupError, TypeError, AttributeError):
            table.unreadable.append(run.info.run_id)
            continue
        table.add(run, columns, count)
    return _joined(previous, table.frame(Level))


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
    table = _Table([field.name for field in fields(Layer)])
    for run in _found(experiment, study, run_ids, filter_string, previous):
        if "pruneflow.curves" in run.data.tags:
            table.add_csv(run, "layers.csv")
    return _joined(previous, table.frame(Layer))


def latencies(
    experiment: Ids | None = None,
    *,
    study: str | None = None,
    run_ids: Ids | None = None,
    filter_string: str | None = None,
    previous: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """A row a level, form, engine, device, threads and batch size: `latency.csv`, a download a run.

    `run_id`, `name`, `run_status` and times of day are the benchmark's; `pruning_run` and all that
    describes an experiment are those of the pruning run it timed. `run_ids` may name either.
    The other arguments and errors are those of `levels`.
    """
    about = tuple(name for name in _ABOUT if name not in ("form", "status"))
    table = _Table([f.name for f in fields(Latency)], (*about, "run_status", "pruning_run"))
    pruned: dict[str, Mapping[str, Any]] = {}
    for run in _benchmarks(experiment, study, run_ids, filter_string, previous):
        timed = run.data.tags.get("pruneflow.pruning_run", "")
        if timed not in pruned:
            try:
                pruned[timed] = _run_row(MlflowClient().get_run(timed))
            except MlflowException:
                pruned[timed] = {}
        own = {name: pruned[timed].get(name) for name in (*IDENTITY[1:], "base_run")}
        own |= {"stage": "benchmark_latency", "run_status": run.info.status}
        table.add_csv(run, "latency.csv", own)
    return _joined(previous, table.frame(Latency))


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
) -> Iterator[MlflowRun]:
    """The runs that a query names, the oldest first, without those that `previous` has finished."""
    client = MlflowClient()
    known = set() if previous is None else set(_finished(previous)["run_id"])
    if run_ids is not None:
        ids = [run_ids] if isinstance(run_ids, str) else list(run_ids)
        wanted = {run_id: _by_id(client, run_id) for run_id in ids if run_id not in known}
        experiments = sorted({run.info.experiment_id for run in wanted.values()})
        if filter_string is None or not wanted:
            yield from (run for run in wanted.values() if _fits(run, study))
            return
    else:
        wanted = None
        experiments = _experiments(experiment)
    conditions = [filter_string or ""]
    if known and previous is not None:
        since = _finished(previous)["end_time"].max() - _CLOCKS_AGREE
        with_filter = f"{filter_string} and " if filter_string else ""
        conditions = [
            f"{with_filter}attributes.status != '{_ENDED}'",
            f"{with_filter}attributes.end_time >= {int(since.timestamp() * 1000)}",
        ]
    for condition in conditions:
        for run in _pages(client, experiments, condition):
            run_id = run.info.run_id
            if run_id in known or (wanted is not None and run_id not in wanted):
                continue
            if _fits(run, study):
                known.add(run_id)
                yield run


def _finished(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs that were finished, and so will not change."""
    return frame[frame["run_status" if "run_status" in frame else "status"] == _ENDED]


def _benchmarks(
    experiment: Ids | None,
    study: str | None,
    run_ids: Ids | None,
    filter_string: str | None,
    previous: pd.DataFrame | None,
) -> Iterator[MlflowRun]:
    """The benchmark runs that a query names, by their own ids or those of what they timed."""
    if run_ids is None:
        for run in _found(experiment, study, None, filter_string, previous):
            if _is_benchmark(run):
                yield run
        return
    named = list(_found(experiment, study, run_ids, filter_string, previous))
    timed = {run.info.run_id for run in named if not _is_benchmark(run)}
    seen = set()
    for run in named:
        if _is_benchmark(run):
            seen.add(run.info.run_id)
            yield run
    if timed:
        experiments = sorted({run.info.experiment_id for run in named})
        known = set() if previous is None else set(_finished(previous)["run_id"])
        seen |= known
        stage = "tags.`pruneflow.stage` = 'benchmark_latency'"
        for run in _pages(MlflowClient(), experiments, stage):
            of = run.data.tags.get("pruneflow.pruning_run")
            if of in timed and run.info.run_id not in seen:
                yield run


def _is_benchmark(run: MlflowRun) -> bool:
    return bool(run.data.tags.get("pruneflow.stage") == "benchmark_latency")


def _fits(run: MlflowRun, study: str | None) -> bool:
    tags = run.data.tags
    return "pruneflow.stage" in tags and (study is None or in_study(tags, study))


def _pages(client: MlflowClient, experiments: list[str], condition: str) -> Iterator[MlflowRun]:
    token: str | None = None
    while True:
        try:
            page = client.search_runs(
                experiments,
                filter_string=condition,
                max_results=PAGE,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
        except MlflowException as error:
            raise InputError(
                f"filter_string={condition!r} is not valid: {first_line(error)}"
            ) from None
        yield from page
        token = page.token
        if not token:
            return


def _by_id(client: MlflowClient, run_id: str) -> MlflowRun:
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        raise InputError(f"run_ids={run_id!r} is not valid: {first_line(error)}") from None


def _experiments(wanted: Ids | None) -> list[str]:
    """Ids of experiments by name or id; by default MLflow's current one.

    Raises:
        InputError: one that is not there.
    """
    if wanted is None:
        return [experiment_named(None)]
    return [experiment_named(name) for name in ([wanted] if isinstance(wanted, str) else wanted)]


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
    for config in (FinetuneConfig, PruneConfig, BenchmarkConfig, SweepConfig):
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
    if kind in ("Int64", "float64"):
        numbers = pd.to_numeric(pd.Series(known, dtype=object), errors="coerce")
        return numbers.astype(kind)  # type: ignore[call-overload, no-any-return]
    return pd.Series(known, dtype="string")


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


class _Table:
    """Rows of many runs, column by column, each with what it is of."""

    def __init__(self, names: Sequence[str], about: Sequence[str] = _ABOUT) -> None:
        self.names = names
        self.about = about
        self.unreadable: list[str] = []
        self._rows: list[dict[str, Any]] = []  # a row a run
        self._counts: list[int] = []
        self._columns: dict[str, list[Any]] = {name: [] for name in names}

    def add(
        self,
        run: MlflowRun,
        columns: Mapping[str, Sequence[Any]],
        count: int,
        own: Mapping[str, Any] | None = None,
    ) -> None:
        """Add `count` rows of a run; `own` replaces what the run says of itself."""
        self._rows.append({**_run_row(run), **(own or {})})
        self._counts.append(count)
        for name in self.names:
            self._columns[name].extend(columns[name])

    def add_csv(self, run: MlflowRun, path: str, own: Mapping[str, Any] | None = None) -> None:
        """Add the rows of an artifact; a run that has none, or one that is torn, is remembered."""
        run_id = run.info.run_id
        with tempfile.TemporaryDirectory(prefix="pruneflow-") as folder:
            try:
                local = MlflowClient().download_artifacts(run_id, path, folder)
                read = pd.read_csv(Path(local))
                columns = {
                    n: read[n].tolist() if n in read else [None] * len(read) for n in self.names
                }
            except (MlflowException, OSError, ValueError, LookupError):
                self.unreadable.append(run_id)
                return
        missing: list[Any] = [None] * len(read)
        columns = {n: read[n].tolist() if n in read else missing for n in self.names}
        self.add(run, columns, len(read), own)

    def frame(self, kind: type[Any]) -> pd.DataFrame:
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
        for field in fields(kind):
            column = pd.Series(self._columns[field.name], dtype=object)
            if "float" in str(field.type):
                column = pd.to_numeric(column, errors="coerce").astype(float)
            elif "int" in str(field.type):
                column = pd.to_numeric(column, errors="coerce").astype("Int64")
            else:
                column = column.astype("string")
            columns[field.name] = column
        return pd.DataFrame(columns)


def _joined(previous: pd.DataFrame | None, new: pd.DataFrame) -> pd.DataFrame:
    """What was known of finished runs, and what was read now."""
    if previous is None:
        return new
    kept = _finished(previous)
    kept = kept[~kept["run_id"].isin(new["run_id"])]
    return pd.concat([kept, new], ignore_index=True) if len(kept) else new
