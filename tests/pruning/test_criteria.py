"""Criteria score units by what they may see of them; higher means keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pruneflow.pruning.criteria import CRITERIA, needs


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def score(name: str, seed: int = 0, **statistics: Tensor) -> Tensor:
    if "generator" in needs(CRITERIA[name]):
        return CRITERIA[name](**statistics, generator=generator(seed))
    return CRITERIA[name](**statistics)


VALUES = torch.tensor([[3.0, -4.0], [0.0, 1.0], [0.0, 0.0]])
GRADIENT = torch.tensor([[2.0, 1.0], [5.0, -3.0], [7.0, 7.0]])


def by_hand(name: str, **statistics: Tensor) -> list[float]:
    return [float(value) for value in score(name, **statistics)]


def test_l1_is_the_sum_of_magnitudes() -> None:
    assert by_hand("l1", values=VALUES) == [7.0, 1.0, 0.0]


def test_l2_is_the_euclidean_norm() -> None:
    assert by_hand("l2", values=VALUES) == [5.0, 1.0, 0.0]


def test_taylor_is_the_magnitude_of_the_first_order_change() -> None:
    assert by_hand("taylor", values=VALUES, gradient=GRADIENT) == [2.0, 3.0, 0.0]  # |6 - 4|, |-3|


def test_snip_is_the_sum_of_connection_sensitivities() -> None:
    assert by_hand("snip", values=VALUES, gradient=GRADIENT) == [10.0, 3.0, 0.0]


def test_fisher_is_half_the_squared_gradient_times_the_squared_weight() -> None:
    squared = torch.tensor([[2.0, 1.0], [5.0, 4.0], [7.0, 7.0]])
    assert by_hand("fisher", values=VALUES, squared_gradient=squared) == [17.0, 2.0, 0.0]


def test_wanda_is_the_magnitude_times_the_norm_of_the_inputs() -> None:
    norms = torch.tensor([[10.0, 100.0], [10.0, 100.0], [10.0, 100.0]])
    assert by_hand("wanda", values=VALUES, input_norm=norms) == [430.0, 100.0, 0.0]


def test_lamp_divides_by_all_that_is_not_smaller() -> None:
    weights = torch.tensor([[2.0], [-1.0], [3.0], [0.0]])
    assert by_hand("lamp", layer_values=weights) == pytest.approx([4 / 13, 1 / 14, 1.0, 0.0])


def test_lamp_scores_the_largest_of_every_layer_alike() -> None:
    for scale in (1e-3, 1.0, 1e6):
        assert float(score("lamp", layer_values=scale * torch.randn(50, 1)).max()) == 1.0


def test_fpgm_is_the_sum_of_distances_to_the_others() -> None:
    filters = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 8.0]])
    assert by_hand("fpgm", channel_values=filters) == pytest.approx([13.0, 10.0, 13.0])


def test_synflow_is_the_flow_through_a_unit() -> None:
    assert by_hand("synflow", values=VALUES, flow_gradient=GRADIENT.abs()) == [10.0, 3.0, 0.0]


def test_bn_scale_is_the_mean_magnitude_of_gamma() -> None:
    assert by_hand("bn_scale", scale=torch.tensor([[-2.0], [0.5]])) == [2.0, 0.5]
    assert by_hand("bn_scale", scale=torch.tensor([[-2.0, 1.0], [0.5, 0.5]])) == [1.5, 0.5]


def test_variance_and_apoz_are_of_outputs() -> None:
    assert by_hand("variance", output_variance=torch.tensor([0.5, 2.0])) == [0.5, 2.0]
    assert by_hand("apoz", output_zeros=torch.tensor([0.25, 1.0])) == [0.75, 0.0]


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_the_norm_of_a_single_weight_is_its_magnitude(name: str) -> None:
    weights = torch.tensor([[-3.0], [0.0], [2.0**-100]])
    assert score(name, values=weights).tolist() == [3.0, 0.0, 2.0**-100]


def test_random_is_reproduced_by_its_generator_alone() -> None:
    weight = torch.ones(20, 1)
    assert torch.equal(score("random", 7, values=weight), score("random", 7, values=weight))
    assert not torch.equal(score("random", 7, values=weight), score("random", 8, values=weight))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    score("random", 7, values=weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_random_is_uniform_in_the_unit_interval_whatever_the_weights() -> None:
    scores = score("random", 3, values=torch.full((10_000, 1), -5.0))
    assert float(scores.min()) >= 0
    assert float(scores.max()) < 1
    counts = np.histogram(scores.numpy(), bins=10, range=(0, 1))[0]
    # 1,000 expected in each of ten bins; the standard deviation is 30.
    assert counts.min() > 850
    assert counts.max() < 1150


def statistics(units: int, entries: int) -> dict[str, Tensor]:
    """One of everything that a criterion can need."""
    draws = generator(2)
    signed = ("values", "layer_values", "channel_values", "gradient", "scale")
    found = {name: torch.randn(units, entries, generator=draws) for name in signed}
    for name in ("squared_gradient", "flow_gradient", "input_norm"):
        found[name] = torch.rand(units, entries, generator=draws)
    return found | {
        name: torch.rand(units, generator=draws) for name in ("output_variance", "output_zeros")
    }


@pytest.mark.parametrize("name", sorted(CRITERIA))
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 12)])
def test_a_criterion_sees_what_it_names_and_changes_nothing(
    name: str, shape: tuple[int, int]
) -> None:
    everything = statistics(*shape)
    needed = {key: everything[key] for key in needs(CRITERIA[name]) if key in everything}
    before = {key: value.clone() for key, value in needed.items()}
    scores = score(name, **needed)
    assert scores.shape == shape[:1]
    assert bool((scores >= 0).all())
    assert all(torch.equal(before[key], needed[key]) for key in needed)


@pytest.mark.parametrize("name", sorted(set(CRITERIA) - {"random"}))
def test_the_order_of_units_does_not_matter(name: str) -> None:
    everything = statistics(7, 5)
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    needed = {key: everything[key] for key in needs(CRITERIA[name])}
    shuffled = {key: value[order] for key, value in needed.items()}
    torch.testing.assert_close(score(name, **shuffled), score(name, **needed)[order])


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_a_criterion_names_its_source(name: str) -> None:
    assert CRITERIA[name].__doc__
