"""The one reader of MLflow: runs by a search, a run by its id, an artifact of a run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pruneflow.errors import ExperimentError, InputError, first_line
from pruneflow.tracking import journal, store, tables
from pruneflow.tracking.levels import Layer, Level
from pruneflow.tracking.refusals import in_short, is_refusal

PAGE = 1_000  # runs that are held as MLflow's objects at a time
FINISHED = "attributes.status = 'FINISHED'"
_MISSING = "RESOURCE_DOES_NOT_EXIST"
# What reading a run raises: MLflow itself, a disk, a driver that is not there.
FAILURES = (MlflowException, OSError, ImportError)


def runs(
    experiments: Sequence[str] | None,
    *conditions: str,
    newest_first: bool = False,
    page: int | None = None,
    client: MlflowClient | None = None,
) -> Iterator[Run]:
    """The runs that meet conditions, filters of MLflow that may be empty, the oldest first.

    Args:
        experiments: ids of those that are searched; None for all.
        conditions: all of them have to be met.
        newest_first: the other way round.
        page: runs that are asked for at a time; fewer are soon there, for a caller who stops.
        client: of another store than the current one.
    """
    client = client or MlflowClient()
    if experiments is None:
        experiments = [e.experiment_id for e in client.search_experiments(ViewType.ACTIVE_ONLY)]
    order = [f"attributes.start_time {'DESC' if newest_first else 'ASC'}"]
    condition = " and ".join(filter(None, conditions))
    token: str | None = None
    while True:
        found = client.search_runs(
            experiments, condition, order_by=order, max_results=page or PAGE, page_token=token
        )
        yield from found
        token = found.token
        if not token:
            return


def run(run_id: str, parameter: str, wanted: str) -> Run:
    """A run by its id.

    Args:
        run_id: its id.
        parameter: that names it.
        wanted: what would be valid, for the error.

    Raises:
        InputError: there is none.
        ExperimentError: a store that does not answer.
    """
    try:
        return MlflowClient().get_run(run_id)
    except MlflowException as error:
        reason = first_line(error)
        if error.error_code == _MISSING:
            reason = f"does not exist in {store.without_credentials(store.uri())}"
        raise refused(error, f"{parameter}={run_id!r} {reason}: pass {wanted}") from None


def refused(error: Exception, text: str) -> InputError | ExperimentError:
    """What is said where a read failed: `text`; or that the store is down, whatever was asked."""
    if isinstance(error, FAILURES) and not is_refusal(error):
        return ExperimentError(f"MLflow {store.NO_ANSWER}, it cannot be read: {in_short(error)}")
    return InputError(text)


@contextmanager
def artifact(run_id: str, path: str, client: MlflowClient | None = None) -> Iterator[Path]:
    """An artifact of a run, a file or folder, on this machine for the time being.

    Raises:
        MlflowException, OSError, ImportError: there is none, or it cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="pruneflow-") as folder:
        yield Path((client or MlflowClient()).download_artifacts(run_id, path, folder))


def text_of(run_id: str, path: str) -> str:
    """The text of an artifact.

    Raises:
        MlflowException, OSError, ImportError, ValueError: as `artifact`, or it is no text.
    """
    with artifact(run_id, path) as place:
        return place.read_text("utf-8")


def checkpoint_path(level: int) -> str:
    """Where a run keeps the checkpoint of a level, among its artifacts."""
    return f"checkpoints/level_{level:02d}"


def read_levels(run_id: str) -> tuple[list[Level], list[Layer]]:
    """The levels and layers of a run as its tables have them, here or in MLflow; what is whole."""

    def text(path: str) -> str:
        place = journal.folder_of(run_id) / "artifacts" / path
        return place.read_text("utf-8") if place.exists() else text_of(run_id, path)

    try:
        found = tables.from_csv(text("levels.csv"), Level)
        layers = tables.from_csv(text("layers.csv"), Layer)
    except (*FAILURES, ValueError):
        return [], []  # no level was recorded, or what there is is torn
    complete = {layer.level for layer in layers}
    found = [level for level in found if level.level in complete]
    last = found[-1].level if found else -1
    return found, [layer for layer in layers if layer.level <= last]
