"""Criteria score units by the values they own; higher means keep."""

from __future__ import annotations

import pytest
import torch

from pruneflow.pruning.criteria import CRITERIA, Criterion, l1, l2, needs, random


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


VALUES = torch.tensor([[3.0, -4.0], [0.0, 1.0], [0.0, 0.0]])


def test_l1_is_the_sum_of_magnitudes() -> None:
    assert l1(VALUES).tolist() == [7.0, 1.0, 0.0]


def test_l2_is_the_euclidean_norm() -> None:
    assert l2(VALUES).tolist() == [5.0, 1.0, 0.0]


@pytest.mark.parametrize("criterion", [l1, l2])
def test_the_norm_of_a_single_weight_is_its_magnitude(criterion: Criterion) -> None:
    weights = torch.tensor([[-3.0], [0.0], [2.0**-100]])
    assert criterion(weights).tolist() == [3.0, 0.0, 2.0**-100]


def test_random_draws_one_score_a_unit() -> None:
    assert random(torch.zeros(5, 3), generator()).shape == (5,)


def test_random_is_reproduced_by_its_generator() -> None:
    weight = torch.ones(20, 1)
    assert torch.equal(random(weight, generator(7)), random(weight, generator(7)))


def test_random_differs_between_generators_and_between_draws_of_one() -> None:
    weight, one = torch.ones(20, 1), generator(7)
    first, second = random(weight, one), random(weight, one)
    assert not torch.equal(first, second)
    assert not torch.equal(first, random(weight, generator(8)))


def test_random_ignores_torchs_global_generator_and_leaves_it_alone() -> None:
    weight = torch.ones(20, 1)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = random(weight, generator(7))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(first, random(weight, generator(7)))


def test_random_is_uniform_in_the_unit_interval_whatever_the_weights() -> None:
    scores = random(torch.full((10_000, 1), -5.0), generator(3))
    assert float(scores.min()) >= 0
    assert float(scores.max()) < 1
    counts = torch.histc(scores, bins=10, min=0, max=1)
    assert int(counts.sum()) == 10_000
    # 1,000 expected in each of ten bins; the standard deviation is 30.
    assert int(counts.min()) > 850
    assert int(counts.max()) < 1150


def test_a_criterion_names_the_statistics_that_it_needs() -> None:
    assert needs(l1) == ("values",)
    assert needs(random) == ("values", "generator")


def test_the_registry_names_every_criterion() -> None:
    assert sorted(CRITERIA) == ["l1", "l2", "random"]
    assert [CRITERIA["l1"], CRITERIA["l2"], CRITERIA["random"]] == [l1, l2, random]


@pytest.mark.parametrize("name", sorted(CRITERIA))
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 12)])
def test_scores_are_one_a_unit_and_leave_the_values_as_they_were(
    name: str, shape: tuple[int, int]
) -> None:
    values = torch.randn(shape, generator=generator(2))
    before = values.clone()
    statistics = {"values": values, "generator": generator()}
    given = {statistic: statistics[statistic] for statistic in needs(CRITERIA[name])}
    assert CRITERIA[name](**given).shape == shape[:1]
    assert torch.equal(values, before)
