"""A point of a benchmark: one level, device and batch size, every form timed side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pruneflow.config import BenchmarkConfig
from pruneflow.errors import first_line
from pruneflow.inference import EAGER, latency, sparse
from pruneflow.inference.engines import ENGINE_FORMS, ENGINES, NoEngineError
from pruneflow.inference.forms import FORMS, Inputs, NoFormError, PrunedLevel, difference
from pruneflow.inference.latency import Effort, Rounds, Trace
from pruneflow.inference.profile import LayerTime, layer_times, reach
from pruneflow.pruning.groups import Group
from pruneflow.tracking import environment
from pruneflow.tracking.checkpoints import Checkpoint
from pruneflow.tracking.finished import PruningRun
from pruneflow.tracking.latencies import (
    CONTENDED,
    DIFFERENT,
    OK,
    OUT_OF_MEMORY,
    Latency,
    LayerLatency,
)
from pruneflow.workloads import models

_PROFILED = 10  # layers of a form that `profile.csv` has, the slowest
_WIDE = 1.5  # upper / lower end of a speed-up's interval from which it says little
_DIFFERENT = 1e-3  # a difference of logits that rounding does not explain
_MEMORY_LEFT = 0.9  # share of the free memory that a batch may take


@dataclass(frozen=True)
class Setting:
    """Where a form is timed: a device, and with how many CPU threads."""

    device: str
    threads: int


@dataclass(frozen=True)
class Subject:
    """A pruning run that is timed.

    Attributes:
        run: it.
        levels: those of its levels that are timed.
        size: of the inputs: side of an image in pixels, or tokens of a text.
        checkpoint: of level 0.
        dense: the unpruned model.
        uses: weight name -> output positions, for counting MACs.
        groups: of channels; those of a run whose levels are compact already are not needed.
    """

    run: PruningRun
    levels: tuple[int, ...]
    size: int
    checkpoint: Checkpoint
    dense: nn.Module
    uses: dict[str, float]
    groups: list[Group]

    def inputs(self, batch: int, device: str) -> Inputs:
        """A batch of noise."""
        return models.random_inputs(self.checkpoint.structure, batch, size=self.size, device=device)

    def probe(self, model: nn.Module) -> Tensor:
        """Logits of two samples by any form of the model, in any float type."""
        kind = next(model.parameters())
        inputs = self.inputs(2, kind.device.type)
        return models.logits(model, inputs.to(kind.dtype) if isinstance(inputs, Tensor) else inputs)


@dataclass(frozen=True)
class Candidate:
    """A form with what runs it, at one batch size.

    Attributes:
        form, engine: names.
        model: the form; an engine has its own copy of it.
        call: runs one batch and returns the logits.
        trace: of the eager form's call.
    """

    form: str
    engine: str
    model: nn.Module
    call: Callable[[], Tensor]
    trace: Trace

    @property
    def key(self) -> str:
        """What tells it from the others of its point."""
        return self.form if self.engine == EAGER else f"{self.form} {self.engine}"


class Point:
    """One level, setting and batch size: every form of it, timed side by side."""

    def __init__(
        self,
        subject: Subject,
        level: int,
        pruned: PrunedLevel,
        setting: Setting,
        batch: int,
        config: BenchmarkConfig,
    ) -> None:
        self.subject, self.level, self.pruned = subject, level, pruned
        self.setting, self.batch, self.config = setting, batch, config
        self.rows: list[Latency] = []
        self.profile: list[LayerLatency] = []
        self.notes: list[str] = []

    def measure(self) -> None:
        """Fill `rows`, `profile` and `notes`; the level's models are left as they were."""
        with models.looking(self.pruned.dense, self.pruned.model):
            self._measure()

    def _measure(self) -> None:
        asked = self.config.forms or tuple(FORMS)
        forms = ("dense", *(f for f in FORMS if f in asked and f != "dense" and self.level))
        candidates: dict[str, Candidate] = {}
        try:
            self._fit()
            self.inputs = self.subject.inputs(self.batch, self.setting.device)
            for form in forms:
                try:
                    for candidate in self._candidates(form):
                        candidates[candidate.key] = candidate
                except NoFormError as reason:
                    if form in self.config.forms:
                        self.notes.append(f"level {self.level} has no {form} form: {reason}")
            self._time(candidates)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            self.notes.append(
                f"batch_sizes={self.batch} does not fit in the memory of {self.setting.device}: "
                "recorded as out of memory"
            )
            self.profile = []
            self.rows = list(self._without_times(forms))

    def _without_times(self, forms: Iterable[str]) -> Iterator[Latency]:
        """Rows of the forms that can be made without running the batch; sparse is chosen by it."""
        for form in forms:
            try:
                if form != "sparse":
                    yield self._row(form, EAGER, FORMS[form](self.pruned, self._run, ""))
            except NoFormError:
                continue

    def _time(self, candidates: Mapping[str, Candidate]) -> None:
        """Time the candidates side by side, and look into each."""
        effort = Effort(self.config.rounds, self.config.seconds)
        timer = latency.clock(self.setting.device)
        calls = {key: candidate.call for key, candidate in candidates.items()}
        rounds = latency.interleaved(calls, timer, effort)
        self._doubt(rounds)
        timed = {}
        for key, candidate in candidates.items():
            difference = self._difference(candidate, candidates)
            status = OK if rounds.are_enough else CONTENDED
            if difference is not None and not difference <= _DIFFERENT:  # or NaN
                status = DIFFERENT
                where = self._where(candidate.form, candidate.engine)
                self.notes.append(
                    f"{where}: its logits differ by {difference:.1e} of the largest, more than "
                    "rounding explains: it computes something else, and has no speed-up"
                )
            row = replace(
                self._row(candidate.form, candidate.engine, candidate.model),
                n=len(rounds.seconds[key]),
                peak_memory_bytes=self._peak(candidate),
                status=status,
                difference=difference,
            )
            if status == OK:
                row = self._with_times(row, rounds.seconds[key], rounds.seconds["dense"])
                timed[candidate.form, candidate.engine] = len(self.rows)
            self.rows.append(row)
        self._explain(candidates, timed)

    def _with_times(
        self, row: Latency, seconds: NDArray[np.float64], dense: NDArray[np.float64]
    ) -> Latency:
        """The row with its times, and how they compare with the dense ones of the same rounds."""
        spread = latency.spread(seconds)
        ratio, low, high = latency.speedup(dense, seconds)
        if low and high and high > _WIDE * low:
            self.notes.append(
                f"{self._where(row.form, row.engine)}: the times spread so far that the speed-up "
                f"is only known to lie between {low:.2f} and {high:.2f}: measure for longer "
                "(seconds, rounds)"
            )
        return replace(
            row,
            **asdict(spread),
            samples_per_second=1e3 * self.batch / spread.p50_ms,
            speedup=ratio,
            speedup_low=low,
            speedup_high=high,
        )

    def _explain(
        self, candidates: Mapping[str, Candidate], timed: Mapping[tuple[str, str], int]
    ) -> None:
        """Look where the time of eager forms went that were timed; their rows' places are given."""
        layers: dict[str, list[LayerTime]] = {}
        for candidate in candidates.values():
            place = timed.get((candidate.form, candidate.engine))
            if candidate.engine != EAGER or place is None:
                continue
            found = layer_times(candidate.model, self._run, self.setting.device)
            layers[candidate.form] = found
            if candidate.form != "dense":
                self.rows[place] = self._reached(
                    self.rows[place], candidate, found, layers["dense"]
                )
            self._keep(found, layers["dense"], candidate.form)

    def _candidates(self, form: str) -> Iterator[Candidate]:
        """A form in every engine.

        Raises:
            NoFormError: the level has none.
        """
        inputs = self.inputs
        shape = "x".join(
            map(str, inputs.shape if isinstance(inputs, Tensor) else inputs["input_ids"].shape)
        )
        model = FORMS[form](self.pruned, self._run, shape)
        call = ENGINES[EAGER](model, inputs, self.setting.threads)
        call()
        trace = latency.trace(call, self.setting.device)
        yield Candidate(form, EAGER, model, call, trace)
        for engine in self.config.engines:
            if engine == EAGER or form not in ENGINE_FORMS or self.setting.device != "cpu":
                continue
            try:
                compiled = ENGINES[engine](model, inputs, self.setting.threads)
            except NoEngineError as reason:
                self.notes.append(f"level {self.level}, {form}: {reason}")
                continue
            yield Candidate(form, engine, model, compiled, trace)

    def _fit(self) -> None:
        """See that a batch fits in memory, before it is tried: a process that runs out is killed.

        What a batch needs is drawn out from what one and two samples do.

        Raises:
            MemoryError: it does not.
        """
        device = self.setting.device
        needs = []
        for batch in (1, 2):
            inputs = self.subject.inputs(batch, device)
            call = ENGINES[EAGER](self.pruned.dense, inputs, self.setting.threads)
            needs.append(latency.trace(call, device).working_bytes + _bytes(inputs))
        slope = max(0, needs[1] - needs[0])
        if needs[0] + slope * (self.batch - 1) > _MEMORY_LEFT * latency.free_bytes(device):
            raise MemoryError

    def _run(self, model: nn.Module) -> Tensor:
        """Logits of a model on the point's batch."""
        return ENGINES[EAGER](model, self.inputs, self.setting.threads)()

    def _row(self, form: str, engine: str, model: nn.Module) -> Latency:
        """What can be counted of a form."""
        macs = round(sum(_macs(model, self.subject.uses).values()))
        return Latency(
            machine=environment.machine(self.setting.device),
            level=self.level,
            form=form,
            device=self.setting.device,
            threads=self.setting.threads,
            batch_size=self.batch,
            n=0,
            p50_ms=None,
            p95_ms=None,
            mean_ms=None,
            sd_ms=None,
            samples_per_second=None,
            peak_memory_bytes=None,
            params=_params(model),
            macs=macs,
            engine=engine,
            status=OUT_OF_MEMORY,
            params_left=self.subject.run.params_left[self.level],
            weight_bytes=latency.weight_bytes(model),
            speedup=None,
            speedup_low=None,
            speedup_high=None,
            difference=None,
            pruned_share=None,
            pruned_time_left=None,
            pruned_macs_left=None,
        )

    def _peak(self, candidate: Candidate) -> int | None:
        if candidate.engine != EAGER:
            return None  # it keeps its own books
        weights = latency.weight_bytes(candidate.model)
        return weights + _bytes(self.inputs) + candidate.trace.working_bytes

    def _difference(
        self, candidate: Candidate, candidates: Mapping[str, Candidate]
    ) -> float | None:
        """How far a candidate's logits are from those they should equal; None if from none."""
        if candidate.engine != EAGER:
            return difference(candidate.call(), candidates[candidate.form].call())
        by_design = candidate.form == "compact" and self.pruned.independent
        if candidate.model in (self.pruned.dense, self.pruned.model) or by_design:
            return None
        return difference(candidate.call(), self._run(self.pruned.model))

    def _reached(
        self, row: Latency, candidate: Candidate, layers: list[LayerTime], dense: list[LayerTime]
    ) -> Latency:
        """The row with how much of the dense form's time pruning could reach."""
        dense_ms = next(r.p50_ms for r in self.rows if (r.form, r.engine) == ("dense", EAGER))
        macs, dense_macs = (
            _by_layer(_macs(model, self.subject.uses))
            for model in (candidate.model, self.pruned.dense)
        )
        found = reach(
            layers,
            dense,
            dense_ms or 0.0,
            macs=macs,
            dense_macs=dense_macs,
            pruned=_pruned_layers(candidate.model, self.pruned),
        )
        if found is None:
            return row
        return replace(
            row,
            pruned_share=found.share,
            pruned_time_left=found.time_left,
            pruned_macs_left=found.macs_left,
        )

    def _keep(self, layers: list[LayerTime], dense: list[LayerTime], form: str) -> None:
        """Rows of the slowest layers."""
        total = sum(layer.ms for layer in layers)
        of_dense = {layer.layer: layer.ms for layer in dense}
        for layer in sorted(layers, key=lambda one: -one.ms)[:_PROFILED]:
            self.profile.append(
                LayerLatency(
                    level=self.level,
                    form=form,
                    device=self.setting.device,
                    threads=self.setting.threads,
                    batch_size=self.batch,
                    layer=layer.layer,
                    kind=layer.kind,
                    ms=layer.ms,
                    share=layer.ms / total,
                    dense_ms=of_dense.get(layer.layer),
                )
            )

    def _doubt(self, rounds: Rounds) -> None:
        """Note what makes the point's times worth less."""
        n = len(rounds.seconds["dense"])
        if not rounds.are_enough:
            self.notes.append(
                f"{self._where()}: contended: other work took {100 * (rounds.others or 0):.0f} % "
                f"of the processors, and {n} of {rounds.tried} rounds were without it: no times, "
                "no speed-up; end that work, or give this process processors of its own "
                "(taskset -c 0,1 ...), and measure again"
            )
        elif n < latency.LEAST_FOR_INTERVAL:
            self.notes.append(
                f"{self._where()}: {n} of {rounds.tried} rounds count: an interval needs "
                f"{latency.LEAST_FOR_INTERVAL} (rounds, seconds)"
            )
        if not rounds.watched:
            self.notes.append(
                "this system does not say what other processes take of the processors: whether "
                "times were disturbed is not known"
            )

    def _where(self, form: str = "", engine: str = EAGER) -> str:
        parts = [f"level {self.level}", form if engine == EAGER else f"{form} {engine}"]
        parts += [f"batch {self.batch} on {self.setting.device}, threads {self.setting.threads}"]
        return ", ".join(filter(None, parts))


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = first_line(error).lower()
    return "can't allocate memory" in text or "not enough memory" in text


def _bytes(inputs: Inputs) -> int:
    tensors = [inputs] if isinstance(inputs, Tensor) else list(inputs.values())
    return sum(tensor.nbytes for tensor in tensors)


def _macs(model: nn.Module, uses: Mapping[str, float]) -> dict[str, float]:
    """Weight -> multiply-accumulates of one sample, as a form does them."""
    return {name: positions * _stored(model, name).numel() for name, positions in uses.items()}


def _stored(model: nn.Module, name: str) -> Tensor:
    """What a form stores of a weight."""
    layer = model.get_submodule(name.rpartition(".")[0])
    weight = sparse.stored_weight(layer) if name.endswith(".weight") else None
    return model.get_parameter(name) if weight is None else weight


def _by_layer(macs: Mapping[str, float]) -> dict[str, float]:
    layers: dict[str, float] = {}
    for name, count in macs.items():
        layer = name.rpartition(".")[0]
        layers[layer] = layers.get(layer, 0.0) + count
    return layers


def _params(model: nn.Module) -> int:
    """Stored parameters of a form, those of sparse layers included."""
    count = sum(p.numel() for p in model.parameters())
    for layer in model.modules():
        weight = sparse.stored_weight(layer)
        if weight is not None and not isinstance(layer.weight, nn.Parameter):
            bias = getattr(layer, "bias", None)
            count += weight.numel() + (bias.numel() if isinstance(bias, Tensor) else 0)
    return count


def _pruned_layers(model: nn.Module, pruned: PrunedLevel) -> dict[str, bool]:
    """Layer -> whether the level has taken any of the weights that the dense model has there."""
    touched = {}
    for name, layer in model.named_modules():
        weight = sparse.stored_weight(layer)
        if weight is None or (weight.dim() < 2 and not isinstance(layer, sparse.Csr)):
            continue
        dense = pruned.dense.get_submodule(name).weight
        assert isinstance(dense, Tensor)
        stored = pruned.model.get_submodule(name).weight
        assert isinstance(stored, Tensor)
        touched[name] = weight.numel() < dense.numel() or bool((stored == 0).any())
    return touched
