"""Schedules: how far each level prunes."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruneflow.pruning.masks import Masks
from pruneflow.pruning.schedule import SCHEDULES, UNPRUNED, Step, cubic, direct, iterative, linear
from pruneflow.pruning.selection import select

fractions = st.floats(0.01, 0.99)
schedules = st.sampled_from(sorted(SCHEDULES))


def test_three_halvings_by_hand() -> None:
    assert iterative(0.5, 3) == [Step(1, 0.5, 0.5), Step(2, 0.5, 0.75), Step(3, 0.5, 0.875)]


def test_linear_and_cubic_to_three_quarters_by_hand() -> None:
    assert linear(0.5, 2) == [Step(1, 0.375, 0.375), Step(2, 0.6, 0.75)]
    targets = [0.75 * (1 - 1 / 8), 0.75]
    assert [step.target_sparsity for step in cubic(0.5, 2)] == targets
    assert cubic(0.5, 2)[1].fraction == pytest.approx(0.09375 / (1 - targets[0]), abs=1e-15)


def test_direct_is_one_level_to_the_target() -> None:
    assert direct(0.9) == [Step(1, 0.9, 0.9)]


def test_the_unpruned_level_removes_nothing() -> None:
    assert Step(0, 0.0, 0.0) == UNPRUNED


def test_no_iterations_is_no_level() -> None:
    assert iterative(0.5, 0) == []


@given(fraction=fractions, name=schedules)
def test_one_iteration_equals_direct(fraction: float, name: str) -> None:
    assert iterative(fraction, 1, name) == direct(fraction)


@given(fraction=fractions, iterations=st.integers(2, 12))
def test_each_geometric_level_removes_the_fraction_of_what_the_one_before_left(
    fraction: float, iterations: int
) -> None:
    steps = iterative(fraction, iterations)
    assert [step.level for step in steps] == list(range(1, iterations + 1))
    assert {step.fraction for step in steps} == {fraction}
    left = 1.0
    for step in steps:
        left *= 1 - fraction
        assert 1 - step.target_sparsity == pytest.approx(left, abs=1e-9)


@given(fraction=st.floats(0.05, 0.6), iterations=st.integers(2, 12), name=schedules)
def test_sparsity_rises_to_where_the_geometric_levels_end(
    fraction: float, iterations: int, name: str
) -> None:
    steps = iterative(fraction, iterations, name)
    targets = [step.target_sparsity for step in steps]
    assert all(a < b for a, b in itertools.pairwise([0.0, *targets]))
    assert targets[-1] == iterative(fraction, iterations)[-1].target_sparsity < 1
    left = 1.0
    for step in steps:
        left *= 1 - step.fraction
        assert 1 - step.target_sparsity == pytest.approx(left, abs=1e-9)


@given(iterations=st.integers(2, 12), fraction=st.floats(0.05, 0.6))
def test_cubic_is_ahead_of_linear_and_slows_down(iterations: int, fraction: float) -> None:
    targets = [0.0, *(step.target_sparsity for step in cubic(fraction, iterations))]
    even = [0.0, *(step.target_sparsity for step in linear(fraction, iterations))]
    assert all(a > b for a, b in zip(targets[1:-1], even[1:-1], strict=True))
    removed = [b - a for a, b in itertools.pairwise(targets)]
    assert all(a > b for a, b in itertools.pairwise(removed))


@given(
    entries=st.integers(1, 400), fraction=fractions, iterations=st.integers(1, 9), name=schedules
)
def test_levels_remove_as_many_as_one_that_goes_straight_there_but_for_rounding(
    entries: int, fraction: float, iterations: int, name: str
) -> None:
    def left(steps: list[Step]) -> Masks:
        masks = Masks.keep_all({"w": torch.empty(entries)})
        for step in steps:
            masks = select(
                masks, lambda _: scores.__getitem__, fraction=step.fraction, scope="global"
            )
        return masks

    scores = torch.rand(entries, generator=torch.Generator().manual_seed(entries))
    steps = iterative(fraction, iterations, name)
    by_levels, at_once = left(steps), left(direct(steps[-1].target_sparsity))
    # a level is half an entry off at the most, of which the next ones remove their share too
    assert abs(by_levels.kept - at_once.kept) <= (iterations + 1) / 2
    fewer, more = sorted((by_levels["w"], at_once["w"]), key=lambda m: int(m.sum()))
    assert not (fewer & ~more).any()


def test_a_step_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        UNPRUNED.level = 1  # type: ignore[misc]
