"""Criteria: functions that score what could be pruned; higher means keep.

A criterion is a pure function of statistics of units, which returns a score a unit. A unit is
whatever is pruned as a whole: a single weight (one entry), a filter or a head (many). The names of
its parameters say what it sees of n units with k entries each; it never chooses: selection does. To
add one, write the function and its row in CRITERIA; nothing else needs to know.

    values            (n, k)  the weights
    layer_values      (n, k)  the same, of all units of a layer or group, for what compares them
    channel_values    (n, k)  the same, of channels of convolutions and linear layers alone
    gradient          (n, k)  mean gradient of the loss over the calibration samples
    squared_gradient  (n, k)  mean over batches of the squared gradient of a batch's mean loss
    flow_gradient     (n, k)  gradient of the synaptic flow, which needs no samples
    input_norm        (n, k)  Euclidean norm of what is multiplied with the weight
    output_variance, output_zeros  (n,)  of a channel's output, as the layers that read it see it,
                              over samples and positions; zeros as a share of all
    scale             (n, j)  of channels, the weights of a BatchNorm
    generator                 draws random numbers, seeded by run, level and layer
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:  # torch takes seconds to import; names and help must not wait for it
    from torch import Generator, Tensor

Criterion: TypeAlias = "Callable[..., Tensor]"

# Statistics that a pass over calibration samples collects.
GRADIENT, SQUARED_GRADIENT, FLOW_GRADIENT = "gradient", "squared_gradient", "flow_gradient"
INPUT_NORM, OUTPUT_VARIANCE, OUTPUT_ZEROS = "input_norm", "output_variance", "output_zeros"
OF_OUTPUTS = (OUTPUT_VARIANCE, OUTPUT_ZEROS)
OF_SAMPLES = (GRADIENT, SQUARED_GRADIENT, INPUT_NORM, *OF_OUTPUTS)
# What others see.
SCALE, CHANNEL_VALUES, GENERATOR = "scale", "channel_values", "generator"
OF_CHANNELS = (CHANNEL_VALUES, SCALE, *OF_OUTPUTS)


def l1(values: Tensor) -> Tensor:
    """Sum of |w| (Han et al. 2015, https://arxiv.org/abs/1506.02626).

    For filters: Li et al. 2017, https://arxiv.org/abs/1608.08710.
    """
    return _sum(values.abs())


def l2(values: Tensor) -> Tensor:
    """Euclidean norm of the weights; of single weights it ranks as `l1` does."""
    return _sum(values.abs()) if values.shape[1] == 1 else values.square().sum(1).sqrt()


def random(values: Tensor, generator: Generator) -> Tensor:
    """Uniform in [0, 1): the baseline every criterion has to beat."""
    return values.new_empty(len(values)).uniform_(generator=generator)


def taylor(values: Tensor, gradient: Tensor) -> Tensor:
    """|sum of g w|: first-order change of the loss without the unit.

    Molchanov et al. 2019, https://arxiv.org/abs/1906.10771 (its square, which ranks alike).
    """
    return _sum(gradient * values).abs()


def snip(values: Tensor, gradient: Tensor) -> Tensor:
    """Sum of |g w|: connection sensitivity (Lee et al. 2019, https://arxiv.org/abs/1810.02340).

    Meant for models at initialisation (`base_epochs=0`).
    """
    return _sum((gradient * values).abs())


def fisher(values: Tensor, squared_gradient: Tensor) -> Tensor:
    """Sum of g^2 w^2 / 2: second-order change of the loss, by the diagonal of the Fisher matrix.

    Theis et al. 2018, https://arxiv.org/abs/1801.05787, with gradients of batches for samples'.
    """
    return _sum(squared_gradient * values.square()) / 2


def wanda(values: Tensor, input_norm: Tensor) -> Tensor:
    """Sum of |w| times the norm of its inputs (Sun et al. 2024, https://arxiv.org/abs/2306.11695).

    The paper compares the weights of an output with each other: `scope=row`.
    """
    return _sum(values.abs() * input_norm)


def lamp(layer_values: Tensor) -> Tensor:
    """w^2 / sum of the squares not smaller, in its layer: layer-adaptive magnitude.

    Lee et al. 2021, https://arxiv.org/abs/2010.07611; of channels with their squared norms.
    """
    return layer_adaptive(_sum(layer_values.square()).double())


def layer_adaptive(squares: Tensor) -> Tensor:
    """Each of a layer's squares (n,), float64, over the sum of those that are not smaller."""
    order = squares.argsort(stable=True)
    ordered = squares[order]
    sums = ordered.flip(0).cpu().cumsum(0).flip(0)  # on CUDA they differ from time to time
    shares = ordered / sums.to(ordered.device).clamp_min(1e-300)
    return squares.index_copy(0, order, shares)


def fpgm(channel_values: Tensor) -> Tensor:
    """Sum of the distances to the layer's other filters: what is near the geometric median goes.

    He et al. 2019, https://arxiv.org/abs/1811.00250.
    """
    import torch

    centred = channel_values - channel_values.mean(0)  # distances stay, and cancel less
    return torch.cdist(centred, centred).sum(1)


def bn_scale(scale: Tensor) -> Tensor:
    """Mean |gamma| of the unit's normalisation (Liu et al. 2017, https://arxiv.org/abs/1708.06519)."""
    return scale.abs().mean(1)


def variance(output_variance: Tensor) -> Tensor:
    """Variance of the output: a unit that hardly varies can be a constant.

    Polyak & Wolf 2015, https://doi.org/10.1109/ACCESS.2015.2494536; the 2020 study's future work.
    """
    return output_variance


def apoz(output_zeros: Tensor) -> Tensor:
    """Share of outputs that are not zero: 1 - APoZ (Hu et al. 2016, https://arxiv.org/abs/1607.03250)."""
    return 1 - output_zeros


def synflow(values: Tensor, flow_gradient: Tensor) -> Tensor:
    """Sum of |w dR/dw|: synaptic flow (Tanaka et al. 2020, https://arxiv.org/abs/2006.05467)."""
    return _sum((flow_gradient * values).abs())


def _sum(values: Tensor) -> Tensor:
    """(n, k) -> (n,); of single weights without a reduction, which is slow over one value."""
    return values.squeeze(1) if values.shape[1] == 1 else values.sum(1)


CRITERIA: dict[str, Criterion] = {
    "l1": l1,
    "l2": l2,
    "random": random,
    "taylor": taylor,
    "fisher": fisher,
    "wanda": wanda,
    "lamp": lamp,
    "fpgm": fpgm,
    "bn_scale": bn_scale,
    "variance": variance,
    "apoz": apoz,
    "snip": snip,
    "synflow": synflow,
}


@functools.cache
def needs(criterion: Criterion) -> tuple[str, ...]:
    """Names of what a criterion sees."""
    return tuple(inspect.signature(criterion).parameters)
