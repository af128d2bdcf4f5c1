"""What every stage starts from: the data, a model and the machine, checked before a run opens."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from pruneflow.config import PruneConfig, Settings
from pruneflow.energy import Meter, counters
from pruneflow.errors import InputError, first_line
from pruneflow.pruning import cost, statistics
from pruneflow.pruning.criteria import CRITERIA, FLOW_GRADIENT, INPUT_NORM, OF_OUTPUTS, needs
from pruneflow.pruning.densities import Curve
from pruneflow.pruning.statistics import Batch, Statistics
from pruneflow.pruning.units import Units
from pruneflow.stages.progress import Reporter
from pruneflow.tracking import resume
from pruneflow.tracking.resume import Earlier
from pruneflow.tracking.run import Ended, Run
from pruneflow.workloads import batches, datasets, factories, models, other_models, training
from pruneflow.workloads.datasets import DATASETS, IMAGES, TEXTS, Data
from pruneflow.workloads.machine import Machine, cores
from pruneflow.workloads.splits import MEAN, STD, Samples, Split, Tokens, balanced
from pruneflow.workloads.training import Epoch, Recipe, Snapshot

# A training is saved between epochs this often at the most, and less often if saving takes more
# than this share of the time.
SAVE_SECONDS = 20.0
_SAVE_SHARE = 0.005
ALIVE_SECONDS = 60.0  # a run is published at least as often, so that it is seen to go on

_RECIPE = (
    "batch_size", "learning_rate", "lr_schedule", "warmup_epochs", "optimizer", "weight_decay",
    "augment", "label_smoothing", "image_size",
)  # fmt: skip
ENERGY = "pruneflow.energy"  # tag: the counters of a run's energy
DATA = ("columns", "data_dir", "image_size", "train_limit", "seed")

C = TypeVar("C", bound=Settings)
D = TypeVar("D", bound=Settings)
R = TypeVar("R")


@dataclass(frozen=True)
class Experiment(Generic[C]):
    """A configuration with what it names: data loaded, machine chosen, model known to fit."""

    config: C  # with nothing left to `auto`
    data: Data
    machine: Machine
    uses: dict[str, float]  # weight -> output positions it is applied at, for counting MACs
    head: str  # name of the layer that makes the logits
    samples: Tensor | dict[str, Tensor]  # two inputs, to see what hangs together in the model
    identity: dict[str, object]  # of the model, for checkpoints: who builds it, and from what
    tokenizer: Any = None  # of an encoder of texts
    curves: Mapping[str, Curve] = field(default_factory=dict)  # of scope=sensitivity, by mask
    nondeterministic: str | None = None  # an operation whose bits may differ from time to time
    meter: Meter = field(default_factory=Meter)  # of energy, if that was asked for

    @property
    def data_name(self) -> str:
        """The data set as people are told of it."""
        return self.data.name + (" (synthetic)" if "synthetic" in self.data.source else "")

    @property
    def structure(self) -> dict[str, object]:
        """How a checkpoint's model is rebuilt, and the size of what it was trained on."""
        labels = list(self.data.classes)
        named = {"model": self.config.model, "classes": len(labels), "labels": labels}
        return named | self.identity

    def with_config(self, config: D) -> Experiment[D]:
        """The same data, model and machine with the configuration of another stage."""
        return cast(Experiment[D], replace(self, config=config))  # type: ignore[arg-type]

    def probe(self, model: nn.Module) -> Tensor:
        """Logits of two samples by any form of the model, in any float type."""
        inputs = self.samples
        if isinstance(inputs, Tensor):
            inputs = inputs.to(next(model.parameters()).dtype)
        return models.logits(model, inputs)

    def recipe(self, epochs: int, *, level: int) -> Recipe:
        """How the model is trained at a level; data order and dropout differ between levels."""
        config, seed = self.config, 1_000 * self.config.seed + level
        given = {name: getattr(config, name) for name in _RECIPE}
        if isinstance(config, PruneConfig):
            given |= {"distill": config.distill, "temperature": config.temperature}
            given["epochs_before"] = 0 if config.rewind == "none" else config.rewind_epoch
        return Recipe(epochs=epochs, seed=seed, **given)

    def training_steps(self, epochs: int) -> int:
        """Steps of the optimizer in so many epochs."""
        return epochs * len(batches.slices(len(self.data.train), self.config.batch_size))

    def train(
        self,
        model: nn.Module,
        run: Run,
        epochs: int,
        *,
        level: int,
        after_step: Callable[[torch.optim.Optimizer], None] | None = None,
        on_progress: Callable[[int, float, float], None],
        teacher: nn.Module | None = None,
        beside: Callable[[], dict[str, Tensor]] = dict,
        on_restore: Callable[[Snapshot], None] = lambda _: None,
    ) -> Iterator[Epoch]:
        """Train a model as `training.fit` does, from where the run's last process had saved it.

        It is saved after the caller has done with an epoch, so that an interruption costs minutes;
        with it what `beside` gives, of which `on_restore` is told before the training goes on, and
        the energy so far, of which what is done a second time counts once.
        """

        def progress(epoch: int, share: float, loss: float) -> None:
            run.publish(every=ALIVE_SECONDS)
            on_progress(epoch, share, loss)

        since = run.saved_training(level)
        if since is not None:
            self.meter.go_on(since.tensors)
            on_restore(since)
        saved, pause = time.monotonic(), SAVE_SECONDS
        for epoch in training.fit(
            model,
            self.data.train,
            self.recipe(epochs, level=level),
            self.machine,
            after_step=after_step,
            on_progress=progress,
            since=since,
            teacher=teacher,
        ):
            yield epoch
            if epoch.number < epochs and time.monotonic() - saved >= pause:
                begun = time.monotonic()
                snapshot = epoch.snapshot()
                added = beside() | self.meter.state()
                snapshot = replace(snapshot, tensors=snapshot.tensors | added)
                run.save_training(level, snapshot)
                saved = time.monotonic()
                pause = max(SAVE_SECONDS, (saved - begun) / _SAVE_SHARE)

    def recalibrate(self, model: nn.Module, level: int) -> None:
        """Re-estimate BatchNorm statistics on training samples, where the configuration says so."""
        if getattr(self.config, "recalibrate_bn", False):
            recipe = self.recipe(0, level=level)
            training.recalibrate(model, self.data.train, recipe, self.machine)

    def calibrate(
        self: Experiment[PruneConfig], units: Units, wanted: Collection[str]
    ) -> Statistics:
        """What a criterion needs, of `calibration_samples` of the training set and of no others.

        They have an equal share of each class, and are the same all through a run.
        """
        config, train = self.config, self.data.train
        subset, _ = balanced(train.labels, config.calibration_samples, config.seed, shares=True)
        order = np.random.default_rng(config.seed).permutation(subset)

        def samples() -> Iterator[Batch]:
            for batch in batches.slices(len(order), config.batch_size):
                yield batches.to_model(train, order[batch], config.image_size, self.machine)

        return statistics.collect(units.model, units.prunable, samples, wanted)

    def check_statistics(self: Experiment[PruneConfig], units: Units) -> None:
        """Refuse a criterion that cannot see of this model what it needs."""
        name, model = self.config.criterion, units.model
        needed = set(needs(CRITERIA[name]))
        if needed & {INPUT_NORM, *OF_OUTPUTS}:
            seen = statistics.input_axes(model, self.probe)
            for weight in units.prunable:
                if weight in self.uses and weight not in seen:
                    raise InputError(
                        f"criterion={name} cannot see what is multiplied by {weight}: pass another "
                        f"criterion, or exclude={weight}"
                    )
        if FLOW_GRADIENT in needed:
            try:
                statistics.collect_flow(model, units.prunable, self.samples)
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # whatever a model's own code has to say to such an input
                raise InputError(
                    f"criterion={name} cannot be computed of model={self.config.model} "
                    f"({first_line(error)}): pass another criterion"
                ) from None

    def accuracy(self, model: nn.Module, split: Samples) -> float:
        """Accuracy of a model on one split; of the training set, on `train_eval_samples` of it.

        They have an equal share of each class, and are the same all through a run.
        """
        c, subset = self.config, None
        if split is self.data.train and c.train_eval_samples is not None:
            subset, _ = balanced(split.labels, c.train_eval_samples, c.seed, shares=True)
        return training.accuracy(
            model,
            split,
            self.machine,
            image_size=c.image_size,
            batch_size=c.batch_size,
            subset=subset,
        )

    def log_counters(self, run: Run) -> None:
        """Log what counts a run's energy, if that was asked for."""
        if self.meter.names:
            run.set_tags({ENERGY: self.meter.names})

    def log_total_energy(self, run: Run, joules: Sequence[float | None], step: int) -> None:
        """Log the energy of a run: the sum of that of its parts, if it is known of them all."""
        known = [value for value in joules if value is not None]
        if known and len(known) == len(joules):
            run.log_metrics({"energy/total_joules": sum(known)}, step=step, part="energy")

    def log_workload(self, run: Run) -> None:
        """Log the data set as an input of a run."""
        sizes = {name: len(getattr(self.data, name)) for name in ("train", "val", "test")}
        run.log_data(self.data_name, self.data.digest, self.data.source, sizes)
        run.set_tags({"pruneflow.data": self.data.summary})
        if self.nondeterministic is not None:
            run.set_tags({"pruneflow.nondeterministic": self.nondeterministic})


def build(
    config: Settings, classes: int, machine: Machine, *, load: bool, tokenizer: Any = None
) -> nn.Module:
    """The configuration's model on the machine, its new parameters drawn by the seed.

    Without `load`, all its parameters are new: it is about to get those of a base run.
    """
    torch.manual_seed(config.seed)
    name, weights = config.model, config.weights
    if tokenizer is None or factories.is_factory(name):
        words = None if tokenizer is None else len(tokenizer)
        model = models.build(name, classes, weights=weights, load=load, vocabulary=words)
        return machine.move(model)
    from pruneflow.workloads import encoders

    model = encoders.build(name, classes, weights=weights, tokenizer=tokenizer, load=load)
    return machine.move(model)


def prepare(config: C, *, load: bool) -> tuple[Experiment[C], nn.Module]:
    """Load what a configuration names, see that it fits together, and build its model.

    Without `load` the model gets new weights, and not those of the configuration.
    """
    machine = Machine.choose(config.device, config.threads, cores(), config.precision)
    meter = Meter(counters(machine.device) if config.energy else ())
    config = config.resolved(device=machine.device, threads=machine.threads)
    models.check(config.model)
    if config.dataset in DATASETS:
        _check_kind(config, config.dataset in TEXTS)
    data = datasets.load(config.dataset, **{name: getattr(config, name) for name in DATA})
    texts = data.holds_texts
    _check_kind(config, texts)
    if texts:
        config = config.without_images()
    experiment, model = (_with_texts if texts else _with_images)(config, data, machine, load=load)
    nondeterministic = machine.make_deterministic(model, experiment.probe)
    return replace(experiment, nondeterministic=nondeterministic, meter=meter), model


def _check_kind(config: Settings, texts: bool) -> None:
    """Refuse data of a kind that the model does not read."""
    if texts not in models.reads_texts(config.model):
        kind, fitting = ("images", IMAGES) if texts else ("texts", TEXTS)
        raise InputError(
            f"model={config.model} reads {kind}, dataset={config.dataset} is none of them: pass "
            f"dataset={' or '.join(fitting)}"
        )


def _with_images(
    config: C, data: Data, machine: Machine, *, load: bool
) -> tuple[Experiment[C], nn.Module]:
    model = build(config, len(data.classes), machine, load=load)
    if config.batch_size == 1 and any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
        raise InputError(f"batch_size=1 does not work with {config.model}: BatchNorm needs 2")
    assert config.image_size is not None
    sample = models.check_image_size(model, config.model, config.image_size)
    draw = torch.Generator().manual_seed(0)
    pair = torch.randn(2, *sample.shape[1:], generator=draw, dtype=torch.float64)
    pair = pair.to(machine.device)
    images = pair.float()
    models.check_runs(config.model, model, [images], len(data.classes), "images")
    uses, head = cost.positions(model, sample), models.head_of(model, images)
    identity = models.describe(config.model, model) | {"input": {"image_size": config.image_size}}
    _check_rebuilds(config, identity, len(data.classes), model, images)
    mean, deviation = other_models.normalisation(config.model, model)
    if (mean, deviation) != (MEAN, STD):
        splits = {part: getattr(data, part) for part in ("train", "val", "test")}
        expected = {k: replace(s, mean=mean, deviation=deviation) for k, s in splits.items()}
        data = replace(data, **expected)
        identity |= {"mean": list(mean), "std": list(deviation)}
    return Experiment(config, data, machine, uses, head, pair, identity), model


def _with_texts(
    config: C, data: Data, machine: Machine, *, load: bool
) -> tuple[Experiment[C], nn.Module]:
    """The tokenizer comes first: the configuration's own weights decide on it."""
    from pruneflow.workloads import encoders

    name, classes = config.model, len(data.classes)
    tokenizer = encoders.tokenizer_for(name, config.weights, cast(Split, data.train))
    model = build(config, classes, machine, load=load, tokenizer=tokenizer)
    longest, stated = encoders.longest(model, tokenizer), getattr(model, "config", None)

    tokens: dict[str, Tokens] = {}
    for part in ("train", "val", "test"):
        texts = getattr(data, part)
        tokens[part] = encoders.encode(tokenizer, texts, longest=longest, config=stated)
        encoders.check_tokens(name, model, part, texts, tokens[part])

    def batch(part: str, *index: int) -> dict[str, Tensor]:
        return batches.tokens_to_model(tokens[part], np.array(index), machine)

    lengths = {part: split.lengths for part, split in tokens.items()}
    by_length = lengths["train"].argsort(kind="stable")
    median, longer = by_length[len(by_length) // 2], by_length[-1]
    other = max("val", "test", key=lambda part: lengths[part].max())
    pair = batch("train", median, longer)
    longest_other = batch(other, int(lengths[other].argmax()))
    models.check_runs(name, model, [pair, longest_other], classes, "texts")
    uses, head = cost.positions(model, batch("train", median)), models.head_of(model, pair)
    model.train()
    size = {"sequence_length": int(lengths["train"][median])}
    if factories.is_factory(name):
        identity = models.describe(name, model) | encoders.describe_tokenizer(tokenizer)
    else:
        identity = encoders.describe(model, tokenizer)
    identity |= {"input": size}
    _check_rebuilds(config, identity, classes, model, pair)
    data = replace(data, train=tokens["train"], val=tokens["val"], test=tokens["test"])
    return Experiment(config, data, machine, uses, head, pair, identity, tokenizer), model


def _check_rebuilds(
    config: Settings, identity: Mapping[str, object], classes: int, model: nn.Module, inputs: Any
) -> None:
    """See that checkpoints of a model that is not listed will lead to it again."""
    if identity["builder"] in other_models.BUILDERS:
        structure = {"model": config.model, "classes": classes, **identity}
        other_models.check_rebuilds(structure, model, inputs)


def report_finished(run: Earlier, reporter: Reporter, experiment_id: str | None) -> Ended:
    """Tell of a run that has done already what was asked for, and of nothing else."""
    reporter.say(f"run {run.id} has done this already; to run it again, pass resume=never")
    return resume.report(run, experiment_id)


def timed(work: Callable[[], R]) -> tuple[R, float]:
    """What `work` returns, and the seconds it took."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start
