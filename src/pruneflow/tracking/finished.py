"""Finished runs read back: base runs, pruning runs, and the models that runs kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Run as MlflowRun
from mlflow.tracking import MlflowClient

from pruneflow.config import Settings
from pruneflow.errors import InputError, first_line
from pruneflow.tracking import checkpoints, reader, tables
from pruneflow.tracking.levels import Level
from pruneflow.tracking.reader import FINISHED, checkpoint_path
from pruneflow.tracking.store import current_experiment, shown
from pruneflow.tracking.writers import CONTINUED_IN


def find_base(fingerprint: str) -> str | None:
    """Id of the newest finished finetune run of a fingerprint, anywhere in the store."""
    return _newest(None, _BASES, f"tags.`pruneflow.fingerprint` = '{fingerprint}'")


def newest_base(workload: str, settings: Mapping[str, object]) -> str | None:
    """Id of the newest finished finetune run of a workload, anywhere in the store.

    Args:
        workload: its `workload_fingerprint`.
        settings: values of its configuration that it has to have.
    """
    values = [f"params.`cfg/{name}` = '{shown(value)}'" for name, value in settings.items()]
    return _newest(None, _BASES, f"tags.`pruneflow.workload` = '{workload}'", *values)


_BASES = "tags.`pruneflow.stage` = 'finetune'"


def _newest(experiments: list[str] | None, *conditions: str) -> str | None:
    """Id of the newest finished run that meets conditions."""
    found = next(reader.runs(experiments, FINISHED, *conditions, newest_first=True, page=1), None)
    return None if found is None else str(found.info.run_id)


def base_weights(run_id: str) -> str:
    """The weights that a finetune run started from, which say what its model looks like.

    Raises:
        InputError: a run that does not exist or is no finetune run.
    """
    return str(_finetune_run(run_id).data.params["cfg/weights"])


def open_base(
    run_id: str, config: Settings, structure: Mapping[str, Any], data_digest: str
) -> checkpoints.Checkpoint:
    """The model of a finetune run, once it is seen that this configuration can prune it.

    Args:
        run_id: the run.
        config: of the pruning run.
        structure: of its model, as its checkpoints will have it.
        data_digest: hash of its samples. A base run of the version before that logged none is
            compared by what is left.

    Raises:
        InputError: a run that does not exist, did not finish, is no finetune run, has another
            model, image size or classes, or was trained on other samples: they may be among those
            held out here.
    """
    run = _finetune_run(run_id)
    for name in ("model", "dataset", "image_size", "seed"):
        theirs, ours = run.data.params.get(f"cfg/{name}"), shown(getattr(config, name))
        if theirs != ours:
            raise InputError(
                f"base_run={run_id!r} has {name}={theirs}, not {ours}: they must agree"
            )
    checkpoint = load_checkpoint(run_id, 0)
    found, classes = checkpoint.structure.get("classes"), structure["classes"]
    if found != classes:
        raise InputError(f"base_run={run_id!r} has {found} classes, the data set {classes}")
    tokenizer, shape = structure.get("tokenizer"), structure.get("config", {})
    theirs_shape = checkpoint.structure.get("config", {})
    same_shape = all(theirs_shape.get(name) == value for name, value in shape.items())
    same_shape &= checkpoint.structure.get("options", {}) == structure.get("options", {})
    if checkpoint.structure.get("tokenizer") != tokenizer or not same_shape:
        part = "architecture" if not same_shape else "tokenizer"
        raise InputError(
            f"base_run={run_id!r} was trained with another {part} than {config.model} has here: "
            "pass the same weights and train_limit, or another base_run"
        )
    for theirs in (one.dataset.digest for one in run.inputs.dataset_inputs):
        if theirs != data_digest:
            raise InputError(
                f"base_run={run_id!r} was trained on other samples of {config.dataset} than are "
                f"read here (digest {theirs}, not {data_digest}): pass the same data_dir and "
                "train_limit, or another base_run"
            )
    return checkpoint


def _finetune_run(run_id: str) -> MlflowRun:
    """A finished finetune run.

    Raises:
        InputError: there is none of this id.
    """
    wanted = "a finished finetune run, newest, or nothing to have one found or made"
    run = reader.run(run_id, "base_run", f"the id of {wanted}")
    stage = run.data.tags.get("pruneflow.stage")
    if stage != "finetune":
        raise InputError(
            f"base_run={run_id!r} is not a finetune run but {stage or 'one of something else'}"
        )
    if run.info.status != "FINISHED":
        raise InputError(f"base_run={run_id!r} did not finish: its status is {run.info.status}")
    return run


@dataclass(frozen=True)
class PruningRun:
    """A finished pruning run.

    Attributes:
        id, name: of the run.
        config: its configuration, typed, as in `config.json`.
        params_left: level -> fraction of the parameters left.
        fingerprint: of what decided its result.
        study: that it belongs to, if any.
    """

    id: str
    name: str
    config: Mapping[str, Any]
    params_left: Mapping[int, float]
    fingerprint: str
    study: str | None


_OF_PRUNING = "tags.`pruneflow.stage` LIKE 'prune_%'"


def newest_pruning_run(model: str | None) -> str | None:
    """Id of the newest finished pruning run of MLflow's current experiment, of a model or any."""
    of_model = "" if model is None else f"params.`cfg/model` = '{_quoted(model)}'"
    return _newest([current_experiment()], _OF_PRUNING, of_model)


def pruning_runs_of(study: str) -> list[str]:
    """Ids of the finished pruning runs of a study, in MLflow's current experiment, oldest first.

    Raises:
        InputError: there are none.
    """
    tagged = f"tags.`pruneflow.study` = '{_quoted(study)}'"
    shared = f"tags.`pruneflow.study.{_quoted(study)}` LIKE '%'"
    runs = {run.info.run_id: run for of in (tagged, shared) for run in _finished(_OF_PRUNING, of)}
    if not runs:
        raise InputError(
            f"study={study!r} has no finished pruning runs in the current experiment: run it "
            "first, or pass run ids"
        )
    return sorted(runs, key=lambda run_id: int(runs[run_id].info.start_time))


def open_pruning_run(run_id: str) -> PruningRun:
    """Read a pruning run.

    Raises:
        InputError: a run that does not exist, is no pruning run, did not finish or has lost its
            tables.
    """
    run = reader.run(run_id, "run", "the id of a finished pruning run, or nothing for the newest")
    stage = run.data.tags.get("pruneflow.stage", "one of something else")
    if not stage.startswith("prune_"):
        raise InputError(f"run={run_id!r} is not a pruning run but {stage}")
    if run.info.status != "FINISHED":
        raise InputError(f"run={run_id!r} did not finish: its status is {run.info.status}")
    try:
        config = json.loads(reader.text_of(run_id, "config.json"))
        levels = tables.from_csv(reader.text_of(run_id, "levels.csv"), Level)
    except (*reader.FAILURES, ValueError) as error:
        raise reader.refused(
            error,
            f"run={run_id!r} has lost its config.json or levels.csv ({first_line(error)}): "
            "pass another one",
        ) from None
    left = {level.level: level.params_left for level in levels}
    name, fingerprint = run.info.run_name, run.data.tags.get("pruneflow.fingerprint", "")
    study = run.data.tags.get("pruneflow.study")
    return PruningRun(run_id, name, config, left, fingerprint, study)


def _finished(*conditions: str, newest_first: bool = False) -> Iterator[MlflowRun]:
    """The finished runs of MLflow's current experiment that meet conditions."""
    experiment = current_experiment()
    return reader.runs([experiment], FINISHED, *conditions, newest_first=newest_first)


def _quoted(text: str) -> str:
    """Text between the quotes of a filter.

    Raises:
        InputError: text that holds such a quote itself, or that of a tag's name, which MLflow's
            filters cannot say.
    """
    if "'" in text or "`" in text:
        raise InputError(f"{text!r} holds a quote: no run can be searched by it")
    return text


def by_fingerprint(study: str) -> dict[str, str]:
    """Ids of the finished runs of MLflow's current experiment, by fingerprint.

    Of runs with the same one, that of the study is given, else the newest.
    """
    found: dict[str, str] = {}
    newest_first = _finished(newest_first=True)
    for run in sorted(newest_first, key=lambda run: in_study(run.data.tags, study), reverse=True):
        found.setdefault(run.data.tags.get("pruneflow.fingerprint", ""), str(run.info.run_id))
    return found


def in_study(tags: Mapping[str, str], study: str) -> bool:
    """Whether a run's tags say that it belongs to a study, its own or one that shares it."""
    return tags.get("pruneflow.study") == study or f"pruneflow.study.{study}" in tags


def adopt(run_id: str, study: str) -> None:
    """Tag a finished run as one of a study, which it keeps belonging to if it has one already."""
    client = MlflowClient()
    tags = client.get_run(run_id).data.tags
    if not in_study(tags, study):
        key = "pruneflow.study" if "pruneflow.study" not in tags else f"pruneflow.study.{study}"
        client.set_tag(run_id, key, study)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its status, the reason if it failed, and its last metrics by name."""

    status: str
    failure: str | None
    metrics: Mapping[str, float]


def stands_for(run_id: str) -> str:
    """The run gone on with, or found finished, in place of one handed over; else itself."""
    return str(MlflowClient().get_run(run_id).data.tags.get(CONTINUED_IN, run_id))


def outcome(run_id: str) -> Outcome:
    """How a run ended."""
    run = MlflowClient().get_run(run_id)
    return Outcome(run.info.status, run.data.tags.get("pruneflow.failure"), run.data.metrics)


def fingerprint_of(run_id: str) -> str:
    """The fingerprint of a run; its id, if it has none."""
    return str(MlflowClient().get_run(run_id).data.tags.get("pruneflow.fingerprint", run_id))


def check_checkpoint(run_id: str, level: int) -> None:
    """See that a level's checkpoint is there, without reading it.

    Raises:
        InputError: it is not.
    """
    path = checkpoint_path(level)
    try:
        there = {Path(f.path).name for f in MlflowClient().list_artifacts(run_id, path)}
    except reader.FAILURES as error:
        raise reader.refused(error, _no_checkpoint(run_id, level, first_line(error))) from None
    if not {"model.safetensors", "structure.json"} <= there:
        raise InputError(_no_checkpoint(run_id, level, "its files are not there"))


def _no_checkpoint(run_id: str, level: int, reason: str) -> str:
    return (
        f"run {run_id} has no checkpoint of level {level} any more ({reason}): delete that run, or "
        "pass another one"
    )


def load_structure(run_id: str) -> Mapping[str, Any]:
    """What `structure.json` of a run's level 0 says.

    Raises:
        InputError: it cannot be read.
    """
    try:
        path = f"{checkpoint_path(0)}/structure.json"
        structure: Mapping[str, Any] = json.loads(reader.text_of(run_id, path))
    except (*reader.FAILURES, ValueError) as error:
        raise reader.refused(
            error,
            f"run {run_id} has no readable structure.json of level 0 ({first_line(error)}): "
            "delete that run, or pass another one",
        ) from None
    return structure


def load_checkpoint(run_id: str, level: int) -> checkpoints.Checkpoint:
    """Read a level's checkpoint of a run.

    Raises:
        InputError: the run has no such checkpoint, or it cannot be read.
    """
    try:
        with reader.artifact(run_id, checkpoint_path(level)) as folder:
            return checkpoints.load(folder)
    except reader.FAILURES as error:
        raise reader.refused(error, _no_checkpoint(run_id, level, first_line(error))) from None
