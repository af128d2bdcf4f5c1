"""A run in MLflow, by the run contract: opened, filled level by level, ended for a reason."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.tracking.context.registry import resolve_tags
from torch import Tensor

from pruneflow.config import Config, Settings
from pruneflow.errors import ExperimentError, InputError, first_line, unknown, user_path
from pruneflow.tracking import checkpoints, environment, latencies, levels, store
from pruneflow.tracking.latencies import Latency, LayerLatency
from pruneflow.tracking.levels import METRICS, TAG_LIMIT, Layer, Level
from pruneflow.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What does not decide a run's result: the preset's values are there one by one, what a folder
# or a base run holds counts, not where it lies.
_NOT_DECIDING = {"preset", "data_dir", "base_run", "base_epochs"}


def fingerprint(stage: str, config: Settings, data_digest: str, base: str | None) -> str:
    """Hash of everything that decides a run's result; the same for the same experiment."""
    deciding = {k: v for k, v in config.model_dump().items() if k not in _NOT_DECIDING}
    deciding["weights"] = _weights(config)
    return _hash(stage, __version__, deciding, data_digest, base)


def benchmark_fingerprint(config: Config, pruned: str) -> str:
    """Hash of what a benchmark times and how: its configuration, the pruning run's fingerprint."""
    how = {k: v for k, v in config.model_dump().items() if k not in ("run", "study", "model")}
    return _hash("benchmark_latency", __version__, how, pruned)


def workload_fingerprint(config: Settings, data_digest: str) -> str:
    """Hash of model, data, weights, preset and seed: what a base run is found by."""
    names = ("model", "preset", "seed", "image_size")
    values = {name: getattr(config, name) for name in names} | {"weights": _weights(config)}
    return _hash(__version__, values, data_digest)


def _weights(config: Settings) -> str:
    """What tells weights apart: their name, or of a file or folder the hash of its content."""
    if config.weights == "pretrained" and config.model.startswith("hf:"):
        path = user_path("model", config.model.removeprefix("hf:"))
    elif config.weights in ("none", "pretrained"):
        return config.weights
    else:
        path = user_path("weights", config.weights)
    if path.is_dir():
        return _hash(*(_content(file) for file in sorted(path.glob("*")) if file.is_file()))
    # what is no file is refused when it is read; a run that has its base never reads it
    return _content(path) if path.is_file() else config.weights


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Run:
    """A run that is open. Everything is logged through it, by the names of the run contract."""

    def __init__(self, client: MlflowClient, run_id: str, experiment_id: str) -> None:
        self.id = run_id
        self.experiment_id = experiment_id
        self._client = client
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
    def address(self) -> str:
        """Where a person finds the run in the UI."""
        return store.address_of(self.experiment_id, self.id)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._client.log_batch(self.id, tags=[RunTag(k, v) for k, v in tags.items()])

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics of one step, all with the same time."""
        now = int(time.time() * 1000)
        batch = [Metric(key, float(value), now, step) for key, value in values.items()]
        self._client.log_batch(self.id, metrics=batch)

    def describe(self, text: str) -> None:
        """Set the Markdown text on the run's page."""
        self.set_tags({"mlflow.note.content": text[:TAG_LIMIT]})

    def log_data(self, name: str, digest: str, source: str, profile: Mapping[str, int]) -> None:
        """Log the data set as an input of the run."""
        data = Dataset(
            name=name,
            digest=digest,
            source_type="local" if Path(source).is_absolute() else "code",
            source=json.dumps({"uri": source}),
            profile=json.dumps(dict(profile)),
        )
        context = InputTag("mlflow.data.context", "training")
        self._client.log_inputs(self.id, [DatasetInput(data, [context])])

    def log_text(self, path: str, text: str) -> None:
        """Write an artifact."""
        self._client.log_text(self.id, text, path)

    def log_folder(self, folder: Path, names: Sequence[str]) -> None:
        """Write files and folders of a folder as artifacts, under their own names."""
        for name in names:
            path = folder / name
            if path.is_dir():
                self._client.log_artifacts(self.id, str(path), name)
            else:
                self._client.log_artifact(self.id, str(path))

    def log_figure(self, path: str, figure: Figure) -> None:
        """Write a figure as an artifact."""
        self._client.log_figure(self.id, figure, path)

    def log_checkpoint(
        self,
        level: int,
        state: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        structure: Mapping[str, Any],
        tokenizer: Any = None,
    ) -> int:
        """Write a level's checkpoint and return its size in bytes."""
        with tempfile.TemporaryDirectory(prefix="pruneflow-") as folder:
            size = checkpoints.save(
                Path(folder), state, masks, structure=structure, tokenizer=tokenizer
            )
            self._client.log_artifacts(self.id, folder, checkpoint_path(level))
        return size

    def record(self, level: Level, layers: Sequence[Layer]) -> None:
        """Record a level: metrics, tables and curves, complete as of this level."""
        self._levels.append(level)
        self._layers.extend(layers)
        row = asdict(level)
        known = {k: row[field] for field, k in METRICS.items() if row[field] is not None}
        self.log_metrics(known, step=level.level)
        self.log_metrics(
            {"by_sparsity/test_after": level.test_after}, step=round(1000 * level.sparsity)
        )
        self.log_text("levels.csv", levels.to_csv(self._levels, Level))
        self.log_text("layers.csv", levels.to_csv(self._layers, Layer))
        self.set_tags({"pruneflow.curves": levels.curves(self._levels)})

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
        self.log_metrics(latencies.metrics(rows, first), step=level)
        self.log_text("latency.csv", levels.to_csv(self._latencies, Latency))
        self.log_text("profile.csv", levels.to_csv(self._profile, LayerLatency))


def checkpoint_path(level: int) -> str:
    """Where a run keeps the checkpoint of a level, among its artifacts."""
    return f"checkpoints/level_{level:02d}"


@contextmanager
def open_run(
    stage: str,
    config: Config,
    *,
    name: str,
    tags: Mapping[str, str],
    experiment_id: str | None = None,
) -> Iterator[Run]:
    """Open a run and end it: FINISHED, or FAILED or KILLED with the reason in a tag.

    A run handed over by `mlflow run` (MLFLOW_RUN_ID) is taken over by the first one opened;
    otherwise a new one is made, in `experiment_id` or MLflow's current experiment.
    """
    client = MlflowClient()
    run_id = os.environ.pop("MLFLOW_RUN_ID", None) if experiment_id is None else None
    if run_id is None:
        experiment_id = experiment_id or current_experiment()
        run_id = client.create_run(experiment_id, tags=resolve_tags(), run_name=name).info.run_id
    else:
        experiment_id = client.get_run(run_id).info.experiment_id
        client.update_run(run_id, name=name)
    run = Run(client, run_id, experiment_id)
    try:
        run.set_tags({"pruneflow.stage": stage, **tags})
        values = config.model_dump(mode="json")
        params = [Param(f"cfg/{key}", shown(value)) for key, value in values.items()]
        client.log_batch(run_id, params=params)
        run.log_text("config.json", json.dumps({"stage": stage, **values}, indent=1))
        run.log_text("environment.json", json.dumps(environment.describe(), indent=1))
        yield run
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
        what = "terminated" if killed else type(error).__name__
        _end(client, run_id, "KILLED" if killed else "FAILED", f"{what}: {error}")
        if isinstance(error, MlflowException | OSError | MemoryError | torch.OutOfMemoryError):
            raise ExperimentError(f"run {run_id} failed: {first_line(error)}") from error
        raise
    client.set_terminated(run_id, "FINISHED")


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
    except InputError:
        return  # the reason has been told, and there is nowhere else to write it
    _end(MlflowClient(), run_id, "FAILED", reason)


def _end(client: MlflowClient, run_id: str, status: str, reason: str) -> None:
    """End a run for a reason; a store that has gone must not hide what went wrong."""
    try:
        client.set_tag(run_id, "pruneflow.failure", reason[:TAG_LIMIT])
        client.set_terminated(run_id, status)
    except MlflowException as error:
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
