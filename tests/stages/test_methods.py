"""Criteria that see data and densities, through whole runs: the same again, and what was asked."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

import pruneflow
from tests.stages.test_prune import TIMES, UNTRAINED

METHODS: list[dict[str, Any]] = [
    {"criterion": "taylor"},
    {"criterion": "wanda", "scope": "row"},
    {"criterion": "synflow", "scope": "erk"},
    {"criterion": "fisher", "scope": "lamp", "max_layer_sparsity": 0.8},
    {"criterion": "apoz", "granularity": "channel", "form": "compact", "iterations": 2},
    {"criterion": "bn_scale", "granularity": "channel"},
    {"criterion": "l2", "schedule": "cubic", "iterations": 2},
    {"criterion": "wanda", "pattern": "1:4", "iterations": 3},
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: "-".join(map(str, method.values())))
def test_a_method_prunes_what_is_asked_and_the_same_again(
    folder: object, method: dict[str, Any]
) -> None:
    few = {"iterations": 1, "fraction": 0.4, "train_limit": 100}
    given = UNTRAINED | few | method
    if "pattern" in method:
        del given["fraction"]
    if method["criterion"] in ("taylor", "wanda", "fisher", "apoz"):
        given["calibration_samples"] = 60
    levels = pruneflow.prune_iterative(**given).levels
    if method in METHODS[:4]:
        again = pruneflow.prune_iterative(resume="never", **given).levels
        pd.testing.assert_frame_equal(levels.drop(columns=TIMES), again.drop(columns=TIMES))
    if "pattern" in method:
        assert levels["target_sparsity"].iloc[-1] == pytest.approx(0.75, abs=1e-12)
        # 3 of 4, 2 of 4, 1 of 4; the first layer has no whole block, depthwise ones neither
        assert levels["sparsity"].tolist() == pytest.approx([0, 0.25, 0.5, 0.75], abs=0.03)
    elif "schedule" in method:
        final = 1 - 0.6**2
        expected = [0, final * (1 - 1 / 8), final]
        assert levels["sparsity"].tolist() == pytest.approx(expected, abs=2e-3)
        assert levels["target_sparsity"].tolist() == pytest.approx(expected, abs=1e-12)
    elif "granularity" not in method:
        assert levels["sparsity"].tolist() == pytest.approx([0, 0.4], abs=2e-3)
    else:
        expected = [0.6**level for level in levels["level"]]
        assert levels["channels_left"].tolist() == pytest.approx(expected, abs=0.02)
