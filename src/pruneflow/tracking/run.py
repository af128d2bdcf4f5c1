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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.tracking.context.registry import resolve_tags

from pruneflow.config import Config
from pruneflow.errors import ExperimentError, InputError, first_line, unknown
from pruneflow.tracking import (
    checkpoints,
    environment,
    journal,
    latencies,
    offline,
    reader,
    refusals,
    store,
    tables,
    writers,
)
from pruneflow.tracking.checkpoints import Checkpoint
from pruneflow.tracking.journal import Entry, Journal, Owner
from pruneflow.tracking.latencies import Latency, LayerLatency
from pruneflow.tracking.levels import METRICS, TAG_LIMIT, Layer, Level
from pruneflow.tracking.publish import LEVELS, Publisher, fail_soon
from pruneflow.tracking.refusals import TakenOverError
from pruneflow.workloads.training import Snapshot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTINUED_IN = "pruneflow.continued_in"  # of a run that was handed over and not needed
_FAILURE = "pruneflow.failure"
_PATIENCE_SECONDS = {"FINISHED": 30.0, "FAILED": 10.0, "KILLED": 4.0}  # with a store that is down
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

    def __init__(
        self, client: MlflowClient, run_id: str, experiment_id: str, records: Journal
    ) -> None:
        self.id = run_id
        self.experiment_id = experiment_id
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
        self._journal.stage(path, lambda place: place.write_text(text, "utf-8"))
        self._journal.append(Entry(artifact=path))

    def log_folder(self, folder: Path, names: Sequence[str]) -> None:
        """Write files and folders of a folder as artifacts, under their own names."""
        for name in names:
            self._journal.stage(name, functools.partial(_copy, folder / name))
            self._journal.append(Entry(artifact=name))

    def log_figure(self, path: str, figure: Figure) -> None:
        """Write a figure as an artifact."""
        kind = path.rpartition(".")[2]
        self._journal.stage(path, lambda place: figure.savefig(place, format=kind))
        self._journal.append(Entry(artifact=path))

    def log_checkpoint(self, level: int, checkpoint: Checkpoint, tokenizer: Any = None) -> int:
        """Write a level's checkpoint and return its size in bytes."""
        path = checkpoint_path(level)
        sizes: list[int] = []

        def make(place: Path) -> None:
            sizes.append(checkpoints.save(place, checkpoint, tokenizer))

        self._journal.stage(path, make)
        self._journal.append(Entry(artifact=path))
        if (
            level >= 2 and not offline.wanted()
        ):  # the one before is kept here too, in case this one should be damaged
            self._journal.forget(checkpoint_path(level - 2))
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
        row = asdict(level)
        known = {k: row[field] for field, k in METRICS.items() if row[field] is not None}
        by_sparsity = {"by_sparsity/test_after": level.test_after}
        metrics = (
            *_metrics(known, level.level),
            *_metrics(by_sparsity, round(1000 * level.sparsity)),
        )
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

    # ------------------------------------------------------------------- a run that goes on

    def go_on(self) -> Checkpoint | None:
        """Take up the run after its last level whose checkpoint is whole; None if there is none.

        Levels after it are done again.
        """
        self._levels, self._layers = read_levels(self.id)
        checkpoint, count = None, len(self._levels)
        while self._levels and checkpoint is None:
            number = self._levels[-1].level
            try:
                checkpoint = checkpoints.load(self._local(checkpoint_path(number)))
            except (InputError, *reader.FAILURES) as error:
                print(
                    f"pruneflow: level {number} is done again: {first_line(error)}", file=sys.stderr
                )
                self._levels.pop()
                self._layers = [layer for layer in self._layers if layer.level < number]
        where = f"level {self._levels[-1].level}" if self._levels else "its beginning"
        tags = {"pruneflow.resumed_from": where, _FAILURE: None}
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

        def make(place: Path) -> None:
            checkpoints.save_training(place, snapshot)

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

    # ---------------------------------------------------------------------------------- its end

    def end(self, status: str, reason: str | None = None) -> None:
        """End the run, and send what MLflow has not yet, with some patience."""
        publisher = self._publisher
        if isinstance(publisher.refusal, TakenOverError):  # it is another's to end
            self._journal.close(remove=False)
            return
        tags = {} if reason is None else {_FAILURE: reason[:TAG_LIMIT]}
        try:
            self._journal.append(Entry(tags=tags, status=status, time=_now()))
        except OSError:  # a full disk: the reason at least may find room with MLflow
            _end(self._client, self.id, status, reason or "")
        sent = False
        with suppress(ExperimentError):  # of what is refused, see below
            sent = publisher.publish(patience=_PATIENCE_SECONDS[status])
        refusal = publisher.refusal
        if refusal is not None and not isinstance(refusal, TakenOverError):
            _end(self._client, self.id, "FAILED", reason or first_line(refusal))
        if not sent and not isinstance(refusal, TakenOverError):
            why = publisher.outage if refusal is None else first_line(refusal)
            print(
                f"pruneflow: MLflow has not all of run {self.id} ({why}): send it later with: "
                f"pruneflow sync {self._journal.folder}",
                file=sys.stderr,
            )
        done = sent and status == "FINISHED"
        self._journal.close(remove=done and not offline.wanted())  # else it is copied from there


def _metrics(values: Mapping[str, float], step: int) -> tuple[tuple[str, float, int, int], ...]:
    now = _now()
    return tuple((key, float(value), now, step) for key, value in values.items())


def _now() -> int:
    return int(time.time() * 1000)


def _copy(source: Path, place: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, place)
    else:
        shutil.copyfile(source, place)


def checkpoint_path(level: int) -> str:
    """Where a run keeps the checkpoint of a level, among its artifacts."""
    return f"checkpoints/level_{level:02d}"


def read_levels(run_id: str) -> tuple[list[Level], list[Layer]]:
    """The levels and layers of a run as its tables have them, here or in MLflow; what is whole."""

    def text(path: str) -> str:
        place = journal.folder_of(run_id) / "artifacts" / path
        return place.read_text("utf-8") if place.exists() else reader.text(run_id, path)

    try:
        found = tables.from_csv(text("levels.csv"), Level)
        layers = tables.from_csv(text("layers.csv"), Layer)
    except (*reader.FAILURES, ValueError):
        return [], []  # no level was recorded, or what there is is torn
    complete = {layer.level for layer in layers}
    found = [level for level in found if level.level in complete]
    last = found[-1].level if found else -1
    return found, [layer for layer in layers if layer.level <= last]


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
    fail_soon()
    client = MlflowClient()
    handed_over = os.environ.pop("MLFLOW_RUN_ID", None) if experiment_id is None else None
    try:
        if handed_over is not None and interrupted is None:
            theirs = client.get_run(handed_over)
            writers.check_handed_over(theirs, tags.get("pruneflow.fingerprint", ""), stage)
        run_id, experiment_id = _identify(client, handed_over, interrupted, name, experiment_id)
        records = _take(client, run_id, experiment_id, name, stage)
    except MlflowException as error:
        reason = refusals.in_short(error)
        if not refusals.is_refusal(error):
            reason = f"MLflow {store.NO_ANSWER} ({reason})"
        raise ExperimentError(f"no run can be made: {reason}") from error
    run = Run(client, run_id, experiment_id, records)
    try:
        if interrupted is None:
            run.set_tags({"pruneflow.stage": stage, **tags})
            values = config.model_dump(mode="json")
            params = {f"cfg/{key}": shown(value) for key, value in values.items()}
            run._journal.append(Entry(params=params))
            run._write_text("config.json", json.dumps({"stage": stage, **values}, indent=1))
            run._write_text("environment.json", json.dumps(environment.describe(), indent=1))
            run.publish()
        yield run
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
        what = "terminated" if killed else type(error).__name__
        with _undisturbed():
            run.end("KILLED" if killed else "FAILED", f"{what}: {first_line(error)}")
        if isinstance(error, _ENDINGS):
            raise ExperimentError(f"run {run_id} failed: {first_line(error)}") from error
        raise
    run.end("FINISHED")
    run._publisher.check()


def _take(client: MlflowClient, run_id: str, experiment_id: str, name: str, stage: str) -> Journal:
    """The journal of a run, which is written from it alone from now on.

    One left here by a process whose run was taken over elsewhere is set aside.
    """
    folder = journal.folder_of(run_id)
    run = client.get_run(run_id)
    writer = run.data.tags.get(writers.WRITER, "")
    if folder.exists() and writer not in ("", journal.writer_of(folder)):
        aside = journal.set_aside(folder)
        print(f"pruneflow: run {run_id} was written to elsewhere since: {aside}", file=sys.stderr)
    host = journal.this_host()
    address = store.without_credentials(store.uri())
    records = Journal.make(Owner(run_id, experiment_id, address, name, stage, host))
    try:
        writers.claim(client, run, records)
    except BaseException:
        records.close(remove=False)
        raise
    return records


def _identify(
    client: MlflowClient,
    handed_over: str | None,
    interrupted: str | None,
    name: str,
    experiment_id: str | None,
) -> tuple[str, str]:
    """Id of the run to open, and of its experiment: an interrupted one, handed over, or new."""
    if interrupted is not None:
        if handed_over not in (None, interrupted):
            dismiss(handed_over, interrupted)
        return interrupted, str(client.get_run(interrupted).info.experiment_id)
    if handed_over is not None:
        client.update_run(handed_over, name=name)
        return handed_over, str(client.get_run(handed_over).info.experiment_id)
    experiment_id = experiment_id or current_experiment()
    made = client.create_run(experiment_id, tags=resolve_tags(), run_name=name)
    return str(made.info.run_id), experiment_id


def dismiss(handed_over: str | None, instead: str) -> None:
    """Say of a run that was handed over, and stays empty, which one stands for it; delete it.

    One that `mlflow run` made stays, or that would fail at its end; `pruneflow doctor` deletes it.
    """
    if handed_over is None:
        return
    client = MlflowClient()
    with suppress(MlflowException):  # at worst an empty run is seen in the UI
        client.set_tag(handed_over, CONTINUED_IN, instead)
        client.set_tag(handed_over, "mlflow.note.content", f"Nothing was run here: see {instead}.")
        client.update_run(handed_over, "FINISHED", f"see-{instead[:8]}")
        if "mlflow.project.entryPoint" not in client.get_run(handed_over).data.tags:
            client.delete_run(handed_over)


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


def hand_over(name: str, tags: Mapping[str, str]) -> str:
    """Create a run for another process, which takes it over by MLFLOW_RUN_ID; its id."""
    client = MlflowClient()
    run = client.create_run(current_experiment(), tags={**resolve_tags(), **tags}, run_name=name)
    return str(run.info.run_id)


def end_deserted(run_id: str, reason: str) -> None:
    """End a run as FAILED if the process that had it left it running."""
    client = MlflowClient()
    if client.get_run(run_id).info.status == "RUNNING":
        _end(client, run_id, "FAILED", reason)


def refuse_handed_over(reason: str) -> None:
    """End a run that `mlflow run` handed over, and that was not taken over, as FAILED."""
    run_id = os.environ.pop("MLFLOW_RUN_ID", None)
    if run_id is None:
        return
    try:
        store.check()
        writers.check_handed_over(MlflowClient().get_run(run_id), "")
    except (InputError, MlflowException):
        return  # the reason has been told, and there is nowhere else to write it
    _end(MlflowClient(), run_id, "FAILED", reason)


def _end(client: MlflowClient, run_id: str, status: str, reason: str) -> None:
    """End a run for a reason; a store that has gone must not hide what went wrong."""
    try:
        client.set_tag(run_id, _FAILURE, reason[:TAG_LIMIT])
        client.set_terminated(run_id, status)
    except Exception as error:  # whatever a store, a driver or a network has to say
        print(f"pruneflow: run {run_id} could not be ended: {first_line(error)}", file=sys.stderr)


def shown(value: object) -> str:
    """A value of a configuration as its MLflow parameter shows it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "" if value is None else str(value)


def experiment_named(wanted: str | None) -> str:
    """Id of an experiment by its name or id; without one, of MLflow's current experiment.

    Raises:
        InputError: it is not there, or deleted.
    """
    client = MlflowClient()
    wanted = wanted or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    by_id = wanted or os.environ.get("MLFLOW_EXPERIMENT_ID") or "0"
    found = client.get_experiment_by_name(wanted) if wanted else None
    if found is None:
        try:
            found = client.get_experiment(by_id)
        except MlflowException:
            known = [one.name for one in client.search_experiments()]
            raise unknown("experiment", by_id, known) from None
    if found.lifecycle_stage != "active":
        raise InputError(f"experiment {by_id!r} is deleted: restore it, or name another one")
    return str(found.experiment_id)


def current_experiment() -> str:
    """Id of MLflow's current experiment: MLFLOW_EXPERIMENT_ID or _NAME, else the default one."""
    client = MlflowClient()
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if name:
        found = client.get_experiment_by_name(name)
        return str(found.experiment_id if found else client.create_experiment(name))
    return os.environ.get("MLFLOW_EXPERIMENT_ID") or "0"
