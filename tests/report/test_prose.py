"""What people are told of a run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pruneflow.config import PruneConfig
from pruneflow.report import prose
from pruneflow.resolution import resolve

CHANNEL = {"granularity": "channel", "model": "resnet18"}


@pytest.mark.parametrize(
    ("given", "limit"),
    [
        ({}, None),
        ({}, 0.9),
        (CHANNEL, None),
        (CHANNEL, 0.9),
        (CHANNEL | {"coupling": "independent"}, None),  # each layer loses the same
    ],
)
def test_what_falls_short_names_the_limit_of_a_layer_where_there_is_one(
    given: dict[str, Any], limit: float | None
) -> None:
    config = resolve(PruneConfig, {**given, "iterations": 1, "max_layer_sparsity": limit})
    level: Any = SimpleNamespace(target_sparsity=0.5, budget_target=None, budget_achieved=None)
    units: Any = SimpleNamespace(
        pruned_shares=lambda: {"units": 0.3}, masks=SimpleNamespace(total=1, kept=1)
    )
    (line,) = prose.warnings(config, units, level, [])
    assert line.startswith("asked to remove 0.5000 of units, removed 0.3000: whole ")
    assert ("no layer further than max_layer_sparsity=0.9" in line) == (limit is not None)
