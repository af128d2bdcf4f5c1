"""What every stage starts from: the data, a model and the machine, checked before a run opens."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pruneflow.config import Settings, reads_texts
from pruneflow.errors import InputError
from pruneflow.pruning import cost
from pruneflow.stages.progress import Reporter
from pruneflow.tracking import resume
from pruneflow.tracking.resume import Earlier
from pruneflow.tracking.run import Ended, Run
from pruneflow.workloads import datasets, models, training
from pruneflow.workloads.datasets import IMAGES, TEXTS, Data
from pruneflow.workloads.texts import Texts, Tokens
from pruneflow.workloads.training import Epoch, Machine, Recipe, Samples

# A training is saved between epochs this often at the most, and less often if saving takes more
# than this share of the time.
SAVE_SECONDS = 20.0
_SAVE_SHARE = 0.005
ALIVE_SECONDS = 60.0  # a run is published at least as often, so that it is seen to go on

C = TypeVar("C", bound=Settings)
D = TypeVar("D", bound=Settings)


@dataclass(frozen=True)
class Experiment(Generic[C]):
    """A configuration with what it names: data loaded, machine settled, model known to fit.

    Attributes:
        config: with nothing left to `auto`.
        uses: weight name -> output positions it is applied at, for counting MACs.
        head: name of the layer that makes the logits.
        samples: two inputs on the machine, to see what hangs together in the model.
        identity: of the model, for its checkpoints: who builds it, and from what.
        tokenizer: of an encoder of texts.
    """

    config: C
    data: Data
    machine: Machine
    uses: dict[str, float]
    head: str
    samples: Tensor | dict[str, Tensor]
    identity: dict[str, object]
    tokenizer: Any = None

    def probe(self, model: nn.Module) -> Tensor:
        """Logits of two samples by any form of the model, in any float type."""
        inputs = self.samples
        if isinstance(inputs, Tensor):
            inputs = inputs.to(next(model.parameters()).dtype)
        return models.logits(model, inputs)

    def recalibrate(self, model: nn.Module, level: int) -> None:
        """Re-estimate BatchNorm statistics on training samples, where the configuration says so."""
        if getattr(self.config, "recalibrate_bn", False):
            recipe = self.recipe(0, level=level)
            training.recalibrate(model, self.data.train, recipe, self.machine)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.data.classes)

    @property
    def data_name(self) -> str:
        """The data set as people are told of it."""
        return self.data.name + (" (synthetic)" if "synthetic" in self.data.source else "")

    @property
    def structure(self) -> dict[str, object]:
        """How a checkpoint's model is rebuilt, and the size of what it was trained on."""
        return {"model": self.config.model, "classes": self.classes, **self.identity}

    def recipe(self, epochs: int, *, level: int) -> Recipe:
        """How the model is trained at a level; data order and dropout differ between levels."""
        c = self.config
        return Recipe(
            epochs=epochs,
            batch_size=c.batch_size,
            learning_rate=c.learning_rate,
            lr_schedule=c.lr_schedule,
            optimizer=c.optimizer,
            weight_decay=c.weight_decay,
            image_size=c.image_size,
            seed=1_000 * c.seed + level,
        )

    def train(
        self,
        model: nn.Module,
        run: Run,
        epochs: int,
        *,
        level: int,
        after_step: Callable[[torch.optim.Optimizer], None] | None = None,
        on_progress: Callable[[int, float, float], None] | None = None,
    ) -> Iterator[Epoch]:
        """Train a model as `training.fit` does, from where the run's last process had saved it.

        It is saved after the caller has done with an epoch, so that an interruption costs minutes.
        """

        def progress(epoch: int, share: float, loss: float) -> None:
            run.publish(every=ALIVE_SECONDS)
            if on_progress is not None:
                on_progress(epoch, share, loss)

        saved, pause = time.monotonic(), SAVE_SECONDS
        for epoch in training.fit(
            model,
            self.data.train,
            self.recipe(epochs, level=level),
            self.machine,
            after_step=after_step,
            on_progress=progress,
            since=run.saved_training(level),
        ):
            yield epoch
            if epoch.number < epochs and time.monotonic() - saved >= pause:
                begun = time.monotonic()
                run.save_training(level, epoch.snapshot())
                saved = time.monotonic()
                pause = max(SAVE_SECONDS, (saved - begun) / _SAVE_SHARE)

    def accuracy(self, model: nn.Module, split: Samples) -> float:
        """Accuracy of a model on one split, a fraction; of the training set on a sample of it.

        The sample has `train_eval_samples`, an equal share of each class, the same all through a
        run: it is drawn by the seed.
        """
        c, of = self.config, None
        if split is self.data.train and c.train_eval_samples is not None:
            of, _ = datasets.balanced(split.labels, c.train_eval_samples, c.seed, shares=True)
        return training.accuracy(
            model, split, self.machine, image_size=c.image_size, batch_size=c.batch_size, of=of
        )

    def with_config(self, config: D) -> Experiment[D]:
        """The same data, model and machine with the configuration of another stage."""
        same = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "config"}
        return Experiment(config=config, **same)

    def log_workload(self, run: Run) -> None:
        """Log the data set as an input of a run."""
        sizes = {name: len(getattr(self.data, name)) for name in ("train", "val", "test")}
        run.log_data(self.data_name, self.data.digest, self.data.source, sizes)
        run.set_tags({"pruneflow.data": self.data.summary})


def build(
    config: Settings, classes: int, machine: Machine, *, load: bool, tokenizer: Any = None
) -> nn.Module:
    """The configuration's model on the machine, its new parameters drawn by the seed.

    Without `load`, all its parameters are new: it is about to get those of a base run.
    """
    torch.manual_seed(config.seed)
    if tokenizer is None:
        model = models.build(config.model, classes, weights=config.weights, load=load)
    else:
        from pruneflow.workloads import encoders

        model = encoders.build(
            config.model,
            classes,
            weights=config.weights,
            vocabulary=len(tokenizer),
            padding=encoders.padding(tokenizer),
            load=load,
        )
    return training.to_machine(model, machine)


def settled(config: C) -> tuple[C, Machine]:
    """Decide on the device and threads that were left to the machine.

    Returns:
        The configuration with nothing left to the machine, and its machine.

    Raises:
        InputError: a device that is not there, or more threads than cores.
    """
    machine = Machine.settle(config.device, config.threads, cores())
    machine = replace(machine, precision=config.precision)
    return config.resolved(**machine.settings()), machine


def prepare(config: C, *, load: bool) -> tuple[Experiment[C], nn.Module]:
    """Load what a configuration names, and see that it fits together.

    Args:
        config: of a stage.
        load: whether the model gets the configuration's weights, or new ones.

    Returns:
        The experiment, and its model on the machine.

    Raises:
        InputError: something that is missing or does not fit.
    """
    config, machine = settled(config)
    texts = reads_texts(config.model)
    if not texts and config.model not in models.names():
        models.build(config.model, 1)  # refuses the name before data is read
    if texts != (config.dataset in TEXTS):
        kind, fitting = ("texts", TEXTS) if texts else ("images", IMAGES)
        raise InputError(
            f"model={config.model} reads {kind}, dataset={config.dataset} is none of them: pass "
            f"dataset={' or '.join(fitting)}"
        )
    data = datasets.load(
        config.dataset,
        data_dir=config.data_dir,
        image_size=config.image_size,
        train_limit=config.train_limit,
        seed=config.seed,
    )
    if texts:
        return _prepare_texts(config, data, machine, load=load)
    model = build(config, len(data.classes), machine, load=load)
    if config.batch_size == 1 and any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
        raise InputError(f"batch_size=1 does not work with {config.model}: BatchNorm needs 2")
    assert config.image_size is not None
    sample = models.check_image_size(model, config.model, config.image_size)
    pictures = torch.randn(
        2, *sample.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).to(machine.device)
    uses, head = cost.positions(model, sample), models.head_name(model)
    size: dict[str, object] = {"image_size": config.image_size}
    identity = models.describe(model) | {"input": size}
    return Experiment(config, data, machine, uses, head, pictures, identity), model


def _prepare_texts(
    config: C, data: Data, machine: Machine, *, load: bool
) -> tuple[Experiment[C], nn.Module]:
    """The same for texts: the tokenizer first, which the configuration's own weights decide."""
    from pruneflow.workloads import encoders

    assert isinstance(data.train, Texts)
    tokenizer = encoders.tokenizer_for(config.model, config.weights, data.train)
    classes = len(data.classes)
    model = build(config, classes, machine, load=load, tokenizer=tokenizer)
    longest = encoders.longest(model, tokenizer)

    def encode(split: Samples) -> tuple[Texts, Tokens]:
        assert isinstance(split, Texts)
        return split, encoders.encode(tokenizer, split, longest=longest, config=model.config)

    splits = {"train": encode(data.train), "val": encode(data.val), "test": encode(data.test)}
    encoders.check_tokens(config.model, model, splits)
    train, val, test = (tokens for _, tokens in splits.values())
    data = replace(data, train=train, val=val, test=test)
    by_length = train.lengths.argsort(kind="stable")
    median, longer = by_length[len(by_length) // 2], by_length[-1]
    sample = training.tokens_to_model(train, by_length[len(by_length) // 2 :][:1], machine)
    two = training.tokens_to_model(train, np.array([median, longer]), machine)
    longest_of = max((val, test), key=lambda tokens: int(tokens.lengths.max()))
    one = training.tokens_to_model(longest_of, longest_of.lengths.argsort()[-1:], machine)
    encoders.check_runs(config.model, model, [two, one], classes)
    uses, head = cost.positions(model, sample), models.head_name(model)
    model.train()
    size = {"sequence_length": int(train.lengths[median])}
    identity = encoders.describe(model, tokenizer) | {"input": size}
    return Experiment(config, data, machine, uses, head, two, identity, tokenizer), model


def report_finished(run: Earlier, reporter: Reporter, experiment_id: str | None) -> Ended:
    """Tell of a run that has done already what was asked for, and of nothing else."""
    reporter.say(f"run {run.id} has done this already; to run it again, pass resume=never")
    return resume.report(run, experiment_id)


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


R = TypeVar("R")


def timed(work: Callable[[], R]) -> tuple[R, float]:
    """What `work` returns, and the seconds it took."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start
