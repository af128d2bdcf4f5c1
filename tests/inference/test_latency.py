"""Latency: times side by side, their spread, and what a call holds."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import nn

from pruneflow.inference import latency
from pruneflow.inference.latency import Effort


class Clock:
    """A clock that every call sets forward by its own cost, and that drifts from call to call."""

    def __init__(self, drift: float) -> None:
        self.drift, self.calls = drift, 0

    def __call__(self, call: object) -> float:
        self.calls += 1
        return float(call()) * (1 + self.drift) ** self.calls  # type: ignore[operator]


def test_every_round_times_every_candidate_once_and_short_ones_run_first_untimed() -> None:
    ran: list[str] = []
    calls = {"a": lambda: ran.append("a") or 0.001, "b": lambda: ran.append("b") or 0.03}
    times = latency.interleaved(calls, Clock(0.0), Effort(rounds=25, seconds=5.0))
    assert set(times) == {"a", "b"}
    assert len(times["a"]) == len(times["b"]) >= 25
    assert np.all(times["a"] == 0.001)
    assert np.all(times["b"] == 0.03)
    rounds = len(times["a"])
    warm_a, warm_b = ran.count("a") - 2 * rounds, ran.count("b") - 2 * rounds
    assert warm_a >= 2
    assert warm_b >= 2
    together = "".join(ran[warm_a + warm_b :])
    assert {together[i : i + 4] for i in range(0, len(together), 4)} == {"aabb", "bbaa"}


def test_drift_hits_all_alike_where_blocks_would_tell_them_apart() -> None:
    calls = {"one": lambda: 1.0, "two": lambda: 2.0}
    times = latency.interleaved(calls, Clock(0.002), Effort(rounds=200, seconds=0.2))
    ratio, low, high = latency.speedup(times["one"], times["two"])
    assert times["one"][-1] > 1.5 * times["one"][0]
    assert ratio == pytest.approx(0.5, rel=0.02)
    assert low <= ratio <= high


def test_the_budget_ends_rounds_that_take_long_but_not_before_three() -> None:
    def slow() -> float:
        time.sleep(0.03)
        return 0.03

    start = time.perf_counter()
    times = latency.interleaved({"a": slow}, Clock(0.0), Effort(rounds=1_000, seconds=0.15))
    assert 3 <= len(times["a"]) < 20
    assert time.perf_counter() - start < 2
    times = latency.interleaved({"a": slow}, Clock(0.0), Effort(rounds=20, seconds=0.001))
    assert len(times["a"]) == 3


def test_warm_up_goes_on_until_times_no_longer_fall() -> None:
    costs = iter([1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2] + [0.1] * 1_000)
    last = latency.settle(lambda: next(costs), Clock(0.0), 10.0)
    assert last == 0.1


def test_spread_of_known_times() -> None:
    spread = latency.spread(np.array([0.001, 0.002, 0.003, 0.004]))
    assert (spread.n, spread.p50_ms, spread.mean_ms) == (4, 2.5, 2.5)
    assert spread.p95_ms == pytest.approx(3.85)
    assert spread.sd_ms == pytest.approx(1.2909944)


def test_the_interval_of_a_speed_up_holds_the_true_ratio_nearly_always_and_narrows() -> None:
    rng = np.random.default_rng(1)
    held, widths = 0, []
    for trial in range(100):
        drift = rng.lognormal(0, 0.3, 40)  # common to both times of a round
        dense = 2.0 * drift * rng.lognormal(0, 0.05, 40)
        other = 1.0 * drift * rng.lognormal(0, 0.05, 40)
        ratio, low, high = latency.speedup(dense, other, seed=trial)
        assert low <= ratio <= high
        held += low <= 2.0 <= high
        widths.append(high - low)
    assert held >= 88
    few = latency.speedup(dense[:5], other[:5])
    assert few[2] - few[1] > 0
    assert np.mean(widths) < 1.0


def test_weights_shared_count_once_and_sparse_ones_what_is_stored() -> None:
    layer = nn.Linear(10, 20)
    assert latency.weight_bytes(nn.Sequential(layer, nn.ReLU(), layer)) == 4 * 220
    from pruneflow.inference.sparse import Csr

    with torch.no_grad():
        layer.weight[layer.weight.abs() < 0.2] = 0
    kept = int(layer.weight.count_nonzero())
    assert latency.weight_bytes(Csr(layer)) == 4 * kept + 4 * kept + 4 * 21 + 4 * 20


def test_a_trace_sees_the_memory_held_at_once_and_the_operations() -> None:
    x = torch.ones(1000, 250)  # a megabyte in float32

    def two_at_once() -> torch.Tensor:
        with torch.inference_mode():
            y = x + 1
            z = y * 2
            del y
            return z - 1

    trace = latency.trace(two_at_once, "cpu")
    assert trace.working_bytes == pytest.approx(2e6, rel=0.01)
    assert trace.operations == 3
