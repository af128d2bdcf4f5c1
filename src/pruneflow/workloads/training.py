"""Training and evaluation of classifiers, of images and of texts.

Accuracy is correct samples over samples, summed before it is divided.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from pruneflow.errors import ExperimentError
from pruneflow.workloads import learning_rates, models
from pruneflow.workloads.augmentations import AUGMENTATIONS, NO_AUGMENTATION
from pruneflow.workloads.batches import loaded, shuffled, slices, to_model
from pruneflow.workloads.machine import Machine
from pruneflow.workloads.splits import Samples, Split, Tokens

_PROGRESS_SECONDS = 0.5
# Pixels of an evaluation batch (512 images of 64x64): beyond it, speed no longer grows.
_EVALUATION_PIXELS = 1 << 21
_EVALUATION_TEXTS = 128
_STATISTICS_SAMPLES = 2_048  # BatchNorm's statistics are re-estimated on


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: everything but the model, the data and the machine."""

    epochs: int
    batch_size: int
    learning_rate: float  # the highest that the schedule comes to
    lr_schedule: str  # a name in `LR_SCHEDULES`
    optimizer: str  # a name in `_OPTIMIZERS`
    weight_decay: float
    image_size: int | None  # side of the square images the model sees; None for texts
    seed: int  # decides data order and dropout
    augment: str = NO_AUGMENTATION  # or a name in `AUGMENTATIONS`
    label_smoothing: float = 0.0  # share of a label that is spread over all classes, in [0, 1)
    warmup_epochs: int = 0  # in which the learning rate rises first
    epochs_before: int = 0  # that the learning-rate schedule has behind it, beside `epochs`
    distill: float = 0.0  # share of the loss that is the distance to a teacher's outputs, in [0, 1)
    temperature: float = 1.0  # that both outputs are divided by then


@dataclass(frozen=True)
class Snapshot:
    """Where a training stands between two epochs: all it needs to go on as if never interrupted."""

    epoch: int  # number of the last one that is through
    seconds: float  # that it took so far
    # State of the model (`model.*`), the optimizer (`optimizer.*`) and the random generators
    # (`random.*`), by name; they are the training's own and change with it. Others are a caller's.
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


_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": functools.partial(torch.optim.AdamW, fused=True),
    "sgd": functools.partial(torch.optim.SGD, momentum=0.9, fused=True),
    "nesterov": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True, fused=True),
}


class _Training:
    """A model that is trained, with all that changes as it is: the optimizer, order, rates."""

    def __init__(
        self,
        model: nn.Module,
        data: Samples,
        recipe: Recipe,
        machine: Machine,
        teacher: nn.Module | None,
    ) -> None:
        self.model, self.data, self.recipe, self.machine = model, data, recipe, machine
        self.teacher = teacher
        torch.manual_seed(recipe.seed)
        self.order = torch.Generator().manual_seed(recipe.seed)
        if recipe.optimizer not in _OPTIMIZERS:
            raise ValueError(f"optimizer {recipe.optimizer!r} is none of {', '.join(_OPTIMIZERS)}")
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = _OPTIMIZERS[recipe.optimizer](
            parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        steps = len(slices(len(data), recipe.batch_size))
        self.rates = learning_rates.scheduler(
            self.optimizer,
            recipe.lr_schedule,
            warmup=steps * recipe.warmup_epochs,
            steps=steps * (recipe.epochs_before + recipe.epochs),
            begin=steps * recipe.epochs_before,
        )

    def epoch(
        self,
        number: int,
        after_step: Callable[[torch.optim.Optimizer], None] | None,
        on_progress: Callable[[int, float, float], None] | None,
    ) -> tuple[float, float]:
        """Mean loss and accuracy of one pass over the samples, in which the model is trained."""
        model, recipe, device = self.model.train(), self.recipe, self.machine.device
        loss_sum = torch.zeros((), device=device)
        correct = torch.zeros((), dtype=torch.int64, device=device)
        seen, reported = 0, time.perf_counter()
        order = shuffled(self.data, recipe.batch_size, self.order)
        for samples, batch in loaded(self.data, order):
            inputs, labels = self.inputs(samples, batch)
            with self.machine.autocast():
                logits = models.logits(model, inputs)
            smoothing = recipe.label_smoothing
            loss = functional.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
            if self.teacher is not None:
                loss = (1 - recipe.distill) * loss + recipe.distill * self.distance(logits, inputs)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            if after_step is not None:
                after_step(self.optimizer)
            self.rates.step()
            seen += len(labels)
            loss_sum += loss.detach() * len(labels)
            correct += (logits.detach().argmax(1) == labels).sum()
            now = time.perf_counter()
            if now - reported >= _PROGRESS_SECONDS or seen == len(self.data):
                reported, mean = now, float(loss_sum) / seen
                if not math.isfinite(mean):
                    raise self.diverged(f"the loss became {mean}", number)
                if on_progress is not None:
                    on_progress(number, seen / len(self.data), mean)
        if not all(bool(p.isfinite().all()) for p in model.parameters()):
            raise self.diverged("weights became NaN or infinite", number)
        return float(loss_sum) / seen, int(correct) / seen

    def inputs(
        self, data: Samples, batch: NDArray[np.int64]
    ) -> tuple[Tensor | dict[str, Tensor], Tensor]:
        """Samples as the model takes them in training, and their labels (N,)."""
        size, augment = self.recipe.image_size, self.recipe.augment
        if augment == NO_AUGMENTATION:
            return to_model(data, batch, size, self.machine)
        assert isinstance(data, Split)
        chosen = data[batch]
        chosen = replace(chosen, samples=AUGMENTATIONS[augment](chosen.samples, self.order))
        return to_model(chosen, np.arange(len(batch)), size, self.machine)

    def distance(self, logits: Tensor, inputs: Any) -> Tensor:
        """Distance of logits (N, classes) to the teacher's, of the size of a cross entropy."""
        assert self.teacher is not None
        with models.looking(self.teacher), torch.no_grad(), self.machine.autocast():
            targets = models.logits(self.teacher, inputs)
        return distillation(logits.float(), targets.float(), self.recipe.temperature)

    def diverged(self, problem: str, epoch: int) -> ExperimentError:
        rate = self.recipe.learning_rate
        return ExperimentError(
            f"{problem} in epoch {epoch} at learning_rate={rate}: try a lower one"
        )

    def snapshot(self, epoch: int, seconds: float) -> Snapshot:
        state = self.optimizer.state_dict()
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, moments in state["state"].items():
            tensors |= {f"optimizer.{index}.{name}": moment for name, moment in moments.items()}
        tensors |= {"random.order": self.order.get_state(), "random.cpu": torch.get_rng_state()}
        if self.machine.device != "cpu":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.machine.device)
        values = {"groups": state["param_groups"], "schedule": self.rates.state_dict()}
        return Snapshot(epoch, seconds, tensors, values)

    def restore(self, since: Snapshot) -> None:
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "random": {}}
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments: dict[int, dict[str, Tensor]] = {}
        try:
            for name, tensor in since.tensors.items():
                part, _, rest = name.partition(".")
                parts.setdefault(part, {})[rest] = tensor  # the caller's own are no concern here
            models.load_state(self.model, parts["model"])
            for name, tensor in parts["optimizer"].items():
                index, _, moment = name.partition(".")
                like = parameters[int(index)]
                if tensor.shape == like.shape:  # fused steps want the parameter's own memory layout
                    tensor = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
                moments.setdefault(int(index), {})[moment] = tensor
            groups = since.values["groups"]
            self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
            self.rates.load_state_dict(since.values["schedule"])
            self.order.set_state(parts["random"]["order"])
            torch.set_rng_state(parts["random"]["cpu"])
            if self.machine.device != "cpu":
                torch.cuda.set_rng_state(parts["random"]["cuda"], self.machine.device)
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
    teacher: nn.Module | None = None,
) -> Iterator[Epoch]:
    """Train a model in place, an epoch each time the iterator is advanced.

    `after_step` is called with the optimizer after each of its steps; `on_progress` a few times a
    second at the most, with the epoch (from 1), the share of it that is done, and its loss so far.
    `since` goes on from there, to the same weights as without the interruption (on a GPU, where
    `Machine.make_deterministic` finds nothing); of another model or recipe it is a ValueError.
    Where the recipe distills, a `teacher`, looked at in eval mode, gives the logits to come close
    to. The model is left in training mode. A loss, or a weight after an epoch, that is not finite
    is an ExperimentError.
    """
    if recipe.epochs == 0:
        return
    if (recipe.distill > 0) != (teacher is not None):
        raise ValueError("a teacher and a recipe that distills go together")
    training = _Training(model, data, recipe, machine, teacher)
    began, through = time.perf_counter(), 0
    if since is not None:
        training.restore(since)
        began, through = began - since.seconds, since.epoch
    for number in range(through + 1, recipe.epochs + 1):
        start = time.perf_counter()
        loss, accuracy = training.epoch(number, after_step, on_progress)
        now = time.perf_counter()
        seconds, total = now - start, now - began
        snapshot = functools.partial(training.snapshot, number, total)
        yield Epoch(number, loss, accuracy, seconds, len(data) / seconds, total, snapshot)


def distillation(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(targets / T) || softmax(logits / T)), the mean over the samples, a scalar.

    Hinton et al. 2015, https://arxiv.org/abs/1503.02531; T^2 keeps gradients alike for every T.

    Args:
        logits, targets: of the student and of the teacher, (N, classes), float32.
        temperature: T, above 0.
    """
    return temperature**2 * functional.kl_div(
        functional.log_softmax(logits / temperature, dim=1),
        functional.log_softmax(targets / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def accuracy(
    model: nn.Module,
    data: Samples,
    machine: Machine,
    *,
    image_size: int | None,
    batch_size: int,
    subset: NDArray[np.int64] | None = None,
) -> float:
    """Correct samples / samples, in eval mode; the model is left as it was.

    A batch is at least as large as in training. `subset` are the samples that count.
    """
    order = np.arange(len(data)) if subset is None else subset
    if isinstance(data, Tokens):  # alike in length, so that hardly any of a batch is padding
        order = order[np.argsort(data.lengths[order], kind="stable")]
        size = max(batch_size, _EVALUATION_TEXTS)
    else:
        assert image_size is not None
        size = max(batch_size, min(512, _EVALUATION_PIXELS // image_size**2))
    with models.looking(model), torch.inference_mode(), machine.autocast():
        correct = torch.zeros((), dtype=torch.int64, device=machine.device)
        batches = (order[start : start + size] for start in range(0, len(order), size))
        for samples, batch in loaded(data, batches):
            inputs, labels = to_model(samples, batch, image_size, machine)
            correct += (models.logits(model, inputs).argmax(1) == labels).sum()
    return int(correct) / len(order)


def recalibrate(model: nn.Module, data: Samples, recipe: Recipe, machine: Machine) -> None:
    """Re-estimate the running statistics of BatchNorm, in place, as the mean over batches.

    Statistics of the unpruned model are wrong for a pruned one, and make its accuracy before
    fine-tuning look like chance (Li et al. 2020, EagleEye, https://arxiv.org/abs/2007.02491).
    The recipe's batch size, image size and seed say which samples are used, and how.
    """
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        return
    order = np.random.default_rng(recipe.seed).permutation(len(data))[:_STATISTICS_SAMPLES]
    batches = (
        to_model(data, order[batch], recipe.image_size, machine)[0]
        for batch in slices(len(order), recipe.batch_size)
    )
    with models.same_random_state(), models.same_modes(model), machine.autocast():
        torch.manual_seed(recipe.seed)  # dropout is active
        update_bn(batches, model)
