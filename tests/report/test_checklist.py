"""The checklist: each item met and not met, by what the runs hold."""

from __future__ import annotations

import pytest
from records import level, prune

from pruneflow.report import evidence
from pruneflow.report.checklist import CHECKLIST, Item, check

SIX = tuple(level(n, 0.5**n, 0.9 - 0.01 * n) for n in range(6))


def items() -> dict[str, Item]:
    return {item.name: item for item in check(evidence.read("x"))}


@pytest.fixture
def sound(store: str) -> dict[str, Item]:
    """What three seeds of L1, random and a control make of the list."""
    for seed in (0, 1, 2):
        for how in ({}, {"criterion": "random"}, {"fraction": 0}):
            prune(SIX, seed=seed, base=f"b{seed}", **how)
    return items()


def test_a_sound_study_meets_all_but_what_depends_on_the_checkout(sound: dict[str, Item]) -> None:
    unmet = {name for name, item in sound.items() if not item.met}
    assert unmet <= {"Same code and data for all"}  # the tests' source may be uncommitted
    assert list(sound) == list(CHECKLIST)
    assert "3 to 3 seeds" in sound["Several seeds, with spread"].why


def test_one_short_run_fails_what_it_lacks(store: str) -> None:
    prune(SIX[:3])
    prune(SIX[:3], train_limit=100, base="other", seed=1)
    found = items()
    for name in (
        "At least five operating points",
        "Dense control",
        "Random and magnitude baselines",
        "Several seeds, with spread",
        "Same code and data for all",
    ):
        assert not found[name].met, name
    assert "fraction=0" in found["Dense control"].why
    assert "train_limit" in found["Same code and data for all"].why


def test_runs_without_their_unpruned_level_give_no_differences(store: str) -> None:
    prune(SIX[1:])
    assert not items()["Raw accuracies as well as differences"].met


def test_two_counts_of_macs_for_one_model_are_no_convention(store: str) -> None:
    prune(SIX)
    prune([level(n, 0.5**n, 0.9, macs=7000) for n in range(6)], seed=1)
    assert not items()["MAC convention"].met
