"""A point of a benchmark: one level, device and batch size, every form timed side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pruneflow.config import BenchmarkConfig
from pruneflow.energy import Meter
from pruneflow.errors import first_line
from pruneflow.inference import EAGER, latency
from pruneflow.inference.engines import ENGINE_FORMS, ENGINES, NoEngineError
from pruneflow.inference.forms import FORMS, Inputs, NoFormError, PrunedLevel, difference
from pruneflow.inference.latency import LEAST_ROUNDS, Rounds
from pruneflow.inference.profile import layer_times, reach
from pruneflow.pruning.groups import Group
from pruneflow.tracking import environment, latencies
from pruneflow.tracking.checkpoints import Checkpoint
from pruneflow.tracking.finished import PruningRun
from pruneflow.tracking.latencies import OK, Latency, LayerLatency
from pruneflow.workloads import models

_PROFILED = 10  # layers of a form that `profile.csv` has, the slowest
_ENERGY_SECONDS = (
    2.0  # that a form runs for its energy: of this NVML misses a twentieth at the most
)
_DIFFERENT = 1e-3  # a difference of logits that rounding does not explain
_USABLE_MEMORY = 0.9  # share of the free memory that a batch may take


@dataclass(frozen=True)
class Subject:
    """A pruning run that is timed: what its levels share."""

    run: PruningRun
    levels: tuple[int, ...]
    size: tuple[str, int]  # `image_size` in pixels or `sequence_length` in tokens, and its value
    checkpoint: Checkpoint  # of level 0
    dense: nn.Module
    uses: dict[str, float]  # weight name -> output positions, for counting MACs
    groups: list[Group]  # of channels; empty where no compact form is to be made


class Candidate(NamedTuple):
    """A form with what runs it, at one batch size."""

    form: str
    engine: str
    model: nn.Module  # an engine has its own copy of it
    call: Callable[[], Tensor]  # runs one batch and returns the logits
    reference: Callable[[], Tensor] | None  # what the logits have to equal, unless they define it
    peak_memory_bytes: int | None  # None of an engine, which has its own allocator


@dataclass
class Point:
    """One level, device, number of threads and batch size; `measure` fills the three lists."""

    subject: Subject
    level: int
    pruned: PrunedLevel
    threads: int
    batch: int
    config: BenchmarkConfig
    meter: Meter = field(default_factory=Meter)  # of energy, if that was asked for
    rows: list[Latency] = field(default_factory=list)
    profile: list[LayerLatency] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.device = self.pruned.device
        self.coordinates: dict[str, Any] = {"level": self.level, "device": self.device}
        self.coordinates |= {"threads": self.threads, "batch_size": self.batch}

    def measure(self) -> None:
        """Time every form; the level's models are left as they were."""
        asked = self.config.forms or tuple(FORMS)
        forms = ["dense", *(f for f in FORMS if f in asked and f != "dense" and self.level)]
        with models.looking(self.pruned.dense, self.pruned.model):
            try:
                self._check_memory()
                self.inputs = self._inputs(self.batch)
                self._time([candidate for form in forms for candidate in self._candidates(form)])
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                self.notes.append(
                    f"batch_sizes={self.batch} does not fit in the memory of {self.device}: "
                    "recorded as out of memory"
                )
                self.rows, self.profile = list(self._without_times(forms)), []

    def _inputs(self, batch: int) -> Inputs:
        structure, size = self.subject.checkpoint.structure, self.subject.size[1]
        return models.random_inputs(structure, batch, size=size, device=self.device)

    def _run(self, model: nn.Module) -> Tensor:
        return ENGINES[EAGER](model, self.inputs, self.threads)()

    def _check_memory(self) -> None:
        """Raise MemoryError for a batch that will not fit: trying it would end the process.

        What it needs is extrapolated from what one and two samples do.
        """
        needs = []
        for batch in (1, 2):
            inputs = self._inputs(batch)
            call = ENGINES[EAGER](self.pruned.dense, inputs, self.threads)
            needs.append(latency.working_bytes(call, self.device) + _bytes(inputs))
        needed = needs[0] + max(0, needs[1] - needs[0]) * (self.batch - 1)
        if needed > _USABLE_MEMORY * latency.free_bytes(self.device):
            raise MemoryError

    def _without_times(self, forms: list[str]) -> Iterator[Latency]:
        """Rows of the forms that can be made without running the batch; sparse is chosen by it."""
        for form in forms:
            try:
                if form != "sparse":
                    yield self._row(form, EAGER, FORMS[form](self.pruned, self._run, ""))
            except NoFormError:
                continue

    def _candidates(self, form: str) -> Iterator[Candidate]:
        """A form in every engine; nothing, with a note, where it cannot be made or run."""
        shape = (self.inputs if isinstance(self.inputs, Tensor) else self.inputs["input_ids"]).shape
        try:
            model = FORMS[form](self.pruned, self._run, "x".join(map(str, shape)))
        except NoFormError as reason:
            if form in self.config.forms:
                self.notes.append(f"level {self.level} has no {form} form: {reason}")
            return
        eager = ENGINES[EAGER](model, self.inputs, self.threads)
        eager()
        peak = latency.weight_bytes(model) + _bytes(self.inputs)
        peak += latency.working_bytes(eager, self.device)
        defines = model in (self.pruned.dense, self.pruned.model)
        defines |= form == "compact" and self.pruned.independent
        reference = None if defines else lambda: self._run(self.pruned.model)
        yield Candidate(form, EAGER, model, eager, reference, peak)
        if form not in ENGINE_FORMS or self.device != "cpu":
            return
        for engine in (name for name in self.config.engines if name != EAGER):
            try:
                call = ENGINES[engine](model, self.inputs, self.threads)
                yield Candidate(form, engine, model, call, eager, None)
            except NoEngineError as reason:
                self.notes.append(f"level {self.level}, {form}: {reason}")

    def _time(self, candidates: list[Candidate]) -> None:
        """Time candidates side by side, and look where the time of each eager one went."""
        calls = {form_name(c.form, c.engine): c.call for c in candidates}
        timer, config = latency.timer(self.device), self.config
        rounds = latency.interleaved(calls, timer, config.rounds, config.seconds)
        n = len(rounds.seconds["dense"])
        if n < LEAST_ROUNDS:
            self.notes.append(
                f"{self._where()}: contended: other work took {100 * (rounds.others or 0):.0f} % "
                f"of the processors, and {n} of {rounds.tried} rounds were without it: no times, "
                "no speed-up; end that work, or give this process processors of its own "
                "(taskset -c 0,1 ...), and measure again"
            )
        elif n < latency.LEAST_FOR_INTERVAL:
            self.notes.append(
                f"{self._where()}: {n} rounds count: an interval of the speed-up needs "
                f"{latency.LEAST_FOR_INTERVAL}"
            )
        if not rounds.watched:
            self.notes.append(
                "this system does not say what other processes take of the processors: whether "
                "times were disturbed is not known"
            )
        for name, candidate in zip(calls, candidates, strict=True):
            row = self._measured(name, candidate, rounds)
            if row["status"] == OK and candidate.engine == EAGER:
                dense_ms = 1e3 * float(np.median(rounds.seconds["dense"]))
                row |= self._explained(candidate.form, candidate.model, dense_ms)
            self.rows.append(self._row(candidate.form, candidate.engine, candidate.model, **row))

    def _measured(self, name: str, candidate: Candidate, rounds: Rounds) -> dict[str, Any]:
        """A candidate's times and speed-up, unless they would be untrue or of something else."""
        seconds, status, distance = rounds.seconds[name], OK, None
        if len(seconds) < LEAST_ROUNDS:
            status = latencies.CONTENDED
        if candidate.reference is not None:
            distance = difference(candidate.call(), candidate.reference())
            if not distance <= _DIFFERENT:  # or NaN
                status = latencies.DIFFERENT
                self.notes.append(
                    f"{self._where(name)}: its logits differ by {distance:.1e} of the largest, "
                    "more than rounding explains: it computes something else, and has no speed-up"
                )
        row: dict[str, Any] = {"n": len(seconds), "status": status, "difference": distance}
        row["peak_memory_bytes"] = candidate.peak_memory_bytes
        if status != OK:
            return row
        ratio, low, high = latency.speedup(rounds.seconds["dense"], seconds)
        row |= {"speedup": ratio, "speedup_low": low, "speedup_high": high}
        row |= latency.spread(seconds)
        row["energy_joules_per_sample"] = self._joules_per_sample(candidate)
        return row | {"samples_per_second": 1e3 * self.batch / row["p50_ms"]}

    def _joules_per_sample(self, candidate: Candidate) -> float | None:
        """Energy of a form that runs alone, for among others it cannot be told apart."""
        if not self.meter.names:
            return None
        timer, seconds = latency.timer(self.device), min(_ENERGY_SECONDS, self.config.seconds)
        joules = self.meter.joules_per_call(lambda: timer(candidate.call), seconds)
        return None if joules is None else joules / self.batch

    def _explained(self, form: str, model: nn.Module, dense_ms: float) -> dict[str, float]:
        """What pruning could reach of the dense form's time, and did; keeps the slowest layers."""
        layers = layer_times(model, self._run, self.device)
        if form == "dense":
            self.dense_layers = layers
        for layer in sorted(layers, key=lambda name: -layers[name])[:_PROFILED]:
            row = self.coordinates | {"form": form, "layer": layer, "ms": layers[layer]}
            row["kind"] = type(model.get_submodule(layer)).__name__
            row["share"] = layers[layer] / sum(layers.values())
            self.profile.append(LayerLatency(**row, dense_ms=self.dense_layers.get(layer)))
        if form == "dense":
            return {}
        macs, dense_macs = self._macs(model), self._macs(self.pruned.dense)
        pruned = {
            name.rpartition(".")[0]
            for name, count in macs.items()
            if count < dense_macs[name] or bool((self.pruned.model.get_parameter(name) == 0).any())
        }
        return reach(
            layers, self.dense_layers, dense_ms, macs=macs, dense_macs=dense_macs, pruned=pruned
        )

    def _row(self, form: str, engine: str, model: nn.Module, **measured: Any) -> Latency:
        """A form's row: what can be counted of it, and what was measured."""
        counted = {
            "machine": environment.machine(self.device),
            "form": form,
            "engine": engine,
            "status": latencies.OUT_OF_MEMORY,
            "n": 0,
            "params": sum(latency.stored(p)[0].numel() for p in model.parameters()),
            "macs": round(sum(self._macs(model).values())),
            "params_left": self.subject.run.levels[self.level].params_left,
            "weight_bytes": latency.weight_bytes(model),
        }
        unknown: dict[str, Any] = dict.fromkeys(column.name for column in fields(Latency))
        return Latency(**unknown | self.coordinates | counted | measured)

    def _macs(self, model: nn.Module) -> dict[str, float]:
        """Weight -> multiply-accumulates of one sample, as a form does them."""
        return {
            name: positions * latency.stored(model.get_parameter(name))[0].numel()
            for name, positions in self.subject.uses.items()
        }

    def _where(self, name: str = "") -> str:
        where = f"batch {self.batch} on {self.device}, threads {self.threads}"
        return ", ".join(filter(None, (f"level {self.level}", name, where)))


def form_name(form: str, engine: str) -> str:
    """What a form in an engine is called."""
    return form if engine == EAGER else f"{form} {engine}"


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = first_line(error).lower()
    return "can't allocate memory" in text or "not enough memory" in text


def _bytes(inputs: Inputs) -> int:
    tensors = [inputs] if isinstance(inputs, Tensor) else inputs.values()
    return sum(tensor.nbytes for tensor in tensors)
