"""Where a form's time goes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pruneflow.inference.profile import LayerTime, Reach, layer_times, reach

DENSE = [LayerTime("a", "Conv2d", 6.0), LayerTime("b", "ReLU", 1.0), LayerTime("c", "Linear", 2.0)]
FORM = [LayerTime("a", "Conv2d", 3.0), LayerTime("b", "ReLU", 0.5), LayerTime("c", "Linear", 2.0)]


def test_pruning_reaches_the_share_of_time_that_pruned_layers_take() -> None:
    found = reach(
        FORM,
        DENSE,
        10.0,
        macs={"a": 20.0, "c": 50.0},
        dense_macs={"a": 80.0, "c": 50.0},
        pruned={"a": True, "c": False},
    )
    assert found == Reach(share=0.6, time_left=0.5, macs_left=0.25)
    assert found.most == pytest.approx(2.5)


def test_pruning_reaches_nothing_where_no_timed_layer_is_pruned() -> None:
    assert reach(FORM, DENSE, 10.0, macs={}, dense_macs={}, pruned={"c": False}) is None


class Slow(nn.Module):
    """Sets a clock forward by ten milliseconds."""

    now = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Slow.now += 0.01
        return x


def test_layers_are_timed_without_those_that_hold_others_and_calls_add_up() -> None:
    slow = Slow()
    model = nn.Sequential(slow, nn.Sequential(nn.ReLU(), slow))
    found = layer_times(model, lambda m: m(torch.ones(4)), "cpu", counter=lambda: Slow.now)
    times = {t.layer: t for t in found}
    assert set(times) == {"0", "1.0"}
    assert times["0"].ms == pytest.approx(20)
    assert times["0"].kind == "Slow"
    assert times["1.0"].ms == 0
    assert not model[0]._forward_hooks
