"""Stage `benchmark_latency`: times the levels of pruning runs in every form, and says why."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pruneflow.config import BenchmarkConfig
from pruneflow.energy import Meter, counters
from pruneflow.errors import InputError
from pruneflow.inference import EAGER, engines
from pruneflow.inference.forms import FORMS, PrunedLevel
from pruneflow.pruning import cost, tracing
from pruneflow.pruning.units import from_text
from pruneflow.report import charts
from pruneflow.report.timings import LATENCY_FIGURES
from pruneflow.stages.benchmark_point import Point, Subject, form_name
from pruneflow.stages.experiment import ENERGY
from pruneflow.stages.progress import Reporter, latencies_table
from pruneflow.tracking import checkpoints, finished
from pruneflow.tracking.fingerprints import benchmark_fingerprint
from pruneflow.tracking.finished import PruningRun
from pruneflow.tracking.latencies import CONTENDED, OK, Latency, LayerLatency
from pruneflow.tracking.run import Ended, Run, open_run
from pruneflow.workloads import models
from pruneflow.workloads.machine import check_device, cores, keep_large_buffers

_SLOWEST = 3  # layers that a sentence names
_UNITS = {"image_size": ("images", "pixels"), "sequence_length": ("texts", "tokens")}


def benchmark_latency(config: BenchmarkConfig, reporter: Reporter) -> list[Ended]:
    """Time pruning runs, each in a run of its own: the one handed over, then new ones."""
    config = settled(config, reporter.say)
    meters = {name: Meter(counters(name) if config.energy else ()) for name in config.device}
    runs = [_open(run_id, config) for run_id in _chosen(config)]
    if "cpu" in config.device:
        keep_large_buffers()  # as training does: one allocator, whatever this process did before
    return [_benchmark(load_subject(run, config), config, meters, reporter) for run in runs]


def settled(
    config: BenchmarkConfig, say: Callable[[str], None] = lambda text: None
) -> BenchmarkConfig:
    """With the devices, threads and engines that are there, eager PyTorch first.

    `say` gets a line for each engine that times nothing here, or less than one may think.

    Raises:
        InputError: a device or a number of threads that this machine has not.
    """
    has_cuda, available, used = torch.cuda.is_available(), cores(), [EAGER]
    for name in config.device:
        check_device(name, "cpu")
    for number in config.threads:
        if number > available:
            raise InputError(
                f"threads={number} is not valid: this process may use {available} cores"
            )
    device = config.device or (("cpu", "cuda") if has_cuda else ("cpu",))
    for engine in (name for name in config.engines if name != EAGER):
        if "cpu" not in device:
            say(f"engine {engine} is skipped: engines run on a CPU only")
        elif (package := engines.missing(engine)) is not None:
            say(
                f"engine {engine} is skipped: the package {package} is not installed "
                "(pip install 'pruneflow[engines]')"
            )
        else:
            used.append(engine)
    if len(used) > 1 and config.forms and not {*config.forms} & {*engines.ENGINE_FORMS}:
        say(f"engines run {' and '.join(engines.ENGINE_FORMS)} alone: here that is dense")
    threads = (config.threads or (available,)) if "cpu" in device else (1,)
    return config.resolved(device=device, threads=threads, engines=tuple(used))


def _chosen(config: BenchmarkConfig) -> list[str]:
    """Ids of the runs to time: those named, of the study, else the newest."""
    if config.run:
        return list(dict.fromkeys(config.run))
    if config.study is not None:
        return finished.pruning_runs_of(config.study)
    newest = finished.newest_pruning_run(config.model)
    if newest is not None:
        return [newest]
    model = config.model or "alexnet"
    models.check(model)
    which = "" if config.model is None else f" of {config.model}"
    raise InputError(
        f"there is no finished pruning run{which} to time in the current experiment: make one "
        f"with pruneflow prune_iterative --model {model}, or pass run=<id> or study=<name>"
    )


def _open(run_id: str, config: BenchmarkConfig) -> PruningRun:
    """A run that is to be timed, once its levels, checkpoints and inputs are seen to be there."""
    run = finished.open_pruning_run(run_id)
    for level in config.levels:
        if level not in run.levels:
            raise InputError(
                f"levels={level} is not valid: run {run_id} has the levels 0 to {max(run.levels)}"
            )
    for level in config.levels or run.levels:
        finished.check_checkpoint(run.id, level)
    _size(run, finished.load_structure(run.id), config)
    return run


def _size(
    run: PruningRun, structure: Mapping[str, Any], config: BenchmarkConfig
) -> tuple[str, int]:
    """The parameter that gives the size of inputs, and its value: the given one, else the run's.

    Raises:
        InputError: a size of the other kind of input, or longer than the model reads.
    """
    trained_on = structure.get("input")
    if trained_on is None:  # of a checkpoint that does not say it itself
        image_size = run.config.get("image_size")
        trained_on = {"image_size": image_size} if image_size else {"sequence_length": 128}
    ((name, size),) = trained_on.items()
    (other,) = _UNITS.keys() - {name}
    if getattr(config, other) is not None:
        raise InputError(
            f"{other}={getattr(config, other)} has no effect on run {run.id}, whose model reads "
            f"{_UNITS[name][0]}: pass {name}, or nothing"
        )
    given: int | None = getattr(config, name)
    stated = structure.get("config", {}).get("max_position_embeddings")
    longest = structure.get("positions", stated)
    if given is not None and longest is not None and given > longest:
        raise InputError(
            f"{name}={given} is not valid: the model of run {run.id} reads at most {longest} tokens"
        )
    return name, int(size) if given is None else given


def load_subject(run: PruningRun, config: BenchmarkConfig) -> Subject:
    """Load what is timed of a run, as far as all its levels share it."""
    levels = config.levels or tuple(sorted(run.levels))
    checkpoint = finished.load_checkpoint(run.id, 0)
    dense = checkpoints.restore(checkpoint)
    name, size = _size(run, checkpoint.structure, config)
    if name == "image_size":
        models.check_image_size(dense, str(run.config["model"]), size)

    pair = models.random_inputs(checkpoint.structure, 2, size=size, device="cpu")

    def probe(model: nn.Module) -> torch.Tensor:
        """Logits of two samples by any form of the model, in any float type."""
        inputs = pair
        if isinstance(inputs, torch.Tensor):
            inputs = inputs.to(next(model.parameters()).dtype)
        return models.logits(model, inputs)

    groups = []
    is_compact, wanted = run.config.get("form") == "compact", config.forms or FORMS
    if "compact" in wanted and not is_compact and levels != (0,):
        head = models.head_of(dense, pair)
        groups = tracing.find_groups(dense, probe, outputs=[head]).groups
    one = models.random_inputs(checkpoint.structure, 1, size=size, device="cpu")
    return Subject(run, levels, (name, size), checkpoint, dense, cost.positions(dense, one), groups)


def _benchmark(
    subject: Subject, config: BenchmarkConfig, meters: Mapping[str, Meter], reporter: Reporter
) -> Ended:
    """Time the levels of one run, in a run."""
    settings = [(d, n) for d in config.device for n in (config.threads if d == "cpu" else (1,))]
    pruning = subject.run
    name = f"latency-{pruning.name}"
    fingerprint = benchmark_fingerprint(config, pruning.fingerprint)
    tags = {"pruneflow.pruning_run": pruning.id, "pruneflow.fingerprint": fingerprint}
    if pruning.study is not None:
        tags["pruneflow.study"] = pruning.study
    if config.energy:
        names = [name for meter in meters.values() for name in meter.names.split("; ")]
        tags[ENERGY] = "; ".join(dict.fromkeys(names))
    config = config.resolved(levels=subject.levels, **dict([subject.size]))
    notes: dict[str, None] = {}  # in order, each once
    with open_run("benchmark_latency", config, name=name, tags=tags) as run:
        reporter.say(f"benchmark_latency {name}: run {run.id}, of pruning run {pruning.id}")
        reporter.plan(len(subject.levels) * len(settings) * len(config.batch_sizes))
        done = 0
        for level in subject.levels:
            rows: list[Latency] = []
            profile: list[LayerLatency] = []
            for device, threads in settings:
                pruned = load_level(subject, level, device)
                for batch in config.batch_sizes:
                    reporter.at(f"level {level}, batch {batch}", done)
                    point = Point(subject, level, pruned, threads, batch, config, meters[device])
                    with _as_timed(threads):
                        point.measure()
                    done += 1
                    rows += point.rows
                    profile += point.profile
                    for note in point.notes:
                        if note not in notes:
                            reporter.say(f"  {note}")
                    notes |= dict.fromkeys(point.notes)
                del pruned, point  # before the next level's models are loaded
                gc.collect()
                if device != "cpu":
                    torch.cuda.empty_cache()
            run.record_latencies(level, rows, profile, settings[0])
            speedups = {form_name(r.form, r.engine): r.speedup for r in rows if r.speedup}
            shown = ", ".join(f"{n} {ratio:.2f} x" for n, ratio in speedups.items() if n != "dense")
            reporter.say(f"  level {level}, batch {batch}: {shown or rows[-1].status}")
        _summarise(subject, run, list(notes))
        if any(row.status == CONTENDED for row in run.latencies):  # not what a sweep takes for done
            run.set_tags({"pruneflow.fingerprint": f"{fingerprint}-contended"})
    reporter.console.print(latencies_table(run.latencies))
    return run.ended


@contextmanager
def _as_timed(threads: int) -> Iterator[None]:
    """With these CPU threads, and on CUDA convolutions that need not repeat to the last bit."""
    cudnn, before = torch.backends.cudnn, torch.get_num_threads()
    torch.set_num_threads(threads)
    deterministic, cudnn.deterministic = cudnn.deterministic, False
    try:
        yield
    finally:
        torch.set_num_threads(before)
        cudnn.deterministic = deterministic


def load_level(subject: Subject, level: int, device: str) -> PrunedLevel:
    """A level's models on their device."""

    def moved(model: nn.Module) -> nn.Module:
        return models.channels_last(model.to(device)).eval()

    dense = moved(subject.dense)
    saved = finished.load_checkpoint(subject.run.id, level) if level else subject.checkpoint
    return PrunedLevel(
        dense=dense,
        model=moved(checkpoints.restore(saved)) if level else dense,
        is_compact=subject.run.config.get("form") == "compact",
        groups=subject.groups,
        kept=from_text(saved.structure.get("units", {})),
        independent=subject.run.config.get("coupling") == "independent",
        device=device,
    )


def _sentence(row: Latency, dense: Latency, layers: Sequence[LayerLatency]) -> str:
    """How fast a form is beside dense at a point, what pruning could reach, its slowest layers."""
    where = f"{row.threads} thread{'s' * (row.threads > 1)}" if row.device == "cpu" else row.device
    text = f"{row.form}, batch {row.batch_size}, {where}: {row.speedup:.2f}"
    if row.speedup_low is not None:
        text += f" [{row.speedup_low:.2f}, {row.speedup_high:.2f}]"
    text += (
        f" times as fast as dense with {row.macs / dense.macs:.2f} of its MACs and "
        f"{row.weight_bytes / dense.weight_bytes:.2f} of its weight bytes"
    )
    if row.pruned_share is not None:
        text += (
            f"; the layers that were pruned took {100 * row.pruned_share:.0f} % of dense's time "
            f"(without them {1 / max(1 - row.pruned_share, 1e-3):.1f} times as fast at most), of "
            f"their MACs {row.pruned_macs_left:.2f} is left, of their time "
            f"{row.pruned_time_left:.2f}"
        )
    slowest = []
    for layer in layers[:_SLOWEST]:
        before = "" if layer.dense_ms is None else f", dense {layer.dense_ms:.2f} ms"
        slowest.append(f"{layer.layer} {100 * layer.share:.0f} % ({layer.ms:.2f} ms{before})")
    return text + (f"; most time: {', '.join(slowest)}" if slowest else "")


def _summarise(subject: Subject, run: Run, notes: list[str]) -> None:
    """The run's figures, the sentences, and the text on its page."""
    size = f"{subject.size[1]} {_UNITS[subject.size[0]][1]}"
    for name, figure in LATENCY_FIGURES.items():
        chart = figure(run.latencies, f"{subject.run.name}, {size}")
        run.log_figure(f"figures/{name}.png", charts.draw(chart))

    def point(row: Latency | LayerLatency) -> tuple[object, ...]:
        return row.level, row.device, row.threads, row.batch_size

    eager = [row for row in run.latencies if row.engine == EAGER and row.status == OK]
    dense = {point(row): row for row in eager if row.form == "dense"}
    why: list[tuple[int, str]] = []
    for row in eager:
        if row.form != "dense":
            layers = [r for r in run.profile if (point(r), r.form) == (point(row), row.form)]
            why.append((row.level, _sentence(row, dense[point(row)], layers)))
    lines = [*(f"level {level}, {text}" for level, text in why), *(f"note: {n}" for n in notes)]
    run.log_text("why.md", "".join(f"- {line}\n" for line in lines))
    last = max(subject.levels)
    left = subject.run.levels[last].params_left
    warnings = "".join(f"**{note[0].upper()}{note[1:]}**\n\n" for note in notes[:5])
    run.describe(
        f"Latency of **{subject.run.config['model']}** ({size}), levels of the pruning run "
        f"`{subject.run.name}` ({subject.run.id}).\n\n{warnings}"
        f"At level {last}, {100 * left:.3g} % of the parameters left:\n\n"
        + "\n".join(f"- {text}" for level, text in why if level == last)
    )
