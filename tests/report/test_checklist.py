"""The checklist: each item met and not met, by what the runs hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from frames import ENVIRONMENT, Frames
from records import level

from pruneflow.report.checklist import CHECKLIST, Item, check

SIX = tuple(level(n, 0.5**n, 0.9 - 0.01 * n) for n in range(6))


def items(runs: Frames) -> dict[str, Item]:
    return {item.name: item for item in check(runs.evidence())}


def sound() -> Frames:
    """Three seeds of L1, random and a control that is trained as long."""
    runs = Frames()
    for seed in (0, 1, 2):
        for how in ({}, {"criterion": "random"}, {"fraction": 0}):
            runs.prune(SIX, seed=seed, base=f"b{seed}", **how)
    return runs


def test_a_sound_study_meets_all() -> None:
    found = items(sound())
    assert list(found) == list(CHECKLIST)
    assert all(item.met for item in found.values())
    assert "3 to 3 seeds" in found["Several seeds, with spread"].why
    assert "32.0 x fewer parameters" in found["Compression ratio and theoretical speed-up"].why


def test_without_runs_nothing_is_met() -> None:
    assert not [item.name for item in items(Frames()).values() if item.met]


def _short(runs: Frames) -> None:
    runs.prune(SIX[:3], iterations=2)


def _levels(**given: Any) -> Any:
    def add(runs: Frames) -> None:
        runs.prune([replace(one, **given) for one in SIX], seed=3, base="b3")

    return add


def _environment(**given: object) -> Any:
    def put(runs: Frames) -> None:
        runs.environment = ENVIRONMENT | given

    return put


def _unnamed(runs: Frames) -> None:
    runs.prune(SIX)
    runs.rows["runs"][-1]["weights"] = None


SPOILED = [
    ("Architecture and data named exactly", _unnamed, "unnamed"),
    ("Compression ratio and theoretical speed-up", _levels(macs_left=float("nan")), "6 of 60"),
    ("At least five operating points", _short, "fewer than 5"),
    ("Dense control", lambda r: r.prune(SIX, model="vgg16"), "none of vgg16 on digits"),
    ("Dense control", lambda r: r.prune(SIX, finetune_epochs=50), "250"),
    ("Random and magnitude baselines", lambda r: r.prune(SIX, model="vgg16"), "vgg16 on digits"),
    ("Several seeds, with spread", lambda r: r.prune(SIX, iterations=7), "in 1 of 4"),
    ("Raw accuracies as well as differences", lambda r: r.prune(SIX[1:], seed=4), "1 runs"),
    ("Achieved sparsity", _levels(target_sparsity=float("nan")), "5 levels"),
    ("Same code and data for all", lambda r: r.prune(SIX, train_limit=7), "train_limit"),
    (
        "Same code and data for all",
        _environment(git={"commit": "c", "dirty": True}),
        "not committed",
    ),
    ("Same code and data for all", _environment(git=None), "the commit of some runs is not known"),
    ("Hardware and versions", _environment(cpu=None), "lacks"),
    ("MAC convention", _levels(macs=7000), "several counts"),
]


@pytest.mark.parametrize(("name", "spoil", "why"), SPOILED)
def test_an_item_is_not_met_where_one_run_breaks_it(name: str, spoil: Any, why: str) -> None:
    runs = sound()
    spoil(runs)
    found = items(runs)[name]
    assert not found.met
    assert why in found.why


def test_every_item_has_been_seen_not_met() -> None:
    assert {name for name, _, _ in SPOILED} == set(CHECKLIST)


def test_other_resolutions_may_have_other_macs() -> None:
    runs = sound()
    runs.prune([replace(one, macs=9000) for one in SIX], image_size=96)
    assert items(runs)["MAC convention"].met
