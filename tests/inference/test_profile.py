"""Where a form's time goes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pruneflow.inference.profile import layer_times, reach

DENSE = {"a": 6.0, "b": 1.0, "c": 2.0}
FORM = {"a": 3.0, "b": 0.5, "c": 2.0}


def test_pruning_reaches_the_share_of_time_that_pruned_layers_take() -> None:
    reached = reach(
        FORM,
        DENSE,
        10.0,
        macs={"a.v": 15.0, "a.w": 5.0, "c.w": 50.0},
        dense_macs={"a.v": 60.0, "a.w": 20.0, "c.w": 50.0},
        pruned={"a"},
    )
    assert reached == {"pruned_share": 0.6, "pruned_time_left": 0.5, "pruned_macs_left": 0.25}


def test_pruning_reaches_nothing_where_no_timed_layer_is_pruned() -> None:
    assert reach(FORM, DENSE, 10.0, macs={}, dense_macs={}, pruned={"d"}) == {}


class Slow(nn.Module):
    """Sets a clock forward by ten milliseconds."""

    now = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Slow.now += 0.01
        return x


def test_layers_are_timed_without_those_that_hold_others_and_calls_add_up() -> None:
    slow = Slow()
    model = nn.Sequential(slow, nn.Sequential(nn.ReLU(), slow))
    times = layer_times(model, lambda m: m(torch.ones(4)), "cpu", counter=lambda: Slow.now)
    assert times == {"0": pytest.approx(20), "1.0": 0}
    assert not model[0]._forward_hooks
