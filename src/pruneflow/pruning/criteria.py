"""Criteria: functions that score what could be pruned; higher means keep.

A criterion sees statistics of units and returns a score a unit. A unit is whatever is pruned as a
whole: a single weight (one entry), a filter or a head (many). It never chooses: selection does. To
add one, write the function and its row in CRITERIA; nothing else needs to know.

What `u` holds, by the names below, of n units with k entries each:

    values            (n, k)  the weights
    gradient          (n, k)  mean gradient of the loss over the calibration samples
    squared_gradient  (n, k)  mean over batches of the squared gradient of a batch's mean loss
    flow_gradient     (n, k)  gradient of the synaptic flow, which needs no samples
    input_norm        (n, k)  Euclidean norm of what was multiplied with the weight
    output_mean, output_variance, output_zeros  (n,)  of a channel's output, as the layers that
                              read it see it, over samples and positions; zeros as a share
    scale             (n, j)  weights of the unit's normalisation
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:  # torch takes seconds to import; names and help must not wait for it
    from torch import Generator, Tensor

    Score: TypeAlias = Callable[[Mapping[str, Tensor], Generator], Tensor]

VALUES, GRADIENT, SQUARED_GRADIENT = "values", "gradient", "squared_gradient"
FLOW_GRADIENT, SCALE = "flow_gradient", "scale"
INPUTS = "inputs"  # of each input column, whence the next ones
INPUT_NORM, OUTPUT_VARIANCE, OUTPUT_ZEROS = "input_norm", "output_variance", "output_zeros"
WEIGHT, CHANNEL = "weight", "channel"


@dataclass(frozen=True)
class Criterion:
    """A way to score units.

    Attributes:
        score: statistics and a seeded generator -> scores (n,).
        needs: the statistics that it sees.
        granularities: what it makes sense for.
        compares: whether it sees all units of a layer at once, since it compares them.
    """

    score: Score
    needs: tuple[str, ...] = (VALUES,)
    granularities: tuple[str, ...] = (WEIGHT, CHANNEL)
    compares: bool = False


def l1(u: Mapping[str, Tensor], generator: Generator) -> Tensor:
    """Sum of |w| (Han et al. 2015, https://arxiv.org/abs/1506.02626).

    For filters: Li et al. 2017, https://arxiv.org/abs/1608.08710.
    """
    return _sum(u["values"].abs())


def l2(u: Mapping[str, Tensor], generator: Generator) -> Tensor:
    """Euclidean norm of the weights; of single weights it ranks as `l1` does."""
    values = u["values"]
    return _sum(values.abs()) if values.shape[1] == 1 else values.square().sum(1).sqrt()


def random(u: Mapping[str, Tensor], generator: Generator) -> Tensor:
    """Uniform in [0, 1): the baseline every criterion has to beat."""
    values = u["values"]
    return values.new_empty(len(values)).uniform_(generator=generator)


def taylor(u: Mapping[str, Tensor], generator: Generator) -> Tensor:
    """|sum of g w|: first-order change of the loss without the unit.

    Molchanov et al. 2019, https://arxiv.org/abs/1906.10771 (its square, which ranks alike).
    """
    return _sum(u["gradient"] * u["values"]).abs()


def snip(u: Mapping[str, Tensor], generator: Generator) -> Tensor:
    """Sum of |g w|: connection sensitivity (Lee et al. 2019, https://arxiv.org/abs/1810.02340).

    Meant for models at initialisation (`base_epochs=0`).
    """
    return _sum((u["gradient"] * u["values"]).abs())


def fisher(u: Mapping[str, Tensor], generator: Generator) -> Tensor:
    """Sum of g^2 w^2 / 2: second-order change of the loss, by the diagonal of the Fisher matrix.

    Theis et al. 2018, https://arxiv.org/abs/1801.05787, with gradients of batches for samples'.
    """
    return _sum(u["squared_gradient"] * u["values"].square()) / 2


def wanda(u: Mapping[str, Tensor], generator: Generator) -> Tensor:
    """Sum of |w| times the norm of its inputs (Sun et al. 2024, https://arxiv.org/abs/2306.11695).

    The paper compares the weights of an output with each other: `scope=row`.
    """
    return _sum(u["values"].abs() * u["input_norm"])


def lamp(u: Mapping[str, Tensor], generator: Generator) -> Tensor:
    """w^2 / sum of the squares not smaller, in its layer: layer-adaptive magnitude.

    Lee et al. 2021, https://arxiv.org/abs/2010.07611; of channels with their squared norms.
    """
    squares = _sum(u["values"].square()).double()
    order = squares.argsort(stable=True)
    not_smaller = squares[order].flip(0).cumsum(0).flip(0)
    scores = squares.new_zeros(len(squares))
    scores[order] = squares[order] / not_smaller.clamp_min(1e-300)
    return scores


def fpgm(u: Mapping[str, Tensor], generator: Generator) -> Tensor:
    """Sum of the distances to the layer's other filters: what is near the geometric median goes.

    He et al. 2019, https://arxiv.org/abs/1811.00250.
    """
    import torch

    return torch.cdist(u["values"], u["values"], compute_mode="donot_use_mm_for_euclid_dist").sum(1)


def bn_scale(u: Mapping[str, Tensor], generator: Generator) -> Tensor:
    """Mean |gamma| of the unit's normalisation (Liu et al. 2017, https://arxiv.org/abs/1708.06519)."""
    return u["scale"].abs().mean(1)


def variance(u: Mapping[str, Tensor], generator: Generator) -> Tensor:
    """Variance of the output: a unit that hardly varies can be a constant.

    Polyak & Wolf 2015, https://doi.org/10.1109/ACCESS.2015.2494536; the 2020 study's future work.
    """
    return u["output_variance"]


def apoz(u: Mapping[str, Tensor], generator: Generator) -> Tensor:
    """Share of outputs that are not zero: 1 - APoZ (Hu et al. 2016, https://arxiv.org/abs/1607.03250)."""
    return 1 - u["output_zeros"]


def synflow(u: Mapping[str, Tensor], generator: Generator) -> Tensor:
    """Sum of |w dR/dw|: synaptic flow (Tanaka et al. 2020, https://arxiv.org/abs/2006.05467)."""
    return _sum((u["flow_gradient"] * u["values"]).abs())


def _sum(values: Tensor) -> Tensor:
    """(n, k) -> (n,); of single weights without a reduction, which is slow over one value."""
    return values.squeeze(1) if values.shape[1] == 1 else values.sum(1)


_OF_CHANNELS = (CHANNEL,)
CRITERIA: dict[str, Criterion] = {
    "l1": Criterion(l1),
    "l2": Criterion(l2),
    "random": Criterion(random),
    "taylor": Criterion(taylor, (VALUES, GRADIENT)),
    "fisher": Criterion(fisher, (VALUES, SQUARED_GRADIENT)),
    "wanda": Criterion(wanda, (VALUES, INPUT_NORM)),
    "lamp": Criterion(lamp, compares=True),
    "fpgm": Criterion(fpgm, granularities=_OF_CHANNELS, compares=True),
    "bn_scale": Criterion(bn_scale, (SCALE,), _OF_CHANNELS),
    "variance": Criterion(variance, (OUTPUT_VARIANCE,), _OF_CHANNELS),
    "apoz": Criterion(apoz, (OUTPUT_ZEROS,), _OF_CHANNELS),
    "snip": Criterion(snip, (VALUES, GRADIENT)),
    "synflow": Criterion(synflow, (VALUES, FLOW_GRADIENT)),
}
