"""The one reader of MLflow: runs by a search, a run by its id, an artifact of a run."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pruneflow.errors import ExperimentError, InputError, first_line
from pruneflow.tracking import journal, store, tables
from pruneflow.tracking.levels import Layer, Level
from pruneflow.tracking.refusals import in_short, is_refusal

PAGE = 1_000  # runs that are held as MLflow's objects at a time
FINISHED = "attributes.status = 'FINISHED'"
R = TypeVar("R")
FAILURES = (MlflowException, OSError, ImportError)  # of MLflow itself, a disk, a missing driver


def runs(
    experiments: Sequence[str] | None,
    *conditions: str,
    study: str | None = None,
    newest_first: bool = False,
    page: int | None = None,
) -> Iterator[Run]:
    """The runs of experiments (None: all) that meet conditions, the oldest first.

    `conditions` are filters of MLflow that may be empty; a `page` of few runs is soon there, for
    a caller who stops. Of a study all its own runs come before those that it shares.
    """
    client = MlflowClient()
    if experiments is None:
        experiments = [e.experiment_id for e in client.search_experiments(ViewType.ACTIVE_ONLY)]
    order = [f"attributes.start_time {'DESC' if newest_first else 'ASC'}"]
    tags = ("pruneflow.study", f"pruneflow.study.{study}")
    plain = study is not None and re.fullmatch(r"[\w./ -]+", study)  # what fits a filter's quotes
    known: set[str] = set()
    for of_study in [f"tags.`{tag}` = '{study}'" for tag in tags] if plain else [""]:
        condition = " and ".join(filter(None, (*conditions, of_study)))
        token: str | None = ""
        while token is not None:
            runs = client.search_runs(
                experiments, condition, order_by=order, max_results=page or PAGE, page_token=token
            )
            matching = [run for run in runs if study is None or in_study(run.data.tags, study)]
            yield from (run for run in matching if run.info.run_id not in known)
            known.update(run.info.run_id for run in matching)
            token = runs.token or None


def equal(column: str, value: str) -> str:
    """A filter of MLflow, in whichever quotes the value itself does not hold."""
    quote = '"' if "'" in value else "'"
    return f"{column} = {quote}{value}{quote}"


def in_study(tags: Mapping[str, str], study: str) -> bool:
    """Whether a run's tags say that it belongs to a study, its own or one that shares it."""
    return tags.get("pruneflow.study") == study or f"pruneflow.study.{study}" in tags


def run(run_id: str, parameter: str, wanted: str) -> Run:
    """A run by its id; the error names the parameter that gave it, and what is wanted of it."""
    address = store.without_credentials(store.uri())
    with reading(f"{parameter}={run_id!r} does not exist in {address}: pass {wanted}"):
        run = MlflowClient().get_run(run_id)
    if run.info.lifecycle_stage != "active":
        raise InputError(f"{parameter}={run_id!r} is deleted: restore it, or leave it out")
    return run


@contextmanager
def reading(wrong: str) -> Iterator[None]:
    """What cannot be read is refused in one line: what is `wrong`, and why.

    Raises:
        InputError: it is not there, or is something else.
        ExperimentError: the store does not answer, whatever was asked.
    """
    try:
        yield
    except InputError:
        raise
    except (*FAILURES, ValueError, TypeError) as error:
        if isinstance(error, FAILURES) and not is_refusal(error):
            down = f"MLflow {store.NO_ANSWER}, it cannot be read: {in_short(error)}"
            raise ExperimentError(down) from None
        raise InputError(f"{wrong} ({first_line(error)})") from None


@contextmanager
def artifact(run_id: str, path: str) -> Iterator[Path]:
    """An artifact of a run, a file or folder, on this machine for the time being."""
    with tempfile.TemporaryDirectory(prefix="pruneflow-") as folder:
        yield Path(MlflowClient().download_artifacts(run_id, path, folder))


def text_of(run_id: str, path: str) -> str:
    """The text of an artifact; FAILURES where it is not there, ValueError where it is no text."""
    with artifact(run_id, path) as file:
        return file.read_text("utf-8")


def checkpoint_path(level: int) -> str:
    """Where a run keeps the checkpoint of a level, among its artifacts."""
    return f"checkpoints/level_{level:02d}"


def epoch_path(epoch: int) -> str:
    """Where the checkpoint of an epoch of a base run is among its artifacts."""
    return f"checkpoints/epoch_{epoch:02d}"


def read_table(run_id: str, path: str, kind: type[R]) -> list[R]:
    """The records of a run's table, here or in MLflow; none where it is not there, or torn."""
    local = journal.folder_of(run_id) / "artifacts" / path
    try:
        text = local.read_text("utf-8") if local.exists() else text_of(run_id, path)
        return tables.from_csv(text, kind)
    except (*FAILURES, ValueError):
        return []


def read_levels(run_id: str) -> tuple[list[Level], list[Layer]]:
    """The levels and layers of a run as its tables have them, here or in MLflow; what is whole."""

    levels = read_table(run_id, "levels.csv", Level)
    layers = read_table(run_id, "layers.csv", Layer)
    complete = {layer.level for layer in layers}
    levels = [level for level in levels if level.level in complete]
    last = levels[-1].level if levels else -1
    return levels, [layer for layer in layers if layer.level <= last]
