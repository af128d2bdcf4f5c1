"""Stage `export`: a level as files that others read, run and compared before it is called done."""

from __future__ import annotations

import functools
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruneflow.config import BenchmarkConfig, ExportConfig
from pruneflow.errors import ExperimentError, InputError, output_folder
from pruneflow.inference import exporting
from pruneflow.inference.exporting import Call
from pruneflow.inference.forms import FORMS, NoFormError, PrunedLevel, difference
from pruneflow.resolution import resolve
from pruneflow.stages import benchmark
from pruneflow.stages.benchmark_point import Subject
from pruneflow.stages.progress import Reporter
from pruneflow.tracking import environment, finished, journal, logged_models
from pruneflow.tracking.finished import PruningRun
from pruneflow.tracking.run import Ended, Run, open_run
from pruneflow.workloads import models
from pruneflow.workloads.splits import MEAN, STD

_TOLERANCE = 1e-3  # of logits, relative to the largest: what rounding explains
_FORMS_OF = {"huggingface": ("masked", "compact")}  # formats that take them in another order
ABOUT = "export.json"


def export(config: ExportConfig, reporter: Reporter) -> Ended:
    """Write a level's files, see that they give the model's logits, keep and register them."""
    folder = output_folder("output_dir", config.output_dir)
    if (package := exporting.missing(config.format)) is not None:
        raise InputError(
            f"format={config.format} needs the package {package}: pip install 'pruneflow[engines]'"
        )
    run_id = config.run or _newest()
    pruning = finished.open_pruning_run(run_id)
    level = _level(config, pruning)
    registered = logged_models.of_level(run_id, level) if config.register else None
    either = _FORMS_OF.get(config.format, ("compact", "masked"))
    forms: Sequence[str] = (config.form,) if config.form else either
    wanted = resolve(BenchmarkConfig, {"run": run_id, "levels": str(level), "forms": forms[0]})
    subject = benchmark.load_subject(pruning, wanted)
    pruned = benchmark.load_level(subject, level, "cpu")
    form, model = _model(forms, pruned)
    with tempfile.TemporaryDirectory(prefix="pruneflow-") as place:
        files = Path(place)
        about = _write(config, files, form, model, pruned, subject, level)
        name = f"{config.format}-{form}-level-{level}-{pruning.name}"
        config = config.resolved(run=run_id, level=level, form=form)
        tags = {"pruneflow.pruning_run": run_id}
        with open_run("export", config, name=name, tags=tags) as run:
            reporter.say(f"export {name}: run {run.id}, of pruning run {run_id}")
            _copy(files, folder)
            _record(run, files, about)
            reporter.say(f"  {folder}: {_outcome(about)}")
            if registered is not None and config.register is not None:
                version = logged_models.register(registered, config.register, config.alias)
                run.set_tags({"pruneflow.registered": f"models:/{config.register}/{version}"})
                alias = "" if config.alias is None else f" @{config.alias}"
                reporter.say(f"  registered as {config.register}, version {version}{alias}")
    return run.ended


def _record(run: Run, files: Path, about: Mapping[str, Any]) -> None:
    run.log_folder(files, sorted(path.name for path in files.iterdir()))
    values = {"export/difference": about["difference"], "export/size_bytes": about["bytes"]}
    run.log_metrics(values, step=about["level"])
    run.describe(
        f"Level {about['level']} of the pruning run {about['run']}, **{about['form']}**, as "
        f"**{about['format']}**: {_outcome(about)}; see `{ABOUT}`."
    )


def _outcome(about: Mapping[str, Any]) -> str:
    return (
        f"{about['bytes'] / 1e6:.1f} MB, logits differ from the saved model's by "
        f"{about['difference']:.1e} of the largest"
    )


def _newest() -> str:
    newest = finished.newest_pruning_run(None)
    if newest is None:
        raise InputError(
            "there is no finished pruning run to export in the current experiment: make one with "
            "pruneflow prune_iterative, or pass run=<id>"
        )
    return newest


def _level(config: ExportConfig, run: PruningRun) -> int:
    """The level that is asked for, or the best under the bound."""
    last = max(run.levels)
    if config.best is None:
        level = last if config.level is None else config.level
        if level not in run.levels:
            raise InputError(f"level={level} is not valid: run {run.id} has the levels 0 to {last}")
        return level
    name, _, number = config.best.partition(":")
    dense, bound = run.levels[0], float(number)
    if name == "accuracy":  # on the validation set: the test set chooses nothing
        fits = [v for v in run.levels.values() if dense.val_after - v.val_after <= bound + 1e-9]
        return min(fits, key=lambda v: (v.size_bytes, v.macs_left)).level
    shares = {
        v: {
            "params": v.params_left,
            "macs": v.macs_left,
            "bytes": v.size_bytes / dense.size_bytes,
        }[name]
        for v in run.levels.values()
    }
    fits = [v for v, share in shares.items() if share <= bound]
    if not fits:
        least = min(shares.values())
        raise InputError(
            f"best={config.best!r} fits no level of run {run.id}: the least that it has is "
            f"{name}:{least:.4g}"
        )
    return max(fits, key=lambda v: (v.val_after, -v.size_bytes)).level


def _model(forms: Sequence[str], pruned: PrunedLevel) -> tuple[str, nn.Module]:
    """The first form that a level has, and the model in it."""
    for form in forms:
        try:
            return form, FORMS[form](pruned, lambda model: torch.empty(0), "")
        except NoFormError as reason:
            problem = reason
    raise InputError(f"form={forms[0]} is not to be had of this level: {problem}")


def _write(
    config: ExportConfig,
    folder: Path,
    form: str,
    model: nn.Module,
    pruned: PrunedLevel,
    subject: Subject,
    level: int,
) -> dict[str, Any]:
    """Write the files, run them, and say of them what `export.json` holds.

    Raises:
        InputError: the format cannot hold this model.
        ExperimentError: what was written computes something else.
    """
    structure, size = subject.checkpoint.structure, subject.size[1]
    inputs = models.random_inputs(structure, 2, size=size, device="cpu")
    try:
        call = exporting.write(config.format, model, inputs, structure, folder)
    except exporting.NoFormatError as reason:
        raise InputError(f"format={config.format} cannot hold this model: {reason}") from None
    if config.format == "huggingface":
        _write_tokenizer(subject.run.id, level, folder)
    # with coupling=independent the compact form is another model than the masked one, by intent
    reference = model if form == "compact" and pruned.independent else pruned.model
    differences = [_difference(call, reference, batch) for batch in _batches(structure, size)]
    if not all(far <= _TOLERANCE for far in differences):  # NaN is not
        raise ExperimentError(
            f"the {config.format} files give other logits than the saved model (by "
            f"{max(differences):.1e} of the largest): nothing was exported"
        )
    about = {
        "run": subject.run.id,
        "level": level,
        "form": form,
        "format": config.format,
        "difference": max(differences),
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "files": sorted(path.name for path in folder.iterdir()),
        "opset": exporting.OPSET if config.format == "onnx" else None,
        "takes": _takes(structure, subject.size),
        "labels": structure.get("labels"),
        "versions": environment.describe()["versions"],
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=1), "utf-8")
    return about


def _batches(structure: Mapping[str, Any], size: int) -> Iterator[Any]:
    """What the files are tried with: batches of other sizes, texts of other lengths and padded."""
    for batch in (1, 5):
        yield models.random_inputs(structure, batch, size=size, device="cpu")
    padded = models.random_inputs(structure, 3, size=size, device="cpu")
    if not isinstance(padded, torch.Tensor):
        shorter = {name: tensor[:, : max(2, size // 2)].clone() for name, tensor in padded.items()}
        shorter["attention_mask"][0, -1] = 0
        yield shorter


def _write_tokenizer(run_id: str, level: int, folder: Path) -> None:
    with finished.checkpoint_folder(run_id, level) as saved:
        if (saved / "tokenizer").is_dir():
            shutil.copytree(saved / "tokenizer", folder, dirs_exist_ok=True)


def _takes(structure: Mapping[str, Any], size: tuple[str, int]) -> dict[str, Any]:
    """What the files take, in words that a program can read."""
    if size[0] == "sequence_length":
        return {"input_ids": ["N", "tokens"], "attention_mask": ["N", "tokens"]}
    colours = {"mean": structure.get("mean", MEAN), "std": structure.get("std", STD)}
    return {
        "input": ["N", 3, size[1], size[1]],
        "pixels": "in [0, 1], less mean, over std",
        **colours,
    }


def _difference(call: Call, reference: nn.Module, inputs: Any) -> float:
    """How far the files' logits are; infinitely far where they do not take the inputs."""
    with models.looking(reference), torch.inference_mode():
        try:
            logits = call(inputs)
        except Exception:  # runtimes raise kinds of their own
            return math.inf
        return difference(logits, models.logits(reference, inputs))


def _copy(files: Path, folder: Path) -> None:
    """Replace what an earlier export left in a folder; other files there are left alone.

    What says what is there goes first and comes last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(OSError, ValueError, LookupError, TypeError):  # none, or not one of ours
        earlier = json.loads((folder / ABOUT).read_text("utf-8"))["files"]
        (folder / ABOUT).unlink()
        for name in earlier:
            if Path(name).name == name:
                (folder / name).unlink(missing_ok=True)
    for path in sorted(files.iterdir(), key=lambda path: path.name == ABOUT):
        journal.replace_whole(folder / path.name, functools.partial(shutil.copyfile, path))
