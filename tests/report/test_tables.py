"""Tables of the report: rows that agree with the runs they are of."""

from __future__ import annotations

import pytest
from frames import Frames
from records import level

from pruneflow.report import tables


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
