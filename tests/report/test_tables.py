"""Tables of the report: rows that agree with the runs they are of."""

from __future__ import annotations

import pytest
from frames import Frames
from records import level

from pruneflow.report import tables
from pruneflow.report.evidence import at_cost


def test_iterative_minus_direct_is_the_difference_that_is_told() -> None:
    runs = Frames()
    for seed, after in enumerate((0.8, 0.2)):
        levels = [level(0, 1.0, 0.9), level(1, 0.5, after)]
        runs.prune(levels, seed=seed, base=f"b{seed}")
    direct = [level(0, 1.0, 0.9), level(1, 0.5, 0.7)]
    runs.prune(direct, stage="prune_direct", iterations=1, base="b0")
    table = tables.iterative_against_direct(runs.evidence())
    (row,) = table[table["measure"] == "test_after"].to_dict("records")
    assert (row["iterative"], row["direct"], row["pairs"]) == pytest.approx((0.8, 0.7, 1))
    assert row["difference"] == pytest.approx(0.1)


def test_differences_are_from_the_control_that_was_trained_as_long() -> None:
    runs = Frames()
    runs.prune([level(0, 1.0, 0.9), level(1, 0.5, 0.8)], finetune_epochs=1)
    runs.prune([level(0, 1.0, 0.9), level(1, 1.0, 0.85)], fraction=0, finetune_epochs=1)
    runs.prune([level(0, 1.0, 0.9), level(1, 1.0, 0.95)], fraction=0, finetune_epochs=9)
    table = tables.paired_differences(runs.evidence())
    assert table["mean"].tolist() == pytest.approx([0.0, -0.05])


def test_the_best_at_a_cost_is_named_with_the_interval_that_decides_it() -> None:
    for spread, decided in ((0.0, "yes"), (0.3, "no")):
        runs = Frames()
        for seed in range(3):
            for criterion, gain in (("l2", 0.1 + spread * (seed - 1)), ("random", 0.0)):
                levels = [level(0, 1.0, 0.9), level(1, 0.5, 0.6 + gain), level(2, 0.25, 0.4 + gain)]
                runs.prune(levels, criterion=criterion, seed=seed, base=f"b{seed}")
        table = tables.best_at_cost(runs.evidence())
        params = table[table["cost"] == "parameters"].set_index("share")
        assert params.index.tolist() == [0.5, 0.25]  # and none beyond what was measured
        assert params["accuracy"].tolist() == pytest.approx([0.7, 0.5])
        assert params["mean"].tolist() == pytest.approx([0.1, 0.1])
        assert params["n"].tolist() == [3, 3]
        assert params["decided"].tolist() == [decided] * 2
        assert all("l2" in name for name in params["best"])


def test_accuracy_at_a_cost_lies_between_levels() -> None:
    runs = Frames()
    runs.prune([level(0, 1.0, 0.9), level(1, 0.5, 0.8), level(2, 0.125, 0.4)])
    evidence = runs.evidence()
    half_way = at_cost(evidence.pruned, "params_left", 0.25)
    assert half_way["test_after"].tolist() == pytest.approx([0.6])
    for beyond in (0.9, 0.1):
        assert at_cost(evidence.pruned, "params_left", beyond).empty
