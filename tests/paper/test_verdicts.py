"""Verdicts: decided by intervals over seeds, and by nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pruneflow.paper.verdicts import LEAST_SEEDS, Comparison, joint, reason, table

VALUES = st.lists(st.floats(-1, 1).map(lambda x: round(x, 3)), min_size=1, max_size=8)


@given(VALUES, st.floats(-1, 1), st.booleans())
def test_a_decision_needs_three_seeds_and_the_whole_interval_on_one_side(
    values: list[float], edge: float, above: bool
) -> None:
    found = Comparison.of("x", values, edge, above=above)
    if len(values) < LEAST_SEEDS:
        assert found.outcome == "undecided"
        return
    sides = {math.copysign(1, end - edge) for end in (found.low, found.high)}
    if found.low < edge < found.high:
        assert found.outcome == "undecided"
    elif edge not in (found.low, found.high):
        assert sides == {1.0 if (found.outcome == "confirmed") is above else -1.0}


@given(VALUES, st.floats(-1, 1))
def test_the_opposite_claim_has_the_opposite_outcome(values: list[float], edge: float) -> None:
    opposite = {"confirmed": "refuted", "refuted": "confirmed", "undecided": "undecided"}
    found = Comparison.of("x", values, edge, above=True)
    if edge not in (found.low, found.high):
        assert Comparison.of("x", values, edge, above=False).outcome == opposite[found.outcome]


def test_the_interval_is_students() -> None:
    values = [0.61, 0.6, 0.64, 0.58]
    found = Comparison.of("x", values, 0.5, above=True)
    expected = stats.ttest_1samp(values, 0.5).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_the_interval_of_a_difference_is_welchs() -> None:
    ones, others = [0.61, 0.6, 0.64, 0.58], [0.5, 0.56, 0.48]
    found = Comparison.between("x", ones, others, above=True)
    expected = stats.ttest_ind(ones, others, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.n == 3


def test_equal_values_of_three_seeds_decide() -> None:
    assert Comparison.of("x", [0.5] * 3, 0.25, above=True).outcome == "confirmed"
    assert Comparison.of("x", [0.25] * 3, 0.25, above=True).outcome == "refuted"  # not above it
    assert Comparison.between("x", [0.5] * 3, [0.25] * 3, above=True).outcome == "confirmed"


@pytest.mark.parametrize("values", [[0.02, 0.0, 0.01], [0.011, 0.0, 0.02, 0.012]])
def test_as_many_seeds_as_it_names_decide_and_fewer_do_not(values: list[float]) -> None:
    found = Comparison.of("x", values, 0.0, above=True)
    assert found.outcome == "undecided"
    named = int(found.seeds_to_decide.split()[1])
    for n, decided in ((named, True), (named - 1, False)):
        shape = stats.norm.ppf((np.arange(n) + 0.5) / n)
        scaled = found.mean + found.sd * (shape - shape.mean()) / shape.std(ddof=1)
        outcome = Comparison.of("x", scaled, 0.0, above=True).outcome
        assert (outcome == "confirmed") is decided


def test_one_seed_names_no_spread() -> None:
    found = Comparison.of("accuracy", [0.02], 0.0, above=True)
    assert math.isnan(found.low)
    assert str(found) == (
        "accuracy +2.0 points (claimed: above +0; n = 1 seed), to be decided by 3 seeds at least"
    )
    assert "more than 1,000 seeds" in str(Comparison.of("x", [-0.3, 0.3, 0.001], 0.0, above=True))


def test_a_joint_statement_is_as_strong_as_its_weakest_part() -> None:
    sure = Comparison.of("sure", [0.2] * 3, 0.0, above=True)
    open_ = Comparison.of("open", [0.2], 0.0, above=True)
    wrong = Comparison.of("wrong", [0.2] * 3, 0.0, above=False)
    assert joint([sure, sure]) == "confirmed"
    assert joint([sure, open_]) == "undecided"
    assert joint([sure, open_, wrong]) == "refuted"
    assert reason([sure, open_, wrong, sure, sure]).startswith("wrong")
    assert reason([sure, open_, wrong, sure, sure]).endswith("and 1 more")
    assert table([sure, wrong])["outcome"].tolist() == ["confirmed", "refuted"]
    for empty in (joint, lambda nothing: Comparison.of("x", nothing, 0.0, above=True)):
        with pytest.raises(ValueError, match="no "):
            empty([])
