"""Latency: times side by side, their spread, and what a call holds."""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special
from scipy.signal import lfilter
from torch import nn

from pruneflow.inference import latency
from pruneflow.inference.load import Load, Reading, read


class Clock:
    """A clock that every call sets forward by its own cost, and that drifts from call to call."""

    def __init__(self, drift: float) -> None:
        self.drift, self.calls = drift, 0

    def __call__(self, call: object) -> float:
        self.calls += 1
        return float(call()) * (1 + self.drift) ** self.calls  # type: ignore[operator]


class Busy(Load):
    """Others take these shares of the processors, one a window, then none."""

    window_seconds = 0.0

    def __init__(self, *shares: float | None, processors: int = 2) -> None:
        self.shares = [0.0, *shares]  # the first is of the warm-up
        super().__init__(lambda: Reading(0.0, 0.0, 0.0, processors))

    def others(self) -> float | None:
        return self.shares.pop(0) if self.shares else 0.0


def test_every_round_times_every_candidate_once_and_short_ones_run_first_untimed() -> None:
    ran: list[str] = []
    calls = {"a": lambda: ran.append("a") or 0.001, "b": lambda: ran.append("b") or 0.03}
    times = latency.interleaved(calls, Clock(0.0), 25, 5.0, load=Busy()).seconds
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
    times = latency.interleaved(calls, Clock(0.002), 200, 1e-9, load=Busy()).seconds
    assert len(times["one"]) == 3
    times = latency.interleaved(calls, Clock(0.002), 200, 0.2, load=Busy()).seconds
    assert times["one"][-1] > times["one"][0]
    assert np.median(times["one"]) / np.median(times["two"]) == pytest.approx(0.5, rel=0.02)


def test_rounds_beside_other_work_do_not_count() -> None:
    numbers = count()
    calls = {"a": lambda: float(next(numbers)), "b": lambda: 1.0}
    load = Busy(0.3, 0.0, None, 0.04, 0.06, 1.0)
    rounds = latency.interleaved(calls, Clock(0.0), 3, 1e-9, load=load)
    assert rounds.tried == 3
    assert len(rounds.seconds["a"]) == 2
    assert not rounds.watched
    assert rounds.others == 0.3
    busy = Busy(*[0.5] * 100_000)
    rounds = latency.interleaved(calls, Clock(0.0), 3, 0.05, load=busy)
    assert len(rounds.seconds["a"]) == 0
    assert rounds.tried >= 3
    rounds = latency.interleaved(calls, Clock(0.0), 20, 30.0, load=Busy(0.5, 0.5))
    assert len(rounds.seconds["a"]) >= 20
    assert rounds.tried == len(rounds.seconds["a"]) + 2


def test_a_window_is_judged_whole() -> None:
    load = Busy(0.5)
    load.window_seconds = 0.02
    rounds = latency.interleaved({"a": lambda: 1.0}, Clock(0.0), 3, 0.001, load=load)
    assert rounds.tried > 3
    assert len(rounds.seconds["a"]) == 0


@pytest.mark.parametrize(
    ("before", "after", "share"),
    [
        (Reading(0, 0, 0, 2), Reading(1, 2, 1, 2), 0.0),  # all of it this process
        (Reading(5, 9, 3, 2), Reading(7, 11, 4, 2), 0.5),  # both busy, half of it this process
        (Reading(0, 0, 0, 2), Reading(2, 2, 0, 2), 1.0),
        (Reading(0, 0, 0, 2), Reading(0.98, 2, 1.0, 2), 0.0),  # ticks round
        (Reading(0, 0, 0, 2), Reading(0, 0, 1.0, 2), None),  # counters that stand still
        (Reading(4, 8, 0, 2), Reading(4, 8, 0, 2), None),
    ],
)
def test_what_others_take_is_what_was_busy_less_what_this_process_took(
    before: Reading, after: Reading, share: float | None
) -> None:
    readings = iter([before, after])
    assert Load(lambda: next(readings)).others() == share


def test_of_many_processors_others_may_take_half_a_one() -> None:
    def quiet(share: float, processors: int) -> bool:
        return Busy(processors=processors).is_quiet(share)

    assert quiet(0.04, 2)
    assert not quiet(0.06, 2)
    assert not quiet(0.04, 64)
    assert quiet(0.005, 64)


def test_the_systems_counters_go_on() -> None:
    one, other = read(), read()
    assert one.processors >= 1
    assert other.total >= one.total
    assert other.process >= one.process > 0


def test_warm_up_goes_on_until_times_no_longer_fall() -> None:
    costs = iter([1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2] + [0.1] * 1_000)
    last = latency.warm_up(lambda: next(costs), Clock(0.0), 10.0)
    assert last == 0.1


def test_spread_of_known_times() -> None:
    spread = latency.spread(np.array([0.001, 0.002, 0.003, 0.004]))
    assert (spread["p50_ms"], spread["mean_ms"]) == (2.5, 2.5)
    assert spread["p95_ms"] == pytest.approx(3.85)
    assert spread["sd_ms"] == pytest.approx(1.2909944)


NOISE = {
    "lognormal": lambda z: np.exp(0.1 * z),
    "skewed": lambda z: 1 - 0.2 * np.log(special.ndtr(-z)),  # a floor, and an exponential tail
}


def series(rng: np.random.Generator, runs: int, n: int, correlation: float) -> Any:
    """Normal deviates (runs, n), each of a first-order autoregression with unit variance."""
    fresh = rng.standard_normal((runs, n + 100))
    scale = np.sqrt(1 - correlation**2)
    return lfilter([scale], [1, -correlation], fresh, axis=1)[:, 100:]


@pytest.mark.parametrize("correlation", [0.0, 0.8])
@pytest.mark.parametrize("n", [30, 40, 57, 100, 300])
@pytest.mark.parametrize("kinds", [("lognormal", "lognormal"), ("skewed", "lognormal")])
def test_an_interval_holds_the_true_ratio_of_medians(
    n: int, correlation: float, kinds: tuple[str, str]
) -> None:
    rng, runs = np.random.default_rng(n), 800
    dense, other = (NOISE[kind](series(rng, runs, n, correlation)) for kind in kinds)
    true = 2.0 * NOISE[kinds[0]](0.0) / NOISE[kinds[1]](0.0)
    held = 0
    for one, two in zip(2.0 * dense, other, strict=True):
        ratio, low, high = latency.speedup(one, two)
        assert low is not None
        assert high is not None
        assert low <= ratio <= high
        held += low <= true <= high
    assert held / runs >= 0.93


def test_an_interval_narrows_with_rounds_and_what_rounds_share_does_not_widen_it() -> None:
    def width(n: int, shared: float) -> float:
        rng = np.random.default_rng(1)
        common = rng.lognormal(0, shared, (100, n))
        times = (common * rng.lognormal(0, 0.05, (100, n)) for _ in range(2))
        found = [latency.speedup(one, two) for one, two in zip(*times, strict=True)]
        return float(np.median([(high or 0) - (low or 0) for _, low, high in found]))

    assert width(1000, 0.0) < 0.5 * width(100, 0.0) < 0.25 * width(30, 0.0)
    assert width(100, 0.3) < 3 * width(100, 0.0)


def test_too_few_rounds_have_a_ratio_but_no_interval() -> None:
    times = np.random.default_rng(0).lognormal(0, 0.1, 29)
    assert latency.speedup(2 * times, times) == (pytest.approx(2), None, None)
    times = np.random.default_rng(0).lognormal(0, 0.1, 30)
    assert latency.speedup(times, times) == (1, 1, 1)


def test_weights_shared_count_once_and_sparse_ones_what_is_stored() -> None:
    layer = nn.Linear(10, 20)
    assert latency.weight_bytes(nn.Sequential(layer, nn.ReLU(), layer)) == 4 * 220
    from pruneflow.inference.sparse import Csr

    with torch.no_grad():
        layer.weight[layer.weight.abs() < 0.2] = 0
    kept = int(layer.weight.count_nonzero())
    assert latency.weight_bytes(Csr(layer)) == 4 * kept + 4 * kept + 4 * 21 + 4 * 20


def test_working_memory_is_what_is_held_at_once() -> None:
    x = torch.ones(1000, 250)  # a megabyte in float32

    def two_at_once() -> torch.Tensor:
        with torch.inference_mode():
            y = x + 1
            z = y * 2
            del y
            return z - 1

    assert latency.working_bytes(two_at_once, "cpu") == pytest.approx(2e6, rel=0.01)
