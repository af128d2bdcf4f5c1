"""Training and evaluation of classifiers, of images and of texts.

Accuracy is correct samples over samples, summed before it is divided.
"""

from __future__ import annotations

import ctypes
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from pruneflow.errors import ExperimentError, InputError
from pruneflow.workloads import models
from pruneflow.workloads.datasets import Split
from pruneflow.workloads.texts import Texts, Tokens

Samples: TypeAlias = Split | Texts | Tokens

# ImageNet's channel means and deviations, for every data set: what pretrained weights expect,
# and from scratch as good as the data's own.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# Pixels of an evaluation batch (512 images of 64x64): beyond it, speed no longer grows.
_EVALUATION_PIXELS = 1 << 21
_PROGRESS_SECONDS = 0.5
_EVALUATION_TEXTS = 128  # texts of an evaluation batch
_BUCKET_BATCHES = 50  # batches of texts that are sorted by length together
_STATISTICS_SAMPLES = 2_048  # BatchNorm's statistics are re-estimated on


@dataclass(frozen=True)
class Machine:
    """What a run computes on.

    Attributes:
        device: `cpu` or `cuda`.
        precision: `fp32`, or `bf16` (autocast; weights stay float32).
        threads: CPU threads.
    """

    device: str
    precision: str
    threads: int

    @classmethod
    def settle(cls, device: str, threads: int | None, cores: int) -> Machine:
        """Decide on what was left to `auto` or None; `precision` is fp32 until it is decided on.

        Sets PyTorch's thread count, and on a CPU the allocator's way with large blocks, for the
        whole process.

        Raises:
            InputError: a device that is not there, or more threads than cores.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError(
                "device='cuda' is not available: PyTorch sees no CUDA GPU here (valid: auto, cpu)"
            )
        if threads is not None and threads > cores:
            raise InputError(f"threads={threads} is not valid: this process may use {cores} cores")
        threads = threads or cores
        torch.set_num_threads(threads)
        if device == "cpu":
            keep_large_buffers()
        return cls(device, "fp32", threads)

    def autocast(self) -> torch.autocast:
        """The context in which this machine's forward passes run."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")

    def settings(self) -> dict[str, object]:
        """The three values by the names of their parameters."""
        return {"device": self.device, "precision": self.precision, "threads": self.threads}


@contextmanager
def callers_state_kept() -> Iterator[None]:
    """Compute in PyTorch's default modes, and leave the caller's as they were.

    Those are random states, threads, grad mode, autocast, default dtype and default device.
    """
    threads = torch.get_num_threads()
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    with ExitStack() as modes:
        modes.enter_context(models.same_random_state())
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            modes.enter_context(torch.autocast(kind, enabled=False))
        torch.set_default_dtype(torch.float32)
        if device.type != "cpu":
            torch.set_default_device(None)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.set_default_dtype(dtype)
            if device.type != "cpu":
                torch.set_default_device(device)


@functools.cache
def keep_large_buffers() -> None:
    """Tell glibc's allocator to keep big freed blocks instead of handing them back each time.

    A step frees and asks for gradients of hundreds of megabytes; as fresh pages from the system
    they cost as much as the arithmetic (AlexNet, batch 128, 64x64: 157 against 259 images/s).
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library: nothing to tell it
        return
    m_trim_threshold, m_mmap_max = -1, -4
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: everything but the model, the data and the machine.

    Attributes:
        epochs: passes over the training samples; 0 trains nothing.
        batch_size: samples a step.
        learning_rate: constant, or the peak of `one_cycle` (Smith & Topin 2018).
        lr_schedule: `one_cycle` (up over the first 30 % of steps, then down to zero) or `constant`.
        optimizer: `adamw`, or `sgd` with momentum 0.9.
        weight_decay: of the optimizer.
        image_size: side of the square images the model sees; None for texts.
        seed: decides data order and dropout.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    lr_schedule: str
    optimizer: str
    weight_decay: float
    image_size: int | None
    seed: int


@dataclass(frozen=True)
class Snapshot:
    """Where a training stands between two epochs: all it needs to go on as if never interrupted.

    Attributes:
        epoch: number of the last one that is through.
        seconds: that it took so far.
        tensors: by name, state of the model (`model.*`), the optimizer (`optimizer.*`) and the
            random generators (`random.*`); they are the training's own and change with it.
        values: of the optimizer's groups and the learning-rate schedule, as JSON has them.
    """

    epoch: int
    seconds: float
    tensors: dict[str, Tensor]
    values: dict[str, Any]


@dataclass(frozen=True)
class Epoch:
    """What one epoch of training came to.

    Attributes:
        number: from 1.
        loss, accuracy: means over the samples of the epoch's own steps.
        seconds, samples_per_second: of its steps.
        total_seconds: since the training began, without what lay between an interruption and
            going on.
        snapshot: makes that of the training as it stands, until the next epoch is asked for.
    """

    number: int
    loss: float
    accuracy: float
    seconds: float
    samples_per_second: float
    total_seconds: float
    snapshot: Callable[[], Snapshot]


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

    Args:
        model: gives logits (N, classes); left in training mode.
        data: the training samples, images or tokens.
        recipe: how.
        machine: on what.
        after_step: called with the optimizer after each of its steps.
        on_progress: told the epoch (from 1), the share of it that is done, and its loss so far,
            a few times a second at the most.
        since: goes on from there, to the same weights as without the interruption (on a CPU).

    Raises:
        ValueError: a snapshot of another model or recipe.
        ExperimentError: the loss, or a weight after an epoch, is not finite.
    """
    if recipe.epochs == 0:
        return
    torch.manual_seed(recipe.seed)
    order = torch.Generator().manual_seed(recipe.seed)
    optimizer = _optimizer(model, recipe)
    steps = len(_batches(len(data), recipe.batch_size))
    rates = _rates(optimizer, recipe, steps * recipe.epochs)
    if since is not None:
        _go_on(since, model, optimizer, rates, order)
    through = 0 if since is None else since.epoch
    began = time.perf_counter() - (0.0 if since is None else since.seconds)
    for number in range(through + 1, recipe.epochs + 1):
        start = reported = time.perf_counter()
        model.train()
        loss_sum = torch.zeros((), device=machine.device)
        correct = torch.zeros((), dtype=torch.int64, device=machine.device)
        seen = 0
        for batch in _shuffled(data, recipe.batch_size, order):
            inputs, labels = _to_model(data, batch, recipe.image_size, machine)
            with machine.autocast():
                logits = models.logits(model, inputs)
            loss = functional.cross_entropy(logits.float(), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if after_step is not None:
                after_step(optimizer)
            if rates is not None:
                rates.step()
            seen += len(labels)
            loss_sum += loss.detach() * len(labels)
            correct += (logits.detach().argmax(1) == labels).sum()
            now = time.perf_counter()
            if now - reported >= _PROGRESS_SECONDS or seen == len(data):
                reported = now
                mean = float(loss_sum) / seen
                if not math.isfinite(mean):
                    raise ExperimentError(
                        f"the loss became {mean} in epoch {number} at learning_rate="
                        f"{recipe.learning_rate}: try a lower one"
                    )
                if on_progress is not None:
                    on_progress(number, seen / len(data), mean)
        seconds = time.perf_counter() - start
        if not all(bool(p.isfinite().all()) for p in model.parameters()):
            raise ExperimentError(
                f"weights became NaN or infinite in epoch {number} at learning_rate="
                f"{recipe.learning_rate}: try a lower one"
            )
        total = time.perf_counter() - began
        yield Epoch(
            number=number,
            loss=float(loss_sum) / seen,
            accuracy=int(correct) / seen,
            seconds=seconds,
            samples_per_second=seen / seconds,
            total_seconds=total,
            snapshot=functools.partial(_snapshot, number, total, model, optimizer, rates, order),
        )


Rates: TypeAlias = torch.optim.lr_scheduler.LRScheduler | None


def _snapshot(
    number: int,
    seconds: float,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rates: Rates,
    order: torch.Generator,
) -> Snapshot:
    state = optimizer.state_dict()
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, moments in state["state"].items():
        tensors |= {f"optimizer.{index}.{name}": moment for name, moment in moments.items()}
    tensors |= {"random.order": order.get_state(), "random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    schedule = {} if rates is None else rates.state_dict()
    values = {"groups": state["param_groups"], "schedule": schedule}
    return Snapshot(number, seconds, tensors, values)


def _go_on(
    since: Snapshot,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rates: Rates,
    order: torch.Generator,
) -> None:
    """Bring a training to where a snapshot was taken.

    Raises:
        ValueError: a snapshot of another model or recipe.
    """
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "random": {}}
    for name, tensor in since.tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        models.load_state(model, parts["model"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimizer"].items():
            index, _, moment = name.partition(".")
            like = parameters[int(index)]
            if tensor.shape == like.shape:  # fused steps want the parameter's own memory layout
                tensor = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
            moments.setdefault(int(index), {})[moment] = tensor
        optimizer.load_state_dict({"state": moments, "param_groups": since.values["groups"]})
        if rates is not None:
            rates.load_state_dict(since.values["schedule"])
        order.set_state(parts["random"]["order"])
        torch.set_rng_state(parts["random"]["cpu"])
        if "cuda" in parts["random"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(parts["random"]["cuda"])
    except (LookupError, TypeError, RuntimeError) as error:
        raise ValueError(f"the snapshot is of another training: {error}") from None


def recalibrate(model: nn.Module, data: Samples, recipe: Recipe, machine: Machine) -> None:
    """Re-estimate the running statistics of BatchNorm, in place, as the mean over batches.

    Statistics of the unpruned model are wrong for a pruned one, and make its accuracy before
    fine-tuning look like chance (Li et al. 2020, EagleEye, https://arxiv.org/abs/2007.02491).

    Args:
        model: any; without BatchNorm it stays as it is.
        data: training samples, of which some are used.
        recipe: its batch size, image size and seed say which, and how.
        machine: on what.
    """
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        return
    order = np.random.default_rng(recipe.seed).permutation(len(data))[:_STATISTICS_SAMPLES]
    batches = (
        _to_model(data, order[batch], recipe.image_size, machine)[0]
        for batch in _batches(len(order), recipe.batch_size)
    )
    with models.same_random_state(), models.same_modes(model), machine.autocast():
        torch.manual_seed(recipe.seed)  # dropout is active
        update_bn(batches, model)


def accuracy(
    model: nn.Module,
    data: Samples,
    machine: Machine,
    *,
    image_size: int | None,
    batch_size: int,
    of: NDArray[np.int64] | None = None,
) -> float:
    """Correct samples / samples, in eval mode; the model is left as it was.

    Args:
        model: gives logits (N, classes).
        data: images or tokens.
        machine: on what.
        image_size, batch_size: as in training; a batch here is at least as large.
        of: numbers of the samples that count; all by default.
    """
    order = np.arange(len(data)) if of is None else of
    if isinstance(data, Tokens):  # alike in length, so that hardly any of a batch is padding
        order = order[np.argsort(data.lengths[order], kind="stable")]
        size = max(batch_size, _EVALUATION_TEXTS)
    else:
        assert image_size is not None
        size = max(batch_size, min(512, _EVALUATION_PIXELS // image_size**2))
    correct = 0
    with models.looking(model), torch.inference_mode(), machine.autocast():
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            inputs, labels = _to_model(data, batch, image_size, machine)
            correct += int((models.logits(model, inputs).argmax(1) == labels).sum())
    return correct / len(order)


def to_machine(model: nn.Module, machine: Machine) -> nn.Module:
    """The model on the machine's device, in the memory layout that its convolutions like."""
    return model.to(device=machine.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _batches(samples: int, size: int) -> list[slice]:
    """Slices of at most `size`; a last sample alone joins the batch before (BatchNorm needs 2)."""
    starts = list(range(0, samples, size))
    if len(starts) > 1 and samples - starts[-1] == 1:
        starts.pop()
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], samples], strict=True)]


def _shuffled(data: Samples, size: int, generator: torch.Generator) -> Iterator[NDArray[np.int64]]:
    """Batches of sample numbers in a random order, each sample once.

    Texts are sorted by length within stretches of many batches, so that those of one batch are
    alike in length and little of it is padding; the batches then come in a random order.
    """
    order = torch.randperm(len(data), generator=generator).numpy()
    batches = _batches(len(data), size)
    if not isinstance(data, Tokens):
        yield from (order[batch] for batch in batches)
        return
    stretch = size * _BUCKET_BATCHES
    for start in range(0, len(order), stretch):
        part = order[start : start + stretch]
        order[start : start + stretch] = part[np.argsort(-data.lengths[part], kind="stable")]
    for number in torch.randperm(len(batches), generator=generator).tolist():
        yield order[batches[number]]


def _to_model(
    data: Samples, index: NDArray[np.int64], image_size: int | None, machine: Machine
) -> tuple[Tensor | dict[str, Tensor], Tensor]:
    """A batch as the model takes it, and its labels (N,)."""
    labels = torch.from_numpy(data.labels[index]).to(machine.device)
    if isinstance(data, Tokens):
        return tokens_to_model(data, index, machine), labels
    assert isinstance(data, Split)
    assert image_size is not None
    return _pixels(data.images[index], image_size, machine), labels


def tokens_to_model(data: Tokens, index: NDArray[np.int64], machine: Machine) -> dict[str, Tensor]:
    """Texts as an encoder takes them: `input_ids` and `attention_mask`, both (N, longest)."""
    ids, mask = data.padded(index)
    return {
        "input_ids": torch.from_numpy(ids).to(machine.device),
        "attention_mask": torch.from_numpy(mask).to(machine.device),
    }


def _pixels(images: NDArray[np.uint8], size: int, machine: Machine) -> Tensor:
    """Images as the model takes them: (N, 3, size, size), float32, channels_last, normalised."""
    uint8 = torch.from_numpy(np.ascontiguousarray(images)).to(machine.device)
    mean = torch.tensor(MEAN, device=machine.device) * 255
    scale = 1 / (torch.tensor(STD, device=machine.device) * 255)
    pixels = ((uint8 - mean) * scale).permute(0, 3, 1, 2)
    if pixels.shape[2:] != (size, size):
        shrinks = pixels.shape[2] > size or pixels.shape[3] > size
        pixels = functional.interpolate(
            pixels, (size, size), mode="bilinear", align_corners=False, antialias=shrinks
        )
    return pixels.contiguous(memory_format=torch.channels_last)


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(
            parameters, recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
        )
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            recipe.learning_rate,
            momentum=0.9,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
    raise ValueError(f"optimizer {recipe.optimizer!r} is neither 'adamw' nor 'sgd'")


def _rates(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> Rates:
    if recipe.lr_schedule == "constant":
        return None
    if recipe.lr_schedule == "one_cycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, recipe.learning_rate, total_steps=max(steps, 2), cycle_momentum=False
        )
    raise ValueError(f"lr_schedule {recipe.lr_schedule!r} is neither 'one_cycle' nor 'constant'")
