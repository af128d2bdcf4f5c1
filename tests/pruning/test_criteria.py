"""Criteria score one tensor; higher means keep."""

from __future__ import annotations

import pytest
import torch

from pruneflow.pruning.criteria import CRITERIA, l1, l2, random


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_l1_is_the_magnitude() -> None:
    weight = torch.tensor([[-3.0, 0.0], [0.5, 2.0]])
    assert l1(weight, generator()).tolist() == [[3.0, 0.0], [0.5, 2.0]]


def test_l2_is_the_squared_magnitude() -> None:
    weight = torch.tensor([[-3.0, 0.0], [0.5, 2.0]])
    assert l2(weight, generator()).tolist() == [[9.0, 0.0], [0.25, 4.0]]


def test_l1_and_l2_rank_single_weights_alike() -> None:
    weight = torch.randn(300, generator=generator(1))
    assert torch.equal(l1(weight, generator()).argsort(), l2(weight, generator()).argsort())


def test_random_is_reproduced_by_its_generator() -> None:
    weight = torch.ones(4, 5)
    assert torch.equal(random(weight, generator(7)), random(weight, generator(7)))


def test_random_differs_between_generators_and_between_draws_of_one() -> None:
    weight, one = torch.ones(4, 5), generator(7)
    first, second = random(weight, one), random(weight, one)
    assert not torch.equal(first, second)
    assert not torch.equal(first, random(weight, generator(8)))


def test_random_ignores_torchs_global_generator_and_leaves_it_alone() -> None:
    weight = torch.ones(4, 5)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = random(weight, generator(7))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(first, random(weight, generator(7)))


def test_random_is_uniform_in_the_unit_interval_whatever_the_weights() -> None:
    scores = random(torch.full((100, 100), -5.0), generator(3))
    assert float(scores.min()) >= 0
    assert float(scores.max()) < 1
    counts = torch.histc(scores, bins=10, min=0, max=1)
    assert int(counts.sum()) == 10_000
    # 1,000 expected in each of ten bins; the standard deviation is 30.
    assert int(counts.min()) > 850
    assert int(counts.max()) < 1150


def test_the_registry_names_every_criterion() -> None:
    assert sorted(CRITERIA) == ["l1", "l2", "random"]
    assert [CRITERIA["l1"], CRITERIA["l2"], CRITERIA["random"]] == [l1, l2, random]


@pytest.mark.parametrize("name", sorted(CRITERIA))
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (4, 3, 2, 2)])
def test_scores_have_the_weights_shape_and_leave_it_as_it_was(
    name: str, shape: tuple[int, ...]
) -> None:
    weight = torch.randn(shape, generator=generator(2))
    before = weight.clone()
    assert CRITERIA[name](weight, generator()).shape == shape
    assert torch.equal(weight, before)
