"""A run, by the run contract: opened, filled level by level, ended for a reason.

What is logged goes into the run's folder first and is published from there, see `journal` and
`publish`; a run that was interrupted goes on from its folder, or from what MLflow has of it.
"""

from __future__ import annotations

import functools
import json
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
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
    latencies,
    reader,
    store,
    system_metrics,
    tables,
    writers,
)
from pruneflow.tracking.checkpoints import Checkpoint
from pruneflow.tracking.journal import Entry, Journal, replace_whole
from pruneflow.tracking.latencies import Latency, LayerLatency
from pruneflow.tracking.levels import METRICS, TAG_LIMIT, Layer, Level
from pruneflow.tracking.publish import LEVELS, Publisher
from pruneflow.tracking.refusals import in_a_line
from pruneflow.tracking.sensitivities import TABLE, Sensitivity
from pruneflow.tracking.system_metrics import SystemMetrics
from pruneflow.workloads.training import Snapshot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Failures of the store or the machine, which end an experiment with one line.
_EVERY_SECONDS = 2.0  # rows that are measured in less are published together
_FAILURES = (MlflowException, OSError, ImportError, MemoryError, torch.OutOfMemoryError)


@dataclass(frozen=True)
class Ended:
    """A run that has ended, with the levels and latencies that it recorded."""

    id: str
    experiment_id: str
    levels: Sequence[Level] = ()
    latencies: Sequence[Latency] = ()

    @property
    def address(self) -> str:
        """Where a person finds the run in the UI."""
        return store.address_of(self.experiment_id, self.id)


class Run:
    """A run that is open. Everything is logged through it, by the names of the run contract.

    Whatever publishes raises ExperimentError where MLflow has refused something, or another
    process has taken the run over.
    """

    def __init__(self, records: Journal) -> None:
        self.id = records.owner.run_id
        self.experiment_id = records.owner.experiment_id
        self.levels: list[Level] = []  # recorded so far, like the lists below
        self.layers: list[Layer] = []
        self.latencies: list[Latency] = []
        self.profile: list[LayerLatency] = []
        self.sensitivities: list[Sensitivity] = []
        self._journal = records
        self._publisher = Publisher(records)
        self._system: SystemMetrics | None = None

    @property
    def ended(self) -> Ended:
        """The run, as its stage returns it in the end."""
        return Ended(self.id, self.experiment_id, self.levels, self.latencies)

    def publish(self, *, every: float = 0.0) -> None:
        """Send what MLflow does not have yet, if the last time is `every` seconds ago."""
        self._log_system_metrics()
        self._publisher.publish(every=every)

    def _log_system_metrics(self) -> None:
        if self._system is not None and (points := self._system.take()):
            self._journal.append(Entry(metrics=points))

    @contextmanager
    def with_system_metrics(self, *, interrupted: bool) -> Iterator[None]:
        """Collect system metrics, which go with what is published; to the end, whatever ends it."""
        step = system_metrics.next_step(self._journal, interrupted=interrupted)
        self._system = SystemMetrics(self.id, step)
        try:
            yield
        finally:
            self._system.stop()
            self._log_system_metrics()

    def logged(self, name: str) -> dict[int, float]:
        """Values of a metric by step, as far as they are in the run's folder here."""
        entries = self._journal.entries.values()
        return {m[3]: m[1] for entry in entries for m in entry.metrics if m[0] == name}

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._journal.append(Entry(tags=dict(tags)))

    def log_metrics(
        self,
        values: Mapping[str, float],
        step: int,
        *,
        part: str | None = None,
        model: int | None = None,
    ) -> None:
        """Log metrics of one step, all with the same time.

        `model` is the level whose checkpoint they are of, logged before. `part` names what of the
        run they complete ("epoch 3"): that is logged once, however often the run goes on.
        """
        self._journal.append(Entry(metrics=_metrics(values, step), part=part, model=model))
        self.publish()

    def describe(self, text: str) -> None:
        """Set the Markdown text on the run's page."""
        self.set_tags({"mlflow.note.content": text[:TAG_LIMIT]})

    def log_data(self, name: str, digest: str, source: str, profile: Mapping[str, int]) -> None:
        """Log the data set as inputs of the run: what is trained, validated and tested on."""
        data = {
            "digest": digest,
            "source_type": "local" if Path(source).is_absolute() else "code",
            "source": json.dumps({"uri": source}),
            "profile": json.dumps(dict(profile)),
        }
        for context in ("training", "validation", "testing"):
            which = name if context == "training" else f"{name} ({context})"
            inputs = data | {"name": which, "context": context}
            self._journal.append(Entry(inputs=inputs, part=f"{context} data"))

    def log_text(self, path: str, text: str) -> None:
        """Write an artifact."""
        self._write(path, text)
        self.publish()

    def log_folder(self, folder: Path, names: Sequence[str]) -> None:
        """Write files and folders of a folder as artifacts, under their own names."""
        for name in names:
            self._write(name, functools.partial(_copy, folder / name))

    def log_figure(self, path: str, figure: Figure) -> None:
        """Write a figure as an artifact."""
        self._write(path, lambda place: figure.savefig(place, format=path.rpartition(".")[2]))

    def _write(self, path: str, content: str | Callable[[Path], object]) -> None:
        """Write an artifact: a text, or what a function writes to a path."""
        text = content if isinstance(content, str) else ""
        make = content if callable(content) else lambda place: place.write_text(text, "utf-8")
        self._journal.stage(path, make)
        self._journal.append(Entry(artifact=path))

    def log_checkpoint(self, level: int, checkpoint: Checkpoint, tokenizer: Any = None) -> int:
        """Write a level's checkpoint and return its size in bytes."""
        path = reader.checkpoint_path(level)
        self._write(path, lambda place: checkpoints.save(place, checkpoint, tokenizer))
        # the one before is kept here too, in case this one should be damaged
        if level >= 2 and not self._journal.owner.offline:
            self._journal.forget(reader.checkpoint_path(level - 2))
        return checkpoints.size_bytes(self._journal.artifact(path))

    def log_epoch(self, epoch: int, checkpoint: Checkpoint, tokenizer: Any = None) -> None:
        """Write the checkpoint of an epoch of training."""
        path = reader.epoch_path(epoch)
        self._write(path, lambda place: checkpoints.save(place, checkpoint, tokenizer))

    def record(
        self,
        level: Level,
        layers: Sequence[Layer],
        checkpoint: Checkpoint | None = None,
        tokenizer: Any = None,
    ) -> None:
        """Record a level: checkpoint, metrics, tables and curves, complete as of this level."""
        if checkpoint is not None:
            size = self.log_checkpoint(level.level, checkpoint, tokenizer)
            level = replace(level, size_bytes=size)
        self.levels.append(level)
        self.layers.extend(layers)
        # the tables first: a level that they have has its metrics logged when the run goes on
        self._write_levels()
        self._log_level(level, model=checkpoint is not None)
        shutil.rmtree(self._training(level.level), ignore_errors=True)
        self.publish()

    def _write_levels(self) -> None:
        self._write("layers.csv", tables.to_csv(self.layers, Layer))
        self._write(LEVELS, tables.to_csv(self.levels, Level))

    def _log_level(self, level: Level, *, model: bool) -> None:
        values = {key: getattr(level, field) for field, key in METRICS.items()}
        metrics = _metrics({k: v for k, v in values.items() if v is not None}, level.level)
        thousandths = round(1000 * level.sparsity)
        metrics += _metrics({"by_sparsity/test_after": level.test_after}, thousandths)
        number = level.level
        part = f"level {number}"
        self._journal.append(Entry(metrics=metrics, part=part, model=number if model else None))

    def record_latencies(
        self,
        level: int,
        rows: Sequence[Latency],
        profile: Sequence[LayerLatency],
        first: tuple[str, int],
    ) -> None:
        """Record the times of a level: metrics and tables, complete as of this level.

        `first` is the device and the threads whose metrics have the plain names.
        """
        self.latencies.extend(rows)
        self.profile.extend(profile)
        self._write("latency.csv", tables.to_csv(self.latencies, Latency))
        self._write("profile.csv", tables.to_csv(self.profile, LayerLatency))
        self.log_metrics(latencies.metrics(rows, first), step=level)

    def record_sensitivity(self, row: Sensitivity) -> None:
        """Record what pruning a layer alone costs; the table is complete as of this row."""
        self.sensitivities.append(row)
        self._write(TABLE, tables.to_csv(self.sensitivities, Sensitivity))
        self.publish(every=_EVERY_SECONDS)

    def measured_layers(self) -> list[Sensitivity]:
        """Take up a sensitivity run after its last row; the rows that it has."""
        self.sensitivities = reader.read_table(self.id, TABLE, Sensitivity)
        where = f"measurement {len(self.sensitivities)}"
        tags = {"pruneflow.resumed_from": where, writers.FAILURE: None}
        self._journal.append(Entry(tags=tags, status="RUNNING"))
        self.publish()
        return list(self.sensitivities)

    def go_on(self) -> Checkpoint | None:
        """Take up the run after its last level whose checkpoint is whole; None if there is none.

        Levels after it are done again.
        """
        self.levels, self.layers = reader.read_levels(self.id)
        checkpoint, count = None, len(self.levels)
        while self.levels and checkpoint is None:
            number = self.levels[-1].level
            try:
                checkpoint = self.checkpoint(number)
            except (InputError, *reader.FAILURES) as error:
                _warn(f"level {number} is done again: {first_line(error)}")
                self.levels.pop()
                self.layers = [layer for layer in self.layers if layer.level < number]
        where = f"level {self.levels[-1].level}" if self.levels else "its beginning"
        tags = {"pruneflow.resumed_from": where, writers.FAILURE: None}
        self._journal.append(Entry(tags=tags, status="RUNNING"))
        if 0 < len(self.levels) < count:
            self._write_levels()
        if not {f"level {level.level}" for level in self.levels} <= self._journal.parts:
            # they were recorded on another machine, or not at all
            history = MlflowClient().get_metric_history(self.id, METRICS["sparsity"])
            self._journal.parts.update(f"level {metric.step}" for metric in history)
        for level in self.levels:
            self._log_level(level, model=True)
        self.publish()
        return checkpoint

    def checkpoint(self, level: int) -> Checkpoint:
        """A level's checkpoint, from MLflow if it is not here any more."""
        path = reader.checkpoint_path(level)
        if not self._journal.artifact(path).exists():
            with reader.artifact(self.id, path) as local:
                self._journal.stage(path, functools.partial(_copy, local))
        return checkpoints.load(self._journal.artifact(path))

    def save_training(self, level: int, snapshot: Snapshot) -> None:
        """Save where the training of a level stands; on this machine alone, until it is through."""
        make = functools.partial(checkpoints.save_training, snapshot=snapshot)
        replace_whole(self._training(level), make)

    def saved_training(self, level: int) -> Snapshot | None:
        """Where the training of a level stood when it was saved, if it was and is whole."""
        folder = self._training(level)
        try:
            return checkpoints.load_training(folder) if folder.exists() else None
        except InputError as error:
            _warn(f"the training begins anew: {error}")
            return None

    def _training(self, level: int) -> Path:
        return self._journal.folder / "training" / f"level_{level:02d}"


def _warn(text: str) -> None:
    print(f"pruneflow: {text}", file=sys.stderr)


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
    otherwise a new one is made, in `experiment_id` or MLflow's current experiment. `interrupted`
    is the id of a run to go on with instead.

    Raises:
        InputError: no journal can be kept, or another process has that run.
        ExperimentError: the experiment or MLflow gave up; the run says why.
    """
    watched = system_metrics.are_wanted(config)
    with in_a_line("no run can be made: "):
        fingerprint = tags.get("pruneflow.fingerprint", "")
        run = Run(writers.take(stage, name, fingerprint, experiment_id, interrupted))
    try:
        if interrupted is None:
            run.set_tags({"pruneflow.stage": stage, **tags})
            values = config.model_dump(mode="json")
            params = {f"cfg/{key}": store.shown(value) for key, value in values.items()}
            run._journal.append(Entry(params=params))
            run._write("config.json", json.dumps({"stage": stage, **values}, indent=1))
            device = getattr(config, "device", ())  # of a benchmark several
            described = environment.describe([device] if isinstance(device, str) else device)
            run._write("environment.json", json.dumps(described, indent=1))
            run.publish()
        again = interrupted is not None
        with run.with_system_metrics(interrupted=again) if watched else nullcontext():
            yield run
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
        what = "terminated" if killed else type(error).__name__
        with _signals_ignored():
            run._publisher.end("KILLED" if killed else "FAILED", f"{what}: {first_line(error)}")
        if isinstance(error, _FAILURES):
            raise ExperimentError(f"run {run.id} failed: {first_line(error)}") from error
        raise
    run._publisher.end("FINISHED")
    run._publisher.check()


@contextmanager
def _signals_ignored() -> Iterator[None]:
    """Ctrl-C and SIGTERM, of which one may have ended the run, do not stop the ending of it."""
    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
