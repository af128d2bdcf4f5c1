"""What bounds a form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pruneflow.inference.bottleneck import LayerTime, Machine, bottleneck, layer_times, machine

LIMITS = Machine(macs_per_second=1e9, bytes_per_second=1e9, call_seconds=1e-5)
LAYERS = [LayerTime("a", "Conv2d", 6.0, 1_000), LayerTime("b", "Linear", 4.0, 1_000)]


@pytest.mark.parametrize(
    ("given", "by", "share"),
    [
        ({"macs": 8_000_000}, "arithmetic", 0.8),
        ({"weight_bytes": 4_996_000}, "memory traffic", 0.5),
        ({"operations": 300}, "overhead", 0.3),
        ({"macs": 8_000_000, "unpruned": {"a": True, "b": False}}, "unpruned layers", 0.6),
        ({"macs": 8_000_000, "unpruned": {"a": False, "b": True}}, "arithmetic", 0.8),
        ({"macs": 8_000_000, "unpruned": {"a": True, "b": True}}, "arithmetic", 0.8),
        ({"macs": 80_000_000}, "arithmetic", 1.0),
    ],
)
def test_the_largest_estimate_bounds_unless_most_time_is_in_unpruned_layers(
    given: dict[str, object], by: str, share: float
) -> None:
    counts = {"macs": 0, "weight_bytes": 0, "operations": 0, "unpruned": {"a": False, "b": False}}
    found = bottleneck(0.010, LAYERS, limits=LIMITS, **(counts | given))  # type: ignore[arg-type]
    assert found.by == by
    assert found.share == pytest.approx(share)


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
    assert times["0"].output_bytes == 32
    assert times["1.0"].ms == 0
    assert not model[0]._forward_hooks


def test_a_machine_is_measured_and_remembered() -> None:
    one = machine("cpu", 1, 1 << 20)
    assert min(one.macs_per_second, one.bytes_per_second, one.call_seconds) > 0
    assert machine("cpu", 1, 1 << 20) is one
