"""A run, by the run contract: opened, filled level by level, ended for a reason.

What is logged goes into the run's folder first and is published from there, see `journal` and
`publish`; a run that was interrupted goes on from its folder, or from what MLflow has of it.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pruneflow.config import Config
from pruneflow.errors import ExperimentError, InputError, first_line
from pruneflow.tracking import (
    checkpoints,
    environment,
    journal,
    latencies,
    reader,
    refusals,
    store,
    tables,
    writers,
)
from pruneflow.tracking.checkpoints import Checkpoint
from pruneflow.tracking.journal import Entry, Journal
from pruneflow.tracking.latencies import Latency, LayerLatency
from pruneflow.tracking.levels import METRICS, TAG_LIMIT, Layer, Level
from pruneflow.tracking.publish import LEVELS, Publisher, fail_soon
from pruneflow.workloads.training import Snapshot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# what is the store's or the machine's, and told in a line
_ENDINGS = (MlflowException, OSError, ImportError, MemoryError, torch.OutOfMemoryError)


@dataclass(frozen=True)
class Ended:
    """A run that has ended, as its stage tells of it.

    Attributes:
        id, experiment_id: of the run.
        levels, latencies: it recorded.
    """

    id: str
    experiment_id: str
    levels: Sequence[Level] = ()
    latencies: Sequence[Latency] = ()

    @property
    def address(self) -> str:
        """Where a person finds the run in the UI."""
        return store.address_of(self.experiment_id, self.id)


class Run:
    """A run that is open. Everything is logged through it, by the names of the run contract."""

    def __init__(self, client: MlflowClient, records: Journal) -> None:
        self.id = records.owner.run_id
        self.experiment_id = records.owner.experiment_id
        self._client = client
        self._journal = records
        self._publisher = Publisher(client, records)
        self._levels: list[Level] = []
        self._layers: list[Layer] = []
        self._latencies: list[Latency] = []
        self._profile: list[LayerLatency] = []

    @property
    def levels(self) -> list[Level]:
        """The levels recorded so far."""
        return list(self._levels)

    @property
    def layers(self) -> list[Layer]:
        """The layers of all levels recorded so far."""
        return list(self._layers)

    @property
    def latencies(self) -> list[Latency]:
        """The times recorded so far."""
        return list(self._latencies)

    @property
    def profile(self) -> list[LayerLatency]:
        """The layers whose times were recorded so far."""
        return list(self._profile)

    @property
    def ended(self) -> Ended:
        """What its stage tells of it in the end."""
        return Ended(self.id, self.experiment_id, self.levels, self.latencies)

    def publish(self, *, every: float = 0.0) -> None:
        """Send what MLflow does not have yet, if the last time is `every` seconds ago.

        Raises:
            ExperimentError: MLflow has refused something, or the run was taken over.
        """
        self._publisher.publish(every=every)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._journal.append(Entry(tags=dict(tags)))

    def log_metrics(
        self, values: Mapping[str, float], step: int, *, part: str | None = None
    ) -> None:
        """Log metrics of one step, all with the same time.

        Args:
            values: by key.
            step: of all of them.
            part: of the run that they are the whole of ("epoch 3"); logged once, however often the
                run is interrupted and goes on.
        """
        self._journal.append(Entry(metrics=_metrics(values, step), part=part))
        self.publish()

    def describe(self, text: str) -> None:
        """Set the Markdown text on the run's page."""
        self.set_tags({"mlflow.note.content": text[:TAG_LIMIT]})

    def log_data(self, name: str, digest: str, source: str, profile: Mapping[str, int]) -> None:
        """Log the data set as an input of the run."""
        data = {
            "name": name,
            "digest": digest,
            "source_type": "local" if Path(source).is_absolute() else "code",
            "source": json.dumps({"uri": source}),
            "profile": json.dumps(dict(profile)),
        }
        self._journal.append(Entry(inputs=data, part="data"))

    def log_text(self, path: str, text: str) -> None:
        """Write an artifact."""
        self._write_text(path, text)
        self.publish()

    def _write_text(self, path: str, text: str) -> None:
        self._write(path, lambda place: place.write_text(text, "utf-8"))

    def _write(self, path: str, make: Callable[[Path], object]) -> None:
        self._journal.stage(path, make)
        self._journal.append(Entry(artifact=path))

    def log_folder(self, folder: Path, names: Sequence[str]) -> None:
        """Write files and folders of a folder as artifacts, under their own names."""
        for name in names:
            self._write(name, functools.partial(_copy, folder / name))

    def log_figure(self, path: str, figure: Figure) -> None:
        """Write a figure as an artifact."""
        self._write(path, lambda place: figure.savefig(place, format=path.rpartition(".")[2]))

    def log_checkpoint(self, level: int, checkpoint: Checkpoint, tokenizer: Any = None) -> int:
        """Write a level's checkpoint and return its size in bytes."""
        path = reader.checkpoint_path(level)
        sizes: list[int] = []

        def make(place: Path) -> None:
            sizes.append(checkpoints.save(place, checkpoint, tokenizer))

        self._write(path, make)
        # the one before is kept here too, in case this one should be damaged
        if level >= 2 and not journal.is_offline(self._journal.folder):
            self._journal.forget(reader.checkpoint_path(level - 2))
        return sizes[0]

    def record(
        self,
        level: Level,
        layers: Sequence[Layer],
        checkpoint: Checkpoint | None = None,
        tokenizer: Any = None,
    ) -> None:
        """Record a level: checkpoint, metrics, tables and curves, complete as of this level.

        Args:
            level: the level; its `size_bytes` becomes the checkpoint's.
            layers: its layers.
            checkpoint: its model.
            tokenizer: of an encoder.
        """
        if checkpoint is not None:
            size = self.log_checkpoint(level.level, checkpoint, tokenizer)
            level = replace(level, size_bytes=size)
        self._levels.append(level)
        self._layers.extend(layers)
        self._write_levels()
        # The tables first: a level that they have has its numbers logged when the run goes on.
        self._log_level(level)
        shutil.rmtree(self._training(level.level), ignore_errors=True)
        self.publish()

    def _write_levels(self) -> None:
        self._write_text("layers.csv", tables.to_csv(self._layers, Layer))
        self._write_text(LEVELS, tables.to_csv(self._levels, Level))

    def _log_level(self, level: Level) -> None:
        values = {key: getattr(level, field) for field, key in METRICS.items()}
        metrics = _metrics({k: v for k, v in values.items() if v is not None}, level.level)
        thousandths = round(1000 * level.sparsity)
        metrics += _metrics({"by_sparsity/test_after": level.test_after}, thousandths)
        self._journal.append(Entry(metrics=metrics, part=f"level {level.level}"))

    def record_latencies(
        self,
        level: int,
        rows: Sequence[Latency],
        profile: Sequence[LayerLatency],
        first: tuple[str, int],
    ) -> None:
        """Record the times of a level: metrics and tables, complete as of this level.

        Args:
            level: the level.
            rows, profile: its records.
            first: device and threads whose metrics have the plain names.
        """
        self._latencies.extend(rows)
        self._profile.extend(profile)
        self._write_text("latency.csv", tables.to_csv(self._latencies, Latency))
        self._write_text("profile.csv", tables.to_csv(self._profile, LayerLatency))
        self.log_metrics(latencies.metrics(rows, first), step=level)

    def go_on(self) -> Checkpoint | None:
        """Take up the run after its last level whose checkpoint is whole; None if there is none.

        Levels after it are done again.
        """
        self._levels, self._layers = reader.read_levels(self.id)
        checkpoint, count = None, len(self._levels)
        while self._levels and checkpoint is None:
            number = self._levels[-1].level
            try:
                checkpoint = checkpoints.load(self._local(reader.checkpoint_path(number)))
            except (InputError, *reader.FAILURES) as error:
                print(
                    f"pruneflow: level {number} is done again: {first_line(error)}", file=sys.stderr
                )
                self._levels.pop()
                self._layers = [layer for layer in self._layers if layer.level < number]
        where = f"level {self._levels[-1].level}" if self._levels else "its beginning"
        tags = {"pruneflow.resumed_from": where, writers.FAILURE: None}
        self._journal.append(Entry(tags=tags, status="RUNNING"))
        if 0 < len(self._levels) < count:
            self._write_levels()
        published = self._published_levels()
        for level in self._levels:
            if level.level not in published:
                self._log_level(level)
        self.publish()
        return checkpoint

    def _published_levels(self) -> set[int]:
        """The levels whose metrics are recorded here, or in MLflow from another machine."""
        here = {v.level for v in self._levels if self._journal.has(f"level {v.level}")}
        if len(here) == len(self._levels):
            return here
        history = self._client.get_metric_history(self.id, METRICS["sparsity"])
        return here | {metric.step for metric in history}

    def _local(self, path: str) -> Path:
        """An artifact of this run, from MLflow if it is not here any more."""
        place = self._journal.artifact(path)
        if not place.exists():
            with reader.artifact(self.id, path) as local:
                self._journal.stage(path, functools.partial(_copy, local))
        return place

    def save_training(self, level: int, snapshot: Snapshot) -> None:
        """Save where the training of a level stands; on this machine alone, until it is through."""
        make = functools.partial(checkpoints.save_training, snapshot=snapshot)
        journal.replace_whole(self._training(level), make)

    def saved_training(self, level: int) -> Snapshot | None:
        """Where the training of a level stood when it was saved, if it was and is whole."""
        saved = self._training(level)
        if not saved.exists():
            return None
        try:
            return checkpoints.load_training(saved)
        except InputError as error:
            print(f"pruneflow: the training begins anew: {error}", file=sys.stderr)
            return None

    def _training(self, level: int) -> Path:
        return self._journal.folder / "training" / f"level_{level:02d}"


def _metrics(values: Mapping[str, float], step: int) -> tuple[tuple[str, float, int, int], ...]:
    now = int(time.time() * 1000)
    return tuple((key, float(value), now, step) for key, value in values.items())


def _copy(source: Path, place: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, place)
    else:
        shutil.copyfile(source, place)


@contextmanager
def open_run(
    stage: str,
    config: Config,
    *,
    name: str,
    tags: Mapping[str, str],
    experiment_id: str | None = None,
    interrupted: str | None = None,
) -> Iterator[Run]:
    """Open a run and end it: FINISHED, or FAILED or KILLED with the reason in a tag.

    A run handed over by `mlflow run` (MLFLOW_RUN_ID) is taken over by the first one opened;
    otherwise a new one is made, in `experiment_id` or MLflow's current experiment.

    Args:
        stage, config, name, tags: of the run.
        experiment_id: makes a new run there, and leaves one that was handed over.
        interrupted: id of a run to go on with, instead of another.

    Raises:
        InputError: no journal can be kept, or another process has that run.
        ExperimentError: the experiment or MLflow gave up; the run says why.
    """
    run = _opened(stage, name, tags, experiment_id, interrupted)
    try:
        if interrupted is None:
            run.set_tags({"pruneflow.stage": stage, **tags})
            values = config.model_dump(mode="json")
            params = {f"cfg/{key}": store.shown(value) for key, value in values.items()}
            run._journal.append(Entry(params=params))
            run._write_text("config.json", json.dumps({"stage": stage, **values}, indent=1))
            run._write_text("environment.json", json.dumps(environment.describe(), indent=1))
            run.publish()
        yield run
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
        what = "terminated" if killed else type(error).__name__
        with _undisturbed():
            run._publisher.end("KILLED" if killed else "FAILED", f"{what}: {first_line(error)}")
        if isinstance(error, _ENDINGS):
            raise ExperimentError(f"run {run.id} failed: {first_line(error)}") from error
        raise
    run._publisher.end("FINISHED")
    run._publisher.check()


def _opened(
    stage: str,
    name: str,
    tags: Mapping[str, str],
    experiment_id: str | None,
    interrupted: str | None,
) -> Run:
    """The run that was handed over, was interrupted, or a new one; nothing is logged yet."""
    fail_soon()
    client = MlflowClient()
    handed_over = os.environ.pop("MLFLOW_RUN_ID", None) if experiment_id is None else None
    with refusals.in_a_line("no run can be made: "):
        if handed_over is not None and interrupted is None:
            theirs = client.get_run(handed_over)
            writers.check_handed_over(theirs, tags.get("pruneflow.fingerprint", ""), stage)
        ids = writers.identify(client, handed_over, interrupted, name, experiment_id)
        return Run(client, writers.take(client, *ids, name, stage))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM, which have been heard, are not heard again while a run is ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (2, 15)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
