"""Query: the runs of experiments, studies or ids as tidy DataFrames.

`runs` and `levels` need what a search of the store brings along, params and tags. `layers`,
`latencies` and exact levels are artifacts, one file a run.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypedDict, Unpack

import pandas as pd
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pruneflow.config import (
    BenchmarkConfig,
    FinetuneConfig,
    PruneConfig,
    ReportConfig,
    SensitivityConfig,
    SweepConfig,
)
from pruneflow.errors import InputError
from pruneflow.tracking import reader, tables
from pruneflow.tracking import summaries as seeds
from pruneflow.tracking.latencies import Latency
from pruneflow.tracking.levels import Layer, Level
from pruneflow.tracking.sensitivities import TABLE, Sensitivity
from pruneflow.tracking.store import experiment_named

IDENTITY = (
    "run_id", "model", "dataset", "criterion", "granularity", "scope", "coupling", "fraction",
    "seed", "stage",
)  # fmt: skip
_ABOUT = ["name", "status", "study", "form", "base_run", "fingerprint", "start_time", "end_time"]
_OF_RUNS = (
    "name", "status", "study", "experiment_id", "start_time", "end_time", "seconds", "fingerprint",
    "base_run", "pruning_run", "resumed_from", "failure",
)  # fmt: skip
_DTYPES = {"integer": "Int64", "number": "float64", "boolean": "boolean"}  # of JSON schemas' types
Ids = str | Sequence[str]


def _parameters() -> dict[str, str]:
    """Parameter -> type of its column; that of training, where another stage has another."""
    dtypes: dict[str, str] = {}
    for config in (
        *(FinetuneConfig, PruneConfig, SensitivityConfig),
        *(BenchmarkConfig, ReportConfig, SweepConfig),
    ):
        for name, schema in config.model_json_schema()["properties"].items():
            kind = schema.get("anyOf", [schema])[0]["type"]  # the other is null
            dtypes.setdefault(name, _DTYPES.get(kind, "string"))
    return dtypes


_PARAMETERS = _parameters()
RUN_COLUMNS = list(dict.fromkeys((*IDENTITY, *_OF_RUNS, *_PARAMETERS)))


class Which(TypedDict, total=False):
    """Which runs a query is of, beside their experiment; all of it where nothing is given."""

    study: str | None
    run_ids: Ids | None  # of whatever experiment
    filter_string: str | None  # of MLflow


def runs(experiment: Ids | None = None, **which: Unpack[Which]) -> pd.DataFrame:
    """A row a run, the oldest first, of every stage and status, of MLflow's current experiment.

    Summaries over seeds are views of other runs and left out, but where `run_ids` names them.

    `experiment` is the name or id of another, or several. The run contract's columns (`run_id,
    model, ..., stage`) come first, then `name`, `status` (RUNNING, FINISHED, FAILED, KILLED),
    `study`, `experiment_id`, `start_time`, `end_time`, `seconds`, `fingerprint`, `base_run`,
    `pruning_run` (that a benchmark times), `resumed_from`, `failure`, and every other parameter.
    Texts are `string`, whole numbers `Int64`, truths `boolean`, all with NA where there is
    nothing; others floats with NaN.

    Raises:
        InputError: an experiment or run that the store does not know or that is deleted, or a
            filter that is not valid.
        ExperimentError: a store that does not answer.
    """
    return _runs(experiment, **which)[RUN_COLUMNS]


def levels(
    experiment: Ids | None = None, *, artifacts: bool = False, **which: Unpack[Which]
) -> pd.DataFrame:
    """A row a level of every pruning run, with the columns of `levels.csv`.

    They come from the tag `pruneflow.curves`, to six digits, and are NaN where it had no room for
    a column; with `artifacts` from `levels.csv` itself, one download a run. The run's own columns
    are `run_id, model, ..., stage` and `name, status, study, form, base_run, fingerprint,
    start_time, end_time`. The other arguments and errors are those of `runs`.
    """
    path = "levels.csv" if artifacts else None
    return _records(_runs(experiment, **which), Level, path)


def runs_and_levels(
    experiment: Ids | None = None, **which: Unpack[Which]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What `runs` and `levels` give, of one search: the search is nearly all that either costs."""
    frame = _runs(experiment, **which)
    return frame[RUN_COLUMNS], _records(frame, Level)


def layers(experiment: Ids | None = None, **which: Unpack[Which]) -> pd.DataFrame:
    """A row a level and parameter tensor of every pruning run: `layers.csv`, one download a run.

    Arguments, the run's own columns and errors are those of `levels`.
    """
    return _records(_runs(experiment, **which), Layer, "layers.csv")


def latencies(experiment: Ids | None = None, **which: Unpack[Which]) -> pd.DataFrame:
    """A row a machine, level, form, engine, device, threads and batch size: `latency.csv`.

    That is a download a run. `run_id`, `name`, `run_status` and times of day are the benchmark's;
    `pruning_run` and all that describes an experiment are those of the pruning run it timed.
    `run_ids` may name either, and finds the benchmarks of a pruning run in every experiment.
    The other arguments and errors are those of `levels`.
    """
    of_stage = "tags.`pruneflow.stage` = 'benchmark_latency'"
    if which.get("run_ids") is None:
        benchmarks = _runs(experiment, of_stage, **which)
    else:
        given = _runs(experiment, **which)["run_id"]
        benchmarks = _frame(reader.runs(None, of_stage))
        is_given = benchmarks["run_id"].isin(given) | benchmarks["pruning_run"].isin(given)
        benchmarks = benchmarks[is_given]
    described = [*IDENTITY[1:-1], "base_run"]  # by the pruning run
    pruned = _frame(_pruned(benchmarks["pruning_run"].dropna().unique()))
    pruned = pruned[["run_id", *described]].rename(columns={"run_id": "pruning_run"})
    timed = benchmarks.drop(columns=described).merge(pruned, on="pruning_run", how="left")
    timed = timed.assign(run_status=timed["status"], curves="")
    about = [name for name in _ABOUT if name not in ("form", "status")]
    rows = _records(timed, Latency, "latency.csv", [*about, "run_status", "pruning_run"])
    lacking = rows["machine"].isna()  # of before there was that column: as their run says
    for run_id, machine in environments(rows.loc[lacking, "run_id"].unique().tolist()).items():
        cpu, gpu = str(machine.get("cpu")), str(machine.get("gpu"))
        names = rows["device"].map({"cpu": cpu, "cuda": f"{gpu}, {cpu}"})
        rows["machine"] = rows["machine"].mask(lacking & (rows["run_id"] == run_id), names)
    return rows


def sensitivity(experiment: Ids | None = None, **which: Unpack[Which]) -> pd.DataFrame:
    """A row a layer and fraction of every sensitivity run: `sensitivity.csv`, one download a run.

    Arguments and errors are those of `levels`, and so are the run's own columns, but for `scope`
    and `form`: nothing is spread, and nothing is kept.
    """
    runs = _runs(experiment, **which)
    of_stage = runs[(runs["stage"] == "sensitivity").fillna(False)].assign(curves="")
    about = [name for name in _ABOUT if name != "form"]
    return _records(of_stage, Sensitivity, TABLE, about).drop(columns="scope")


def summaries(experiment: Ids | None = None, **which: Unpack[Which]) -> pd.DataFrame:
    """A row a level and quantity of every summary over seeds: `summary.csv`, one download a run.

    `quantity` is a column of `levels.csv`; of it come `mean`, `sd` (of the sample), `low`, `high`
    (Student's 95 % interval) and `n` (runs). Arguments, errors and the run's own columns are
    those of `levels`, but for `seed`: it is of several.
    """
    summarised = _runs(experiment, **which, stage=seeds.STAGE).assign(curves="")
    about = [name for name in _ABOUT if name not in ("base_run", "fingerprint")]
    return _records(summarised, seeds.LevelSummary, seeds.TABLE, about).drop(columns="seed")


def environments(run_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`environment.json` of runs, by run id; those that have none are left out."""
    described = {}
    for run_id in run_ids:
        try:
            described[run_id] = json.loads(reader.text_of(run_id, "environment.json"))
        except (*reader.FAILURES, ValueError):
            continue
    return described


def _records(
    runs: pd.DataFrame, kind: type[Any], path: str | None = None, about: Sequence[str] = _ABOUT
) -> pd.DataFrame:
    """A row a record of the runs that have levels: of an artifact, else of their curves.

    Runs whose records cannot be read are left out, with a warning that names them.
    """
    records: list[Any] = []
    run_ids: list[str] = []
    unreadable = []
    for run_id, curves in runs.dropna(subset="curves")[["run_id", "curves"]].to_numpy():
        try:
            if path is None:
                rows = tables.records(json.loads(curves), kind)
            else:
                rows = tables.from_csv(reader.text_of(run_id, path), kind)
        except (*reader.FAILURES, ValueError, RecursionError):  # of brackets in brackets
            if path is None or _has(run_id, path):
                unreadable.append(run_id)
        else:
            records += rows
            run_ids += [run_id] * len(rows)
    if unreadable:
        more = f" and {len(unreadable) - 5} more" if len(unreadable) > 5 else ""
        warnings.warn(
            f"runs without readable records were left out: {', '.join(unreadable[:5])}{more}",
            stacklevel=3,
        )
    table = tables.frame(records, kind).assign(run_id=pd.Series(run_ids, dtype="string"))
    identity = [name for name in IDENTITY if name == "run_id" or name not in table]
    return runs[[*identity, *about]].merge(table, on="run_id")


def _has(run_id: str, path: str) -> bool:
    """Whether a run has an artifact, or does not let itself be asked."""
    try:
        return path in {entry.path for entry in MlflowClient().list_artifacts(run_id)}
    except reader.FAILURES:
        return True


def _pruned(run_ids: Iterable[str]) -> Iterator[MlflowRun]:
    """Runs by their ids, of those that are there."""
    for run_id in run_ids:
        with suppress(MlflowException):
            yield MlflowClient().get_run(run_id)


def _runs(
    experiment: Ids | None,
    *conditions: str,
    study: str | None = None,
    run_ids: Ids | None = None,
    filter_string: str | None = None,
    stage: str | None = None,
) -> pd.DataFrame:
    """The runs that a query names: `RUN_COLUMNS`, and `curves`, the text of that tag.

    Without a `stage` they are of all but summaries, which are there only if named.
    """
    given = (filter_string or "").strip()
    if run_ids is None:
        names = [None] if experiment is None else _texts("experiment", experiment)
        experiments = [experiment_named(name) for name in names]
        matching = reader.runs(experiments, given, *conditions, study=study)
    else:
        ids = _texts("run_ids", run_ids)
        named = {run_id: reader.run(run_id, "run_ids", "ids of runs") for run_id in ids}
        matching = iter(named.values())
        if given and named:
            experiments = sorted({run.info.experiment_id for run in named.values()})
            matching = (run for run in reader.runs(experiments, given) if run.info.run_id in named)
        if study is not None:
            matching = (run for run in matching if reader.in_study(run.data.tags, study))
    wrong = f"filter_string={given!r} is not valid" if given else "runs cannot be read"
    with reader.reading(wrong):
        frame = _frame(matching)
    if stage is not None:
        kept = frame["stage"] == stage
    else:
        kept = (frame["stage"] != seeds.STAGE) | (run_ids is not None)
    return frame[kept.fillna(False)].reset_index(drop=True)


def _texts(parameter: str, given: Ids) -> list[str]:
    names = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"{parameter}={name!r} is not text: write {str(name)!r}")
    return names


def _frame(runs: Iterable[MlflowRun]) -> pd.DataFrame:
    """A row a run, the oldest first; of other programs' runs none."""
    rows = [_row(run) for run in runs if "pruneflow.stage" in run.data.tags]
    frame = pd.DataFrame(rows, columns=[*RUN_COLUMNS, "curves"], dtype=object)
    for name in frame.columns.difference(["start_time", "end_time", "seconds"]):
        frame[name] = _typed(frame[name].astype("string"), _PARAMETERS.get(name, "string"))
    for name in ("start_time", "end_time"):
        frame[name] = pd.to_datetime(frame[name].astype("Int64"), unit="ms", utc=True)
    frame["seconds"] = (frame["end_time"] - frame["start_time"]).dt.total_seconds()
    return frame.sort_values("start_time", kind="stable", ignore_index=True)


def _row(run: MlflowRun) -> dict[str, Any]:
    """What a search tells of a run; `study` and `base_run` are its tags, not the parameters."""
    params, tags = run.data.params.items(), run.data.tags.items()
    row = {name.removeprefix("cfg/"): v for name, v in params if name.startswith("cfg/")}
    row |= {"study": None, "base_run": None, "name": run.info.run_name}
    row |= {n.removeprefix("pruneflow."): v for n, v in tags if n.startswith("pruneflow.")}
    return row | dict(run.info)


def _typed(text: pd.Series[Any], dtype: str) -> pd.Series[Any]:
    """What MLflow has as text, as what it is; NA where there is nothing, or something else."""
    if dtype == "boolean":
        return text.map({"True": True, "False": False}).astype("boolean")
    if dtype == "Int64":
        return text.where(text.str.fullmatch(r"-?\d{1,18}")).astype("Int64")
    if dtype == "float64":
        return pd.to_numeric(text, errors="coerce").astype("float64")
    return text.replace("", pd.NA)
