"""Stage `benchmark_latency`: times the levels of pruning runs in every form, and says why."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pruneflow.config import BenchmarkConfig, reads_texts
from pruneflow.errors import InputError, unknown
from pruneflow.inference import EAGER, engines
from pruneflow.inference.engines import ENGINE_FORMS
from pruneflow.inference.forms import FORMS, PrunedLevel
from pruneflow.pruning import compaction, cost
from pruneflow.pruning.units import from_text
from pruneflow.report import charts
from pruneflow.report.figures import LATENCY_FIGURES
from pruneflow.stages.benchmark_point import Point, Setting, Subject
from pruneflow.stages.experiment import cores
from pruneflow.stages.progress import Reporter, latencies_table
from pruneflow.tracking import checkpoints
from pruneflow.tracking.fingerprints import benchmark_fingerprint
from pruneflow.tracking.finished import (
    PruningRun,
    check_checkpoint,
    load_checkpoint,
    load_structure,
    newest_pruning_run,
    open_pruning_run,
    pruning_runs_of,
)
from pruneflow.tracking.latencies import CONTENDED, OK, Latency, LayerLatency
from pruneflow.tracking.run import Ended, Run, open_run
from pruneflow.workloads import models
from pruneflow.workloads.training import keep_large_buffers

_SLOWEST = 3  # layers that a sentence names


def benchmark_latency(config: BenchmarkConfig, reporter: Reporter) -> list[Ended]:
    """Time pruning runs, each in a run of its own: the one handed over, then new ones."""
    settings = _settings(config)
    _tell_missing(config, reporter)
    config = settled(config)
    runs = [_open(run_id, config) for run_id in _chosen(config)]
    if any(setting.device == "cpu" for setting in settings):
        keep_large_buffers()  # as training does: one allocator, whatever this process did before
    with _float32():
        return [_benchmark(_subject(run, config), config, settings, reporter) for run in runs]


# ------------------------------------------------------------------------- what is timed, and where


def _settings(config: BenchmarkConfig) -> list[Setting]:
    """Devices and threads, refused where they are not there.

    Raises:
        InputError: a device or a number of threads that this machine has not.
    """
    has_cuda = torch.cuda.is_available()
    if "cuda" in config.device and not has_cuda:
        raise InputError(
            "device='cuda' is not available: PyTorch sees no CUDA GPU here (valid: cpu)"
        )
    available = cores()
    for threads in config.threads:
        if threads > available:
            raise InputError(
                f"threads={threads} is not valid: this process may use {available} cores"
            )
    devices = config.device or (("cpu", "cuda") if has_cuda else ("cpu",))
    on_cpu = [Setting("cpu", n) for n in config.threads or (available,)]
    return [s for device in devices for s in (on_cpu if device == "cpu" else [Setting(device, 1)])]


def settled(config: BenchmarkConfig) -> BenchmarkConfig:
    """With the devices, threads and engines that are there, eager PyTorch first.

    Raises:
        InputError: a device or a number of threads that this machine has not.
    """
    settings = _settings(config)
    engines_there = [EAGER]
    if config.device != ("cuda",):
        asked = [engine for engine in config.engines if engine != EAGER]
        engines_there += [engine for engine in asked if engines.missing(engine) is None]
    return config.resolved(
        device=tuple(dict.fromkeys(s.device for s in settings)),
        threads=tuple(dict.fromkeys(s.threads for s in settings)),
        engines=tuple(engines_there),
    )


def _tell_missing(config: BenchmarkConfig, reporter: Reporter) -> None:
    """A line for each engine asked for that times nothing here, or less than one may think."""
    asked = [engine for engine in config.engines if engine != EAGER]
    if asked and config.forms and not set(config.forms) & {*ENGINE_FORMS}:
        reporter.say(f"engines run {' and '.join(ENGINE_FORMS)} alone: here that is dense")
    if asked and config.device == ("cuda",):
        reporter.say(f"engines run on a CPU only: {', '.join(asked)} skipped")
        return
    for engine in asked:
        package = engines.missing(engine)
        if package is not None:
            reporter.say(
                f"engine {engine} is skipped: the package {package} is not installed "
                "(pip install 'pruneflow[engines]')"
            )


def _chosen(config: BenchmarkConfig) -> list[str]:
    """Ids of the runs to time: those named, of the study, else the newest.

    Raises:
        InputError: there is none.
    """
    if config.run:
        return list(dict.fromkeys(config.run))
    if config.study is not None:
        return pruning_runs_of(config.study)
    found = newest_pruning_run(config.model)
    if found is None:
        model = config.model or "alexnet"
        if not reads_texts(model) and model not in models.names():
            raise unknown("model", model, models.names())
        which = "" if config.model is None else f" of {config.model}"
        raise InputError(
            f"there is no finished pruning run{which} to time in the current experiment: make one "
            f"with pruneflow prune_iterative --model {model}, or pass run=<id> or study=<name>"
        )
    return [found]


def _open(run_id: str, config: BenchmarkConfig) -> PruningRun:
    """A run that is to be timed.

    Raises:
        InputError: it cannot be, or has not the levels.
    """
    run = open_pruning_run(run_id)
    for level in config.levels:
        if level not in run.params_left:
            raise InputError(
                f"levels={level} is not valid: run {run_id} has the levels 0 to "
                f"{max(run.params_left)}"
            )
    for level in config.levels or run.params_left:
        check_checkpoint(run.id, level)
    _size(run, load_structure(run.id), config)
    return run


def _subject(run: PruningRun, config: BenchmarkConfig) -> Subject:
    """Load what is timed of a run, as far as all its levels share it.

    Raises:
        InputError: checkpoints that are gone, or a size of inputs that does not work.
    """
    levels = config.levels or tuple(sorted(run.params_left))
    checkpoint = load_checkpoint(run.id, 0)
    dense = checkpoints.restore(checkpoint)
    size = _size(run, checkpoint.structure, config)
    if "image_size" in _sizes(run, checkpoint.structure):
        models.check_image_size(dense, str(run.config["model"]), size)
    one = models.random_inputs(checkpoint.structure, 1, size=size, device="cpu")
    subject = Subject(run, levels, size, checkpoint, dense, cost.positions(dense, one), groups=[])
    wanted = config.forms or tuple(FORMS)
    if run.config.get("form") == "compact" or "compact" not in wanted or levels == (0,):
        return subject
    head = models.head_name(dense)
    found = compaction.find_groups(dense, subject.probe, outputs=[head])
    return replace(subject, groups=found.groups)


def _sizes(run: PruningRun, structure: Mapping[str, Any]) -> Mapping[str, int]:
    """Size of what the model was trained on, by the name of its parameter."""
    own: Mapping[str, int] | None = structure.get("input")
    if own is not None:
        return own
    image_size = run.config.get("image_size")  # of a checkpoint that does not say it itself
    return {"sequence_length": 128} if image_size is None else {"image_size": int(image_size)}


def _size(run: PruningRun, structure: Mapping[str, Any], config: BenchmarkConfig) -> int:
    """Size of the inputs: the given one, else the run's.

    Raises:
        InputError: a size of the other kind of input, or longer than the model reads.
    """
    ((name, own),) = _sizes(run, structure).items()
    other = "image_size" if name == "sequence_length" else "sequence_length"
    if getattr(config, other) is not None:
        kind = "texts" if name == "sequence_length" else "images"
        raise InputError(
            f"{other}={getattr(config, other)} has no effect on run {run.id}, whose model reads "
            f"{kind}: pass {name}, or nothing"
        )
    given: int | None = getattr(config, name)
    stated = structure.get("config", {}).get("max_position_embeddings")
    longest = structure.get("positions", stated)
    if given is not None and longest is not None and given > longest:
        raise InputError(
            f"{name}={given} is not valid: the model of run {run.id} reads at most {longest} tokens"
        )
    return own if given is None else given


# --------------------------------------------------------------------------------------- timing


def _benchmark(
    subject: Subject, config: BenchmarkConfig, settings: list[Setting], reporter: Reporter
) -> Ended:
    """Time the levels of one run, in a run."""
    name = f"latency-{subject.run.name}"
    tags = {
        "pruneflow.pruning_run": subject.run.id,
        "pruneflow.fingerprint": benchmark_fingerprint(config, subject.run.fingerprint),
    }
    study = subject.run.study
    if study is not None:
        tags["pruneflow.study"] = study
    ((unit, _),) = _sizes(subject.run, subject.checkpoint.structure).items()
    config = config.resolved(levels=subject.levels, **{unit: subject.size})
    first = (settings[0].device, settings[0].threads)
    notes: list[str] = []
    with open_run("benchmark_latency", config, name=name, tags=tags) as run:
        reporter.say(f"benchmark_latency {name}: run {run.id}, of pruning run {subject.run.id}")
        points = len(subject.levels) * len(settings) * len(config.batch_sizes)
        reporter.plan(points)
        for place, level in enumerate(subject.levels):
            rows: list[Latency] = []
            profile: list[LayerLatency] = []
            for number, setting in enumerate(settings):
                pruned = _pruned(subject, level, setting)
                for order, batch in enumerate(config.batch_sizes):
                    done = (place * len(settings) + number) * len(config.batch_sizes) + order
                    reporter.at(f"level {level}, batch {batch}", done)
                    with _threads(setting.threads):
                        point = Point(subject, level, pruned, setting, batch, config)
                        point.measure()
                    rows += point.rows
                    profile += point.profile
                    for note in point.notes:
                        if note not in notes:
                            notes.append(note)
                            reporter.say(f"  {note}")
                del pruned, point  # before the next level's models are loaded
                gc.collect()
                if setting.device == "cuda":
                    torch.cuda.empty_cache()
            run.record_latencies(level, rows, profile, first)
            reporter.say(f"  level {level}: {_in_short(rows)}")
        _summarise(subject, run, notes)
        if any(row.status == CONTENDED for row in run.latencies):  # not what a sweep takes for done
            run.set_tags({"pruneflow.fingerprint": f"{tags['pruneflow.fingerprint']}-contended"})
    reporter.console.print(latencies_table(run.latencies))
    return run.ended


@contextmanager
def _float32() -> Iterator[None]:
    """Products on CUDA in float32 proper, as on a CPU, and not in TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _pruned(subject: Subject, level: int, setting: Setting) -> PrunedLevel:
    """A level's models on their device."""

    def there(model: nn.Module) -> nn.Module:
        moved: nn.Module = model.to(device=setting.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return moved.eval()

    of_run = subject.run.config
    dense = there(subject.dense)
    saved = subject.checkpoint if level == 0 else load_checkpoint(subject.run.id, level)
    model = dense if level == 0 else there(checkpoints.restore(saved))
    return PrunedLevel(
        dense=dense,
        model=model,
        is_compact=of_run.get("form") == "compact",
        groups=subject.groups,
        kept=from_text(saved.structure.get("units", {})),
        independent=of_run.get("coupling") == "independent",
        device=setting.device,
    )


# --------------------------------------------------------------------------------------- telling


def _in_short(rows: list[Latency]) -> str:
    """The speed-ups of a level, one a form: the median over batch sizes and settings."""
    forms = dict.fromkeys((row.form, row.engine) for row in rows if row.speedup is not None)
    parts = []
    for form, engine in forms:
        ratios = [r.speedup for r in rows if (r.form, r.engine) == (form, engine) and r.speedup]
        if (form, engine) != ("dense", EAGER):
            name = form if engine == EAGER else f"{form} {engine}"
            parts.append(f"{name} {statistics.median(ratios):.2f} x")
    contended = any(row.status == CONTENDED for row in rows)
    return ", ".join(parts) or ("contended" if contended else "timed")


def sentence(row: Latency, dense: Latency, profile: Sequence[LayerLatency]) -> str:
    """How fast a form is, what pruning could reach of it, and where its time goes.

    Args:
        row: of a form that was timed.
        dense: the dense form of the same level, batch and place.
        profile: the form's slowest layers.
    """
    where = f"{row.threads} thread{'s' * (row.threads > 1)}" if row.device == "cpu" else row.device
    interval = ""
    if row.speedup_low is not None:
        interval = f" [{row.speedup_low:.2f}, {row.speedup_high:.2f}]"
    text = (
        f"{row.form}, batch {row.batch_size}, {where}: "
        f"{row.speedup:.2f}{interval} times as fast as dense with {row.macs / dense.macs:.2f} of "
        f"its MACs and {row.weight_bytes / dense.weight_bytes:.2f} of its weight bytes"
    )
    if row.pruned_share is not None:
        text += (
            f"; the layers that were pruned took {100 * row.pruned_share:.0f} % of dense's time "
            f"(without them {1 / max(1 - row.pruned_share, 1e-3):.1f} times as fast at most), of "
            f"their MACs {row.pruned_macs_left:.2f} is left, of their time "
            f"{row.pruned_time_left:.2f}"
        )
    slowest = ", ".join(_layer_in_short(layer) for layer in profile[:_SLOWEST])
    return text + (f"; most time: {slowest}" if slowest else "")


def _layer_in_short(layer: LayerLatency) -> str:
    before = "" if layer.dense_ms is None else f", dense {layer.dense_ms:.2f} ms"
    return f"{layer.layer} {100 * layer.share:.0f} % ({layer.ms:.2f} ms{before})"


def _place(row: Latency | LayerLatency) -> tuple[object, ...]:
    """What the forms of a point share."""
    return row.level, row.device, row.threads, row.batch_size


def _summarise(subject: Subject, run: Run, notes: list[str]) -> None:
    """The run's figures, the sentences, and the text on its page."""
    unit = (
        "pixels" if "image_size" in _sizes(subject.run, subject.checkpoint.structure) else "tokens"
    )
    title = f"{subject.run.name}, {subject.size} {unit}"
    for name, figure in LATENCY_FIGURES.items():
        run.log_figure(f"figures/{name}.png", charts.draw(figure(run.latencies, title)))
    eager = [row for row in run.latencies if row.engine == EAGER and row.status == OK]
    dense = {_place(row): row for row in eager if row.form == "dense"}
    slowest: dict[tuple[object, ...], list[LayerLatency]] = {}
    for layer in run.profile:
        slowest.setdefault((*_place(layer), layer.form), []).append(layer)
    why = [
        (r.level, sentence(r, dense[_place(r)], slowest.get((*_place(r), r.form), [])))
        for r in eager
        if r.form != "dense"
    ]
    lines = [*(f"level {level}, {text}" for level, text in why), *(f"note: {n}" for n in notes)]
    run.log_text("why.md", "".join(f"- {line}\n" for line in lines))
    last = max(subject.levels)
    warnings = "".join(f"**{note[0].upper()}{note[1:]}**\n\n" for note in notes[:5])
    run.describe(
        f"Latency of **{subject.run.config['model']}** ({subject.size} {unit}), levels of the "
        f"pruning run `{subject.run.name}` ({subject.run.id}).\n\n{warnings}"
        f"At level {last}, {100 * subject.run.params_left[last]:.3g} % of the parameters left:\n\n"
        + "\n".join(f"- {text}" for level, text in why if level == last)
    )
