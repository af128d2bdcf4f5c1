"""Frames: runs of MLflow, and the records that they hold, as tidy DataFrames."""

from __future__ import annotations

import typing
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from mlflow.entities import Run as MlflowRun

from pruneflow.config import (
    BenchmarkConfig,
    FinetuneConfig,
    PruneConfig,
    ReportConfig,
    SweepConfig,
)
from pruneflow.tracking import tables

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
ABOUT = ("name", "status", "study", "form", "base_run", "fingerprint", "start_time", "end_time")
_TAGS = (
    "stage",
    "curves",
    "study",
    "fingerprint",
    "base_run",
    "pruning_run",
    "resumed_from",
    "failure",
)
_LARGEST = 2**63 - 1  # whole number that a column can hold

_OF_RUNS = (
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
            options = typing.get_args(field.annotation) or (field.annotation,)
            bare = {typing.get_args(o)[0] if hasattr(o, "__metadata__") else o for o in options}
            dtypes = {int: "Int64", float: "float64", bool: "boolean"}
            kind = next((dtypes[option] for option in bare if option in dtypes), "string")
            found[name] = kind if found.get(name, kind) == kind else "string"
    return found


_KINDS = _kinds()
RUN_COLUMNS = tuple(dict.fromkeys((*IDENTITY, *_OF_RUNS, *_KINDS)))


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


def runs_frame(runs: Iterable[MlflowRun]) -> pd.DataFrame:
    """A row a run, the oldest first: `RUN_COLUMNS`, and `curves`, the text of that tag."""
    rows = [_row(run) for run in runs]
    frame = pd.DataFrame(
        {name: _typed([row.get(name) for row in rows], name) for name in (*RUN_COLUMNS, "curves")}
    )
    frame["seconds"] = (frame["end_time"] - frame["start_time"]).dt.total_seconds()
    return frame.sort_values("start_time", kind="stable", ignore_index=True)


def _row(run: MlflowRun) -> dict[str, Any]:
    """What a search tells of a run."""
    tags, params = run.data.tags, run.data.params
    row: dict[str, Any] = {name: params.get(f"cfg/{name}") for name in _KINDS}
    row |= {name: tags.get(f"pruneflow.{name}") for name in _TAGS}
    info = ("run_id", "status", "experiment_id", "start_time", "end_time")
    return row | {name: getattr(run.info, name) for name in info} | {"name": run.info.run_name}


def records_frame(
    runs: pd.DataFrame,
    records: Mapping[str, Mapping[str, Any] | None],
    kind: type[Any],
    about: Sequence[str] = ABOUT,
) -> pd.DataFrame:
    """A row a record, the oldest run's first, with the types of the record's fields.

    Runs whose records cannot be read are left out, with a warning that names them.

    Args:
        runs: a row a run.
        records: run id -> columns of its records; None where they cannot be read.
        kind: of the records, a dataclass.
        about: the columns of `runs` that go with each record, after `IDENTITY`.
    """
    readable = _readable({k: v for k, v in records.items() if v is not None}, kind)
    frame = tables.frame(_joined(list(readable.values()), kind), kind)
    if unreadable := [run_id for run_id in records if run_id not in readable]:
        more = f" and {len(unreadable) - 5} more" if len(unreadable) > 5 else ""
        warnings.warn(
            f"runs without readable records were left out: {', '.join(unreadable[:5])}{more}",
            stacklevel=3,
        )
    counts = [len(table["level"]) for table in readable.values()]
    row_of = {run_id: row for row, run_id in enumerate(runs["run_id"])}
    rows = pd.Series([row_of[run_id] for run_id in readable], dtype="int64").repeat(counts)
    of_runs = runs.loc[rows, [*IDENTITY, *about]].reset_index(drop=True)
    return pd.concat([of_runs, frame], axis=1)


def _readable(
    records: Mapping[str, Mapping[str, Any]], kind: type[Any]
) -> Mapping[str, Mapping[str, Any]]:
    """Those of the records that can be read; where some cannot, each half is looked at."""
    try:
        tables.frame(_joined(list(records.values()), kind), kind)
        return records
    except ValueError:
        ids, half = list(records), len(records) // 2
        parts = (ids[:half], ids[half:]) if half else ()
        return {
            k: v
            for part in parts
            for k, v in _readable({r: records[r] for r in part}, kind).items()
        }


def _joined(parts: Sequence[Mapping[str, Any]], kind: type[Any]) -> dict[str, list[Any]]:
    """The columns of tables, one table below the other; None where one lacks a column.

    Raises:
        ValueError: columns that are no lists of one length.
    """
    joined: dict[str, list[Any]] = {name: [] for name in tables.dtypes(kind)}
    for part in parts:
        levels = part.get("level")
        for name, column in joined.items():
            values = part.get(name, [None] * len(levels) if isinstance(levels, list) else None)
            if not isinstance(values, list) or not isinstance(levels, list):
                raise ValueError(f"{name} is no list")
            if len(values) != len(levels):
                raise ValueError(f"{name} is not as long as the others")
            column.extend(values)
    return joined
