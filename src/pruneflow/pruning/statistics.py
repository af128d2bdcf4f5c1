"""Statistics: what a criterion may see of a model beside its weights.

They are collected over calibration samples in one pass, whatever is asked for, and take at the
most two tensors of each parameter's size: the gradient and its square. What flows into a weight is
a few numbers for each of its input columns.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from pruneflow.pruning.criteria import (
    FLOW_GRADIENT,
    GRADIENT,
    INPUT_NORM,
    OF_OUTPUTS,
    OUTPUT_VARIANCE,
    SCALE,
    SQUARED_GRADIENT,
)
from pruneflow.workloads import models

_OF_COLUMNS = frozenset({INPUT_NORM, *OF_OUTPUTS})
Inputs: TypeAlias = "Tensor | Mapping[str, Tensor]"
Batch: TypeAlias = tuple[Inputs, Tensor]  # what the model takes, and labels (N,)


@dataclass
class Columns:
    """What flowed into each input column of a weight, over samples, positions and tokens.

    Attributes:
        axis: of the weight, along which its columns lie.
        count: values that a column saw.
        mean, squares, zeros: of a column's values: mean, sum of squared differences from it,
            number of zeros; float64, shape (columns,).
    """

    axis: int
    count: int
    mean: Tensor
    squares: Tensor
    zeros: Tensor

    @property
    def norm(self) -> Tensor:
        """Euclidean norm of a column's values."""
        return (self.squares + self.count * self.mean.square()).sqrt()

    @property
    def variance(self) -> Tensor:
        """Variance of a column's values."""
        return self.squares / self.count

    @property
    def zero_share(self) -> Tensor:
        """Share of a column's values that is zero, in [0, 1]."""
        return self.zeros / self.count

    def add(self, values: Tensor, channel: int) -> None:
        """Count the values of another batch, of which one dimension is the columns."""
        others = [d for d in range(values.dim()) if d != channel]
        variance, mean = (t.double() for t in torch.var_mean(values, others, correction=0))
        count = values.numel() // len(mean)
        total = self.count + count
        shift = mean - self.mean  # Chan et al. 1979: exact where sums of squares would cancel
        self.mean = self.mean + shift * (count / total)
        self.squares = (
            self.squares + variance * count + shift.square() * (self.count * count / total)
        )
        self.zeros = self.zeros + (values == 0).sum(others)
        self.count = total


@dataclass
class Statistics:
    """What was collected of a model, by the names of its parameters.

    Attributes:
        gradient: mean gradient of the loss over the samples, of each parameter's shape.
        squared_gradient: mean over batches of the squared gradient of a batch's mean loss.
        flow_gradient: of the synaptic flow, see `collect_flow`.
        columns: what flowed into each column of a weight.
    """

    gradient: dict[str, Tensor] = field(default_factory=dict)
    squared_gradient: dict[str, Tensor] = field(default_factory=dict)
    flow_gradient: dict[str, Tensor] = field(default_factory=dict)
    columns: dict[str, Columns] = field(default_factory=dict)

    def of_columns(self, statistic: str, weight: str) -> Tensor:
        """A statistic of what flows into each column of a weight, float32, (columns,)."""
        columns = self.columns[weight]
        values = columns.variance if statistic == OUTPUT_VARIANCE else columns.zero_share
        return values.float()


NONE = Statistics()


def collect(
    model: nn.Module,
    parameters: Collection[str],
    batches: Callable[[], Iterable[Batch]],
    needs: Collection[str],
) -> Statistics:
    """Collect what criteria need of a model; it is left as it was.

    Args:
        model: gives logits (N, classes); it is looked at in eval mode, in float32.
        parameters: names of those whose gradients count.
        batches: calibration samples; gone through once, if anything needs them.
        needs: names of statistics.
    """
    statistics = Statistics()
    if FLOW_GRADIENT in needs:
        sample, _ = next(iter(batches()))
        statistics.flow_gradient = collect_flow(model, parameters, sample)
    gradients = {GRADIENT, SQUARED_GRADIENT} & set(needs)
    flowing = not _OF_COLUMNS.isdisjoint(needs)
    if not gradients and not flowing:
        return statistics
    with ExitStack() as stack:
        stack.enter_context(models.looking(model))
        watch = _Watch(model, statistics.columns)
        stack.enter_context(_products_apart(model))
        if gradients:
            into = _Accumulator(statistics, gradients)
            stack.enter_context(_each_gradient(model, parameters, into))
        else:
            stack.enter_context(torch.no_grad())
        count = samples = 0
        for inputs, labels in batches():
            watch.attended = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
            with watch if flowing else nullcontext():
                logits = models.logits(model, inputs)
            if gradients:
                loss = functional.cross_entropy(logits, labels)
                into.samples = len(labels)
                loss.backward()  # type: ignore[no-untyped-call]
            count, samples = count + 1, samples + len(labels)
    for gradient in statistics.gradient.values():
        gradient /= samples
    for square in statistics.squared_gradient.values():
        square /= count
    return statistics


def input_axes(model: nn.Module, forward: Callable[[nn.Module], object]) -> dict[str, int]:
    """Weight -> axis along which its inputs lie, of the weights that `forward` multiplies by.

    1 of those that are (outputs, inputs, ...), as PyTorch's layers have them, 0 of (inputs,
    outputs). The model is left as it was.
    """
    watch = _Watch(model, {})
    with models.looking(model), _products_apart(model), torch.no_grad(), watch:
        forward(model)
    return {name: columns.axis for name, columns in watch.columns.items()}


def collect_flow(
    model: nn.Module, parameters: Collection[str], sample: Inputs
) -> dict[str, Tensor]:
    """Gradient of R = sum of the outputs of |w| for an input of ones; it takes no data.

    Tanaka et al. 2020, https://arxiv.org/abs/2006.05467. Weights are made positive in place and
    get their signs back. Where float32 overflows the sum is taken in float64, of a copy.

    Args:
        model: in eval mode; of an encoder the embedded tokens are ones.
        parameters: names of those whose gradients count.
        sample: a batch, of which the shape of a single sample is taken.

    Raises:
        ValueError: the flow is not finite in float64 either.
    """
    ones = _ones(model, sample)
    weights = dict(model.named_parameters())
    with models.looking(model), torch.no_grad():
        negative = {name: weight.signbit() for name, weight in weights.items()}
        for weight in weights.values():
            weight.abs_()
        try:
            flow = _flow(model, parameters, ones, torch.float32)
            if flow is None:
                flow = _flow(model, parameters, ones, torch.float64)
        finally:
            for name, weight in weights.items():
                weight.copysign_(torch.where(negative[name], -1.0, 1.0))
    if flow is None:
        raise ValueError("the synaptic flow through this model is not finite")
    return flow


def _flow(
    model: nn.Module, parameters: Collection[str], ones: Mapping[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor] | None:
    """Gradients of the flow, None where they are not finite."""
    tensors = {n: p.detach().to(dtype).requires_grad_() for n, p in model.named_parameters()}
    tensors |= {
        n: b.detach().to(dtype) if b.is_floating_point() else b for n, b in model.named_buffers()
    }
    inputs = {n: t.to(dtype) if t.is_floating_point() else t for n, t in ones.items()}
    args = (inputs.pop(""),) if "" in inputs else ()
    with torch.enable_grad():
        output = torch.func.functional_call(model, tensors, args, inputs)
        total = getattr(output, "logits", output).sum()
        names = list(parameters)
        of_each = torch.autograd.grad(total, [tensors[n] for n in names], allow_unused=True)
    gradients = {
        n: torch.zeros_like(tensors[n]) if g is None else g
        for n, g in zip(names, of_each, strict=True)
    }
    if not all(bool(g.isfinite().all()) for g in gradients.values()):
        return None
    return gradients


def _ones(model: nn.Module, sample: Inputs) -> dict[str, Tensor]:
    """An input of ones: an image, or a text whose embedded tokens are ones."""
    if isinstance(sample, Tensor):
        return {"": torch.ones_like(sample[:1])}
    mask = torch.ones_like(sample["attention_mask"][:1])
    width = model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
    return {"inputs_embeds": mask.new_ones((*mask.shape, width), dtype=torch.float32)} | {
        "attention_mask": mask
    }


@dataclass
class _Accumulator:
    """Adds the gradients of a batch to the statistics that are asked for."""

    statistics: Statistics
    needs: Collection[str]
    samples: int = 0

    def __call__(self, name: str, gradient: Tensor) -> None:
        if SQUARED_GRADIENT in self.needs:
            _add(self.statistics.squared_gradient, name, gradient.square())
        if GRADIENT in self.needs:
            _add(self.statistics.gradient, name, gradient.mul_(self.samples))


def _add(sums: dict[str, Tensor], name: str, values: Tensor) -> None:
    if name in sums:
        sums[name] += values
    else:
        sums[name] = values


@contextmanager
def _each_gradient(
    model: nn.Module, parameters: Collection[str], take: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Hand over each parameter's gradient as it is made, so that one is held at a time."""
    every = dict(model.named_parameters())
    before = {name: parameter.grad for name, parameter in every.items()}
    hooks = []
    for name, parameter in every.items():
        parameter.grad = None
        parameter.requires_grad_(name in parameters)
        if name in parameters:

            def hand_over(p: Tensor, name: str = name) -> None:
                assert p.grad is not None
                take(name, p.grad)
                p.grad = None

            hook = parameter.register_post_accumulate_grad_hook(hand_over)  # type: ignore[no-untyped-call]
            hooks.append(hook)
    try:
        with torch.enable_grad():
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for name, parameter in every.items():
            parameter.grad = before[name]


@contextmanager
def _products_apart(model: nn.Module) -> Iterator[None]:
    """Have attention and recurrent layers multiply by one weight at a time, where it can be seen.

    oneDNN and cuDNN stay on where nothing is recurrent: convolutions are slow without.
    """
    with ExitStack() as stack:
        stack.enter_context(models.without_fused_attention())
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            # PyTorch warns of TF32 on devices that are not there
            stack.enter_context(warnings.catch_warnings(action="ignore"))
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees, below autograd and modules, what is multiplied with each weight.

    Hooks on layers would not do: attention uses its projections' weights without calling them.
    """

    def __init__(self, model: nn.Module, columns: dict[str, Columns]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.attended: Tensor | None = None  # (N, tokens), 0 where there is padding
        self._weights = {p.untyped_storage().data_ptr(): n for n, p in model.named_parameters()}
        self._model = model
        self.columns = columns

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name == "convolution":
            values, weight, transposed = args[0], args[1], args[6]
            self._see(values, weight, channel=1, axis=0 if transposed else 1)
        elif name in ("mm", "addmm"):
            values, factor = args[-2:]
            self._see(values, factor, channel=1, axis=0)
        return func(*args, **(kwargs or {}))

    def _see(self, values: Tensor, factor: Tensor, *, channel: int, axis: int) -> None:
        name = self._weights.get(factor.untyped_storage().data_ptr())
        if name is None:
            return
        weight = self._model.get_parameter(name)
        if factor.shape != weight.shape or factor.stride() != weight.stride():
            if factor.t().shape != weight.shape:  # a part of it
                return
            axis = 1
        if self.attended is not None and len(values) == self.attended.numel():
            values = values[self.attended.flatten().bool()]
        if name not in self.columns:
            nothing = torch.zeros(values.shape[channel], dtype=torch.float64, device=values.device)
            self.columns[name] = Columns(axis, 0, nothing, nothing, nothing)
        self.columns[name].add(values, channel)


def of_weight(statistic: str, name: str, weight: Tensor, collected: Statistics) -> Tensor:
    """A statistic of every entry of a weight, of its shape; no copy is made of what is shared."""
    if statistic == SCALE or statistic.endswith("values"):
        return weight
    if statistic != INPUT_NORM:
        gradients: dict[str, Tensor] = getattr(collected, statistic)
        # what no output depends on has no gradient
        return gradients[name] if name in gradients else weight.new_zeros(()).expand(weight.shape)
    columns = collected.columns.get(name)
    if columns is None:  # it multiplies nothing, as biases and embeddings do
        return weight.new_ones(()).expand(weight.shape)
    return over_entries(columns.norm.to(weight.dtype), weight, columns.axis)


def over_entries(columns: Tensor, weight: Tensor, axis: int) -> Tensor:
    """A value for each input column as one for each entry of the weight, without a copy if it can.

    Args:
        columns: shape (columns,): as many as the weight has along `axis`, or, of a grouped
            convolution, that many for each group of its output channels.
        weight: gives the shape.
        axis: of the weight, along which its columns lie.
    """
    per_group = weight.shape[axis]
    groups = len(columns) // per_group
    shape = [1] * weight.dim()
    if groups == 1:
        shape[axis] = per_group
        return columns.reshape(shape).expand(weight.shape)
    rows = columns.reshape(groups, per_group).repeat_interleave(len(weight) // groups, 0)
    return rows.reshape(*rows.shape, *shape[2:]).expand(weight.shape)
