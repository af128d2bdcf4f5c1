"""Training of classifiers, of images and of texts, an epoch at a time."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pruneflow.errors import ExperimentError
from pruneflow.workloads import models
from pruneflow.workloads.batches import shuffled, slices, to_model
from pruneflow.workloads.machine import Machine
from pruneflow.workloads.splits import Samples

_PROGRESS_SECONDS = 0.5


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: everything but the model, the data and the machine."""

    epochs: int
    batch_size: int
    learning_rate: float  # constant, or the peak of `one_cycle`
    lr_schedule: str  # `constant`, or `one_cycle` (Smith & Topin 2018): up for 30 % of steps, down
    optimizer: str  # `adamw`, or `sgd` with momentum 0.9
    weight_decay: float
    image_size: int | None  # side of the square images the model sees; None for texts
    seed: int  # decides data order and dropout


@dataclass(frozen=True)
class Snapshot:
    """Where a training stands between two epochs: all it needs to go on as if never interrupted."""

    epoch: int  # number of the last one that is through
    seconds: float  # that it took so far
    # State of the model (`model.*`), the optimizer (`optimizer.*`) and the random generators
    # (`random.*`), by name; they are the training's own and change with it.
    tensors: dict[str, Tensor]
    values: dict[str, Any]  # of the optimizer's groups and the learning-rate schedule, for JSON


@dataclass(frozen=True)
class Epoch:
    """What one epoch of training came to."""

    number: int  # from 1
    loss: float  # mean over the samples of the epoch's own steps, as `accuracy`
    accuracy: float
    seconds: float  # of its steps
    samples_per_second: float
    total_seconds: float  # since the training began, without interruptions
    snapshot: Callable[[], Snapshot]  # of the training as it stands, until the next epoch


class _Training:
    """What changes as a model is trained: its weights, the optimizer, and the order of samples."""

    def __init__(self, model: nn.Module, recipe: Recipe, samples: int) -> None:
        torch.manual_seed(recipe.seed)
        self.model = model
        self.order = torch.Generator().manual_seed(recipe.seed)
        self.optimizer = _optimizer(model, recipe)
        steps = len(slices(samples, recipe.batch_size)) * recipe.epochs
        self.rates = _rates(self.optimizer, recipe, steps)

    def snapshot(self, epoch: int, seconds: float) -> Snapshot:
        state = self.optimizer.state_dict()
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, moments in state["state"].items():
            tensors |= {f"optimizer.{index}.{name}": moment for name, moment in moments.items()}
        tensors |= {"random.order": self.order.get_state(), "random.cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors["random.cuda"] = torch.cuda.get_rng_state()
        schedule = {} if self.rates is None else self.rates.state_dict()
        values = {"groups": state["param_groups"], "schedule": schedule}
        return Snapshot(epoch, seconds, tensors, values)

    def restore(self, since: Snapshot) -> None:
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "random": {}}
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments: dict[int, dict[str, Tensor]] = {}
        try:
            for name, tensor in since.tensors.items():
                part, _, rest = name.partition(".")
                parts[part][rest] = tensor
            models.load_state(self.model, parts["model"])
            for name, tensor in parts["optimizer"].items():
                index, _, moment = name.partition(".")
                like = parameters[int(index)]
                if tensor.shape == like.shape:  # fused steps want the parameter's own memory layout
                    tensor = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
                moments.setdefault(int(index), {})[moment] = tensor
            groups = since.values["groups"]
            self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
            if self.rates is not None:
                self.rates.load_state_dict(since.values["schedule"])
            self.order.set_state(parts["random"]["order"])
            torch.set_rng_state(parts["random"]["cpu"])
            if "cuda" in parts["random"] and torch.cuda.is_available():
                torch.cuda.set_rng_state(parts["random"]["cuda"])
        except (LookupError, TypeError, RuntimeError) as error:
            raise ValueError(f"the snapshot is of another training: {error}") from None


def fit(
    model: nn.Module,
    data: Samples,
    recipe: Recipe,
    machine: Machine,
    *,
    after_step: Callable[[torch.optim.Optimizer], None] | None = None,
    on_progress: Callable[[int, float, float], None] | None = None,
    since: Snapshot | None = None,
) -> Iterator[Epoch]:
    """Train a model in place, an epoch each time the iterator is advanced.

    `after_step` is called with the optimizer after each of its steps; `on_progress` a few times a
    second at the most, with the epoch (from 1), the share of it that is done, and its loss so far.
    `since` goes on from there, to the same weights as without the interruption (on a CPU). The
    model is left in training mode.

    Raises:
        ValueError: a snapshot of another model or recipe.
        ExperimentError: the loss, or a weight after an epoch, is not finite.
    """
    if recipe.epochs == 0:
        return
    training = _Training(model, recipe, len(data))
    began, through = time.perf_counter(), 0
    if since is not None:
        training.restore(since)
        began, through = began - since.seconds, since.epoch
    for number in range(through + 1, recipe.epochs + 1):
        start = time.perf_counter()

        def progress(share: float, loss: float, number: int = number) -> None:
            if not math.isfinite(loss):
                raise _diverged(f"the loss became {loss}", number, recipe)
            if on_progress is not None:
                on_progress(number, share, loss)

        loss, accuracy = _epoch(training, data, recipe, machine, after_step, progress)
        seconds = time.perf_counter() - start
        if not all(bool(p.isfinite().all()) for p in model.parameters()):
            raise _diverged("weights became NaN or infinite", number, recipe)
        total = time.perf_counter() - began
        snapshot = functools.partial(training.snapshot, number, total)
        yield Epoch(number, loss, accuracy, seconds, len(data) / seconds, total, snapshot)


def _epoch(
    training: _Training,
    data: Samples,
    recipe: Recipe,
    machine: Machine,
    after_step: Callable[[torch.optim.Optimizer], None] | None,
    progress: Callable[[float, float], None],
) -> tuple[float, float]:
    """Mean loss and accuracy of one pass over the samples, in which the model is trained."""
    model, optimizer = training.model.train(), training.optimizer
    loss_sum = torch.zeros((), device=machine.device)
    correct = torch.zeros((), dtype=torch.int64, device=machine.device)
    seen, reported = 0, time.perf_counter()
    for batch in shuffled(data, recipe.batch_size, training.order):
        inputs, labels = to_model(data, batch, recipe.image_size, machine)
        with machine.autocast():
            logits = models.logits(model, inputs)
        loss = functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if after_step is not None:
            after_step(optimizer)
        if training.rates is not None:
            training.rates.step()
        seen += len(labels)
        loss_sum += loss.detach() * len(labels)
        correct += (logits.detach().argmax(1) == labels).sum()
        now = time.perf_counter()
        if now - reported >= _PROGRESS_SECONDS or seen == len(data):
            reported = now
            progress(seen / len(data), float(loss_sum) / seen)
    return float(loss_sum) / seen, int(correct) / seen


def _diverged(what: str, epoch: int, recipe: Recipe) -> ExperimentError:
    return ExperimentError(
        f"{what} in epoch {epoch} at learning_rate={recipe.learning_rate}: try a lower one"
    )


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    given: dict[str, Any] = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **given)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=0.9, fused=True, **given)
    raise ValueError(f"optimizer {recipe.optimizer!r} is neither 'adamw' nor 'sgd'")


def _rates(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int
) -> torch.optim.lr_scheduler.LRScheduler | None:
    if recipe.lr_schedule == "constant":
        return None
    if recipe.lr_schedule == "one_cycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, recipe.learning_rate, total_steps=max(steps, 2), cycle_momentum=False
        )
    raise ValueError(f"lr_schedule {recipe.lr_schedule!r} is neither 'one_cycle' nor 'constant'")
