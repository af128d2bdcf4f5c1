"""Schedules: how far each level prunes."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruneflow.pruning.schedule import UNPRUNED, Step, direct, iterative

fractions = st.floats(0.01, 0.99)


def test_three_halvings_by_hand() -> None:
    assert iterative(0.5, 3) == [Step(1, 0.5, 0.5), Step(2, 0.5, 0.75), Step(3, 0.5, 0.875)]


def test_direct_is_one_level_to_the_target() -> None:
    assert direct(0.9) == [Step(1, 0.9, 0.9)]


def test_the_unpruned_level_removes_nothing() -> None:
    assert Step(0, 0.0, 0.0) == UNPRUNED


def test_no_iterations_is_no_level() -> None:
    assert iterative(0.5, 0) == []


@given(fraction=fractions)
def test_one_iteration_equals_direct(fraction: float) -> None:
    (one,), (other,) = iterative(fraction, 1), direct(fraction)
    assert (one.level, one.fraction) == (other.level, other.fraction)
    assert one.target_sparsity == pytest.approx(other.target_sparsity, abs=1e-12)


@given(fraction=fractions, iterations=st.integers(2, 12))
def test_each_level_removes_the_fraction_of_what_the_one_before_left(
    fraction: float, iterations: int
) -> None:
    steps = iterative(fraction, iterations)
    assert [step.level for step in steps] == list(range(1, iterations + 1))
    assert {step.fraction for step in steps} == {fraction}
    left = 1.0
    for step in steps:
        left *= 1 - fraction
        assert 1 - step.target_sparsity == pytest.approx(left, abs=1e-9)


@given(fraction=st.floats(0.05, 0.6), iterations=st.integers(2, 12))
def test_sparsity_rises_and_stays_below_one(fraction: float, iterations: int) -> None:
    targets = [step.target_sparsity for step in iterative(fraction, iterations)]
    assert all(a < b for a, b in itertools.pairwise(targets))
    assert targets[0] > 0
    assert targets[-1] < 1


def test_a_step_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        UNPRUNED.level = 1  # type: ignore[misc]
