"""What every stage starts from: the data, a model and the machine, checked before a run opens."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from pruneflow.config import Settings
from pruneflow.errors import InputError
from pruneflow.pruning import cost
from pruneflow.tracking.run import Run
from pruneflow.workloads import datasets, models, training
from pruneflow.workloads.datasets import ImageData, Split
from pruneflow.workloads.training import Machine, Recipe

C = TypeVar("C", bound=Settings)


@dataclass(frozen=True)
class Experiment(Generic[C]):
    """A configuration with what it names: data loaded, machine settled, model known to fit.

    Attributes:
        config: with nothing left to `auto`.
        uses: weight name -> output positions it is applied at, for counting MACs.
        head: name of the layer that makes the logits.
    """

    config: C
    data: ImageData
    machine: Machine
    uses: dict[str, int]
    head: str

    def probe(self, model: nn.Module) -> Tensor:
        """Logits of two samples by any form of the model, in any float type."""
        like = next(model.parameters())
        size = self.config.image_size
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64)
        logits: Tensor = model(images.to(like.device, like.dtype))
        return logits

    def recalibrate(self, model: nn.Module, level: int) -> None:
        """Re-estimate BatchNorm statistics on training samples, where the configuration says so."""
        if getattr(self.config, "recalibrate_bn", False):
            training.recalibrate(model, self.data.train, self.recipe(0, level=level), self.machine)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.data.classes)

    @property
    def structure(self) -> dict[str, object]:
        """How a checkpoint's model is rebuilt."""
        return {"builder": "torchvision", "model": self.config.model, "classes": self.classes}

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

    def accuracy(self, model: nn.Module, split: Split) -> float:
        """Accuracy of a model on one split, a fraction."""
        size = self.config.image_size
        return training.accuracy(
            model, split, self.machine, image_size=size, batch_size=self.config.batch_size
        )

    def log_data(self, run: Run) -> None:
        """Log the data set as an input of a run."""
        sizes = {name: len(getattr(self.data, name)) for name in ("train", "val", "test")}
        run.log_data(self.data.name, self.data.digest, self.data.source, sizes)


def build(config: Settings, classes: int, machine: Machine, *, weights: str) -> nn.Module:
    """The configuration's model on the machine, its new parameters drawn by the seed."""
    torch.manual_seed(config.seed)
    return training.to_machine(models.build(config.model, classes, weights=weights), machine)


def prepare(config: C, *, weights: str) -> tuple[Experiment[C], nn.Module]:
    """Load what a configuration names, and see that it fits together.

    Args:
        config: of a stage.
        weights: those that the model is built with.

    Returns:
        The experiment, and its model on the machine.

    Raises:
        InputError: something that is missing or does not fit.
    """
    machine = Machine.settle(config.device, config.precision, config.threads, _cores())
    config = config.resolved(**machine.settings())
    if config.model not in models.names():
        models.build(config.model, 1)  # refuses the name before data is read
    data = datasets.load(
        config.dataset,
        data_dir=config.data_dir,
        image_size=config.image_size,
        train_limit=config.train_limit,
        seed=config.seed,
    )
    model = build(config, len(data.classes), machine, weights=weights)
    if config.batch_size == 1 and any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
        raise InputError(f"batch_size=1 does not work with {config.model}: BatchNorm needs 2")
    sample = models.check_image_size(model, config.model, config.image_size)
    return Experiment(
        config, data, machine, cost.positions(model, sample), models.head_name(model)
    ), model


def _cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


R = TypeVar("R")


def timed(work: Callable[[], R]) -> tuple[R, float]:
    """What `work` returns, and the seconds it took."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start
