"""Finished runs read back: base runs, pruning runs, and the models that runs kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Run as MlflowRun
from mlflow.tracking import MlflowClient

from pruneflow.config import OF_TRAINING, FinetuneConfig, PruneConfig, Settings
from pruneflow.errors import InputError
from pruneflow.resolution import base_config, trained_as
from pruneflow.tracking import checkpoints, journal, reader, tables
from pruneflow.tracking.levels import Level
from pruneflow.tracking.reader import FINISHED, checkpoint_path, epoch_path, equal, in_study
from pruneflow.tracking.sensitivities import TABLE, Sensitivity
from pruneflow.tracking.store import current_experiment, shown
from pruneflow.tracking.writers import CONTINUED_IN

_OF_FINETUNING = "tags.`pruneflow.stage` = 'finetune'"
_OF_SENSITIVITY = "tags.`pruneflow.stage` = 'sensitivity'"
_OF_PRUNING = "tags.`pruneflow.stage` LIKE 'prune_%'"


def find_base(fingerprint: str) -> str | None:
    """Id of the newest finished finetune run of a fingerprint, anywhere in the store."""
    return _newest(None, _OF_FINETUNING, equal("tags.`pruneflow.fingerprint`", fingerprint))


def newest_base(workload: str, settings: Mapping[str, object]) -> str | None:
    """As `find_base`, of a `workload_fingerprint` and with these settings."""
    values = [equal(f"params.`cfg/{name}`", shown(value)) for name, value in settings.items()]
    return _newest(None, _OF_FINETUNING, equal("tags.`pruneflow.workload`", workload), *values)


def newest_pruning_run(model: str | None) -> str | None:
    """Id of the newest finished pruning run of MLflow's current experiment, of a model or any."""
    of_model = "" if model is None else equal("params.`cfg/model`", model)
    return _newest([current_experiment()], _OF_PRUNING, of_model)


def newest_sensitivity(workload: str, settings: Mapping[str, object]) -> str | None:
    """Id of the newest finished sensitivity run of a workload, with these settings."""
    values = [equal(f"params.`cfg/{name}`", shown(value)) for name, value in settings.items()]
    return _newest(None, _OF_SENSITIVITY, equal("tags.`pruneflow.workload`", workload), *values)


def check_sensitivity(run_id: str, workload: str, settings: Mapping[str, object]) -> None:
    """See that a run is a finished sensitivity run of a workload with these settings.

    Raises:
        InputError: it does not exist, is something else, did not finish, or differs in them.
    """
    run = _finished(run_id, "sensitivity_run")
    for name, value in settings.items():
        if (theirs := run.data.params.get(f"cfg/{name}")) != shown(value):
            raise InputError(
                f"sensitivity_run={run_id!r} has {name}={theirs}, not {shown(value)}: pass that, "
                "or another run"
            )
    if run.data.tags.get("pruneflow.workload") != workload:
        raise InputError(
            f"sensitivity_run={run_id!r} is of another model, data set, preset or seed: pass its "
            "parameters, or another run"
        )


def sensitivities_of(run_id: str) -> list[Sensitivity]:
    """What a sensitivity run measured; InputError if that is lost."""
    with reader.reading(f"sensitivity_run={run_id!r} has lost its {TABLE}: pass another one"):
        return tables.from_csv(reader.text_of(run_id, TABLE), Sensitivity)


def _newest(experiments: list[str] | None, *conditions: str) -> str | None:
    newest_first = reader.runs(experiments, FINISHED, *conditions, newest_first=True, page=1)
    return next((str(run.info.run_id) for run in newest_first), None)


def with_base(config: PruneConfig) -> PruneConfig:
    """A configuration with what its base run decides of it.

    That is the weights that a named one started from and, of a run that rewinds, how it trains.

    Raises:
        InputError: a base run that is no finished finetune run, or was trained too short.
    """
    rewinds = config.rewind != "none"
    if config.named_base is None:
        return trained_as(config, base_config(config)) if rewinds else config
    params = _finished(config.named_base, "base_run").data.params
    config = config.resolved(weights=params["cfg/weights"])
    if not rewinds:
        return config
    names = ("epochs", "batch_size", *OF_TRAINING)
    recorded = {n: params[f"cfg/{n}"] for n in names if f"cfg/{n}" in params}
    base = FinetuneConfig.model_validate(base_config(config).model_dump() | recorded)
    return trained_as(config, base)


def open_base(
    run_id: str, config: Settings, structure: Mapping[str, Any], data_digest: str
) -> checkpoints.Checkpoint:
    """The model of a finetune run, once it is seen that this configuration can prune it.

    `structure` is that of the configuration's own model.

    Raises:
        InputError: a run that does not exist, did not finish, is no finetune run, has another
            model, image size or classes, or was trained on other samples: they may be among those
            held out here.
    """
    run = _finished(run_id, "base_run")
    for difference in _differences(run, config, structure, data_digest):
        raise InputError(
            f"base_run={run_id!r} {difference}: pass the parameters that it has (model, dataset, "
            "data_dir, train_limit, weights, seed), or another base_run"
        )
    return load_checkpoint(run_id, 0)


def _differences(
    run: MlflowRun, config: Settings, structure: Mapping[str, Any], data_digest: str
) -> Iterator[str]:
    """What keeps a base run from being pruned with a configuration."""
    for name in ("model", "dataset", "image_size", "seed"):
        theirs, ours = run.data.params.get(f"cfg/{name}"), shown(getattr(config, name))
        if theirs != ours:
            yield f"has {name}={theirs}, not {ours}"
    of_base = load_structure(run.info.run_id)
    encoder = structure.get("config", {})  # another version of the library may say more of it
    if any(of_base.get("config", {}).get(name) != value for name, value in encoder.items()):
        yield f"was trained with another architecture than {config.model} has here"
    for part in ("classes", "options", "tokenizer"):
        theirs, ours = of_base.get(part, {}), structure.get(part, {})
        if theirs != ours:
            yield f"was trained with another model: {part} {theirs}, not {ours}"
    for digest in {logged.dataset.digest for logged in run.inputs.dataset_inputs}:
        if digest != data_digest:
            yield f"was trained on other samples (digest {digest}, not {data_digest})"


_STAGES = {  # parameter -> how the stage of the runs that it may name begins, and what they are
    "base_run": ("finetune", "finetune", "newest, or nothing to have one found or made"),
    "sensitivity_run": ("sensitivity", "sensitivity", "newest, or nothing for the newest"),
    "run": ("prune_", "pruning", "or nothing for the newest"),
}


def _finished(run_id: str, parameter: str) -> MlflowRun:
    """A finished run that a parameter names; InputError if there is none such."""
    stage, kind, instead = _STAGES[parameter]
    run = reader.run(run_id, parameter, f"the id of a finished {kind} run, {instead}")
    actual = run.data.tags.get("pruneflow.stage", "one of something else")
    if not actual.startswith(stage):
        raise InputError(f"{parameter}={run_id!r} is not a {kind} run but {actual}")
    if run.info.status != "FINISHED":
        raise InputError(f"{parameter}={run_id!r} did not finish: its status is {run.info.status}")
    return run


@dataclass(frozen=True)
class PruningRun:
    """A finished pruning run."""

    id: str
    name: str
    config: Mapping[str, Any]  # typed, as in `config.json`
    levels: Mapping[int, Level]  # by number
    fingerprint: str
    study: str | None


def pruning_runs_of(study: str) -> list[str]:
    """Ids of the finished pruning runs of a study, in MLflow's current experiment, oldest first.

    Raises:
        InputError: there are none.
    """
    runs = list(reader.runs([current_experiment()], FINISHED, _OF_PRUNING, study=study))
    if not runs:
        raise InputError(
            f"study={study!r} has no finished pruning runs in the current experiment: run it "
            "first, or pass run ids"
        )
    return [str(run.info.run_id) for run in sorted(runs, key=lambda run: int(run.info.start_time))]


def open_pruning_run(run_id: str) -> PruningRun:
    """Read a pruning run.

    Raises:
        InputError: a run that does not exist, is no pruning run, did not finish or has lost its
            tables.
    """
    run = _finished(run_id, "run")
    with reader.reading(f"run={run_id!r} has lost its config.json or levels.csv: pass another one"):
        config = json.loads(reader.text_of(run_id, "config.json"))
        levels = tables.from_csv(reader.text_of(run_id, "levels.csv"), Level)
    tags = run.data.tags
    return PruningRun(
        id=run_id,
        name=run.info.run_name,
        config=config,
        levels={level.level: level for level in levels},
        fingerprint=tags.get("pruneflow.fingerprint", ""),
        study=tags.get("pruneflow.study"),
    )


def by_fingerprint(study: str) -> dict[str, str]:
    """Ids of the finished runs of MLflow's current experiment, by fingerprint.

    Of runs with the same one, that of the study is given, else the newest.
    """
    newest_first = reader.runs([current_experiment()], FINISHED, newest_first=True)
    ids: dict[str, str] = {}
    for run in sorted(newest_first, key=lambda run: in_study(run.data.tags, study), reverse=True):
        if fingerprint := run.data.tags.get("pruneflow.fingerprint"):
            ids.setdefault(fingerprint, str(run.info.run_id))
    return ids


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


def outcome(run_id: str) -> Outcome:
    """How a run ended."""
    run = MlflowClient().get_run(run_id)
    return Outcome(run.info.status, run.data.tags.get("pruneflow.failure"), run.data.metrics)


def stands_for(run_id: str) -> str:
    """The run gone on with, or found finished, in place of one handed over; else itself."""
    return str(MlflowClient().get_run(run_id).data.tags.get(CONTINUED_IN, run_id))


def fingerprint_of(run_id: str) -> str:
    """The fingerprint of a run; its id, if it has none."""
    return str(MlflowClient().get_run(run_id).data.tags.get("pruneflow.fingerprint", run_id))


def _reading_checkpoint(run_id: str, of: str) -> AbstractContextManager[None]:
    return reader.reading(
        f"run {run_id} has no checkpoint of {of} any more that can be read: delete that run, or "
        "pass another one"
    )


def check_checkpoint(run_id: str, level: int) -> None:
    """See that a level's checkpoint is there, without reading it; InputError if it is not."""
    with _reading_checkpoint(run_id, f"level {level}"):
        _check(run_id, checkpoint_path(level))


def check_epoch(run_id: str, epoch: int) -> None:
    """See that a base run kept the checkpoint of an epoch; InputError if it did not."""
    problem = (
        f"base_run={run_id!r} did not keep its weights of after epoch {epoch}: leave base_run out, "
        f"or train it with rewind_epoch={epoch}"
    )
    with reader.reading(problem):
        _check(run_id, epoch_path(epoch))


def _check(run_id: str, path: str) -> None:
    files = MlflowClient().list_artifacts(run_id, path)
    missing = {"model.safetensors", "structure.json"} - {Path(f.path).name for f in files}
    if missing:
        raise FileNotFoundError(f"it lacks {' and '.join(sorted(missing))}")


def load_structure(run_id: str) -> Mapping[str, Any]:
    """What `structure.json` of a run's level 0 says; InputError if it cannot be read."""
    with _reading_checkpoint(run_id, "level 0"):
        return dict(json.loads(reader.text_of(run_id, f"{checkpoint_path(0)}/structure.json")))


def load_checkpoint(run_id: str, level: int) -> checkpoints.Checkpoint:
    """A level's checkpoint of a run; InputError if there is none, or none that can be read."""
    with checkpoint_folder(run_id, level) as folder:
        return checkpoints.load(folder)


@contextmanager
def checkpoint_folder(run_id: str, level: int) -> Iterator[Path]:
    """The files of a level's checkpoint, here for the time being; raises as `load_checkpoint`."""
    with (
        _reading_checkpoint(run_id, f"level {level}"),
        reader.artifact(run_id, checkpoint_path(level)) as folder,
    ):
        yield folder


def load_epoch(run_id: str, epoch: int) -> checkpoints.Checkpoint:
    """The checkpoint that a base run kept of an epoch; from here, where MLflow has it not yet.

    Raises:
        InputError: there is none, or none that can be read.
    """
    here = journal.folder_of(run_id) / "artifacts" / epoch_path(epoch)
    if here.is_dir():
        return checkpoints.load(here)
    with (
        _reading_checkpoint(run_id, f"epoch {epoch}"),
        reader.artifact(run_id, epoch_path(epoch)) as folder,
    ):
        return checkpoints.load(folder)
