"""Frames: runs of MLflow, and the records that they hold, as tidy DataFrames."""

from __future__ import annotations

import json
import types
import typing
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from mlflow.entities import Run as MlflowRun
from mlflow.tracking import MlflowClient

from pruneflow.config import (
    BenchmarkConfig,
    FinetuneConfig,
    PruneConfig,
    ReportConfig,
    SweepConfig,
)
from pruneflow.tracking import reader, tables

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
_TAGS = ("study", "fingerprint", "base_run", "pruning_run", "resumed_from", "failure")
CURVES = "pruneflow.curves"  # the tag of runs that have levels
_LARGEST = 2**63 - 1  # whole number that a column can hold
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


def run_row(run: MlflowRun) -> dict[str, Any]:
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


def runs_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
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


class Table:
    """Rows of many runs, each with what it is of."""

    def __init__(self, record: type[Any], about: Sequence[str] = ABOUT) -> None:
        self._record = record
        self._about = about
        self._unreadable: list[str] = []
        self._runs: list[dict[str, Any]] = []  # a row a run
        self._parts: list[Mapping[str, Any]] = []  # its columns

    def add_curves(self, run: MlflowRun) -> None:
        """Add the rows that a run's tag of curves has; one that is torn is remembered."""
        if CURVES in run.data.tags:
            try:
                self._add(run, dict(json.loads(run.data.tags[CURVES])))
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
            cells = tables.cells(reader.text_of(run.info.run_id, path))
        except (*reader.FAILURES, ValueError):
            if _holds(run.info.run_id, path):
                self._unreadable.append(run.info.run_id)
            return
        self._add(run, {str(name): list(column) for name, column in cells.items()}, about)

    def _add(
        self, run: MlflowRun, columns: Mapping[str, Any], about: Mapping[str, Any] | None = None
    ) -> None:
        self._runs.append({**run_row(run), **(about or {})})
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
