"""Claims: runs that confirm each, that refute it, and that cannot tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from records import benchmark, latency, level, prune

from pruneflow.report import claims, evidence
from pruneflow.tracking.latencies import Latency
from pruneflow.tracking.levels import Layer, Level

LEFT = (1.0, 0.5, 0.25, 0.125, 0.0625)


def levels(after: list[float], *, before: list[float] | None = None, **given: Any) -> list[Level]:
    """Levels of halves with these accuracies; lists in `given` have a value a level."""
    found = []
    for number, value in enumerate(after):
        own: dict[str, Any] = {
            name: values[number] if isinstance(values, list) else values
            for name, values in given.items()
        }
        own["test_before"] = (before or after)[number]
        own.setdefault("train_after", value + 0.05)
        found.append(level(number, LEFT[number], value, **own))
    return found


def judge(number: int) -> claims.Verdict:
    return next(v for v in claims.judge(evidence.read("x")) if v.number == number)


def holds(value: float) -> None:
    prune(levels([0.9, 0.9, 0.9, value, 0.5]))


def test_1_is_two_points_at_an_eighth(store: str) -> None:
    holds(0.885)
    assert judge(1).verdict == "confirmed"
    assert "-1.5 points" in judge(1).reason
    prune(levels([0.9, 0.9, 0.9, 0.80, 0.5]), seed=1, base="b1")
    assert judge(1).verdict == "refuted"  # 5.75 points on average
    assert "n = 2 seeds" in judge(1).reason


@pytest.mark.parametrize(
    ("random", "verdict"),
    [([0.9, 0.5, 0.4, 0.3, 0.1], "confirmed"), ([0.9, 0.89, 0.4, 0.3, 0.1], "refuted")],
)
def test_2_is_five_points_at_every_level(store: str, random: list[float], verdict: str) -> None:
    prune(levels([0.9, 0.9, 0.9, 0.8, 0.7]))
    prune(levels(random), criterion="random")
    assert judge(2).verdict == verdict


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [(0.5, 0.69, "confirmed"), (0.595, 0.69, "refuted"), (0.5, 0.71, "refuted")],
)
def test_3_is_clear_before_and_positive_after(
    store: str, before: float, after: float, verdict: str
) -> None:
    prune(levels([0.9, 0.9, 0.9, 0.8, 0.7], before=[0.9, 0.8, 0.8, 0.7, 0.6]))
    last = level(1, LEFT[4], after, test_before=before)
    prune([level(0, 1.0, 0.9), last], stage="prune_direct", iterations=4)
    assert judge(3).verdict == verdict


@pytest.mark.parametrize(("zeros", "verdict"), [(90, "confirmed"), (40, "refuted")])
def test_4_is_over_half_of_the_zeros(store: str, zeros: int, verdict: str) -> None:
    layers = [
        Layer(0, "classifier.1.weight", "Linear", "10x10", 100, zeros, zeros / 100),
        Layer(0, "features.0.weight", "Conv2d", "10x10", 100, 60, 0.6),
    ]
    prune(layers=layers)
    assert judge(4).verdict == verdict


@pytest.mark.parametrize(("control", "verdict"), [(0.3, "confirmed"), (0.02, "refuted")])
def test_5_is_beside_a_control_trained_as_long(store: str, control: float, verdict: str) -> None:
    test = [0.9, 0.88, 0.86, 0.84, 0.8]
    gaps = [0.2, 0.15, 0.12, 0.08, 0.05]
    prune(levels(test, train_after=[t + g for t, g in zip(test, gaps, strict=True)]))
    assert "no dense control" in judge(5).reason
    prune(levels(test, train_after=[t + control for t in test]), fraction=0)
    assert judge(5).verdict == verdict


def filters(after: list[float], before: list[float], **given: Any) -> str:
    """A run of filters, chosen Conv2d by Conv2d."""
    model = given.pop("model", "alexnet")
    own = levels(after, before=before, channels_left=list(LEFT), **given)
    return prune(own, model=model, granularity="channel", coupling="independent")


@pytest.mark.parametrize(
    ("after", "before", "verdict"),
    [
        ([0.9, 0.7, 0.6, 0.5, 0.4], [0.9, 0.2, 0.3, 0.1, 0.1], "confirmed"),
        ([0.9, 0.7, 0.6, 0.5, 0.4], [0.9, 0.4, 0.3, 0.2, 0.1], "refuted"),
        ([0.9, 0.9, 0.9, 0.9, 0.9], [0.9, 0.2, 0.3, 0.1, 0.1], "refuted"),
    ],
)
def test_6_is_lower_and_erratic(
    store: str, after: list[float], before: list[float], verdict: str
) -> None:
    prune(levels([0.9, 0.9, 0.88, 0.8, 0.7]))
    filters(after, before)
    assert judge(6).verdict == verdict


@pytest.mark.parametrize(("compact", "verdict"), [(100, "confirmed"), (300, "refuted")])
def test_7_is_masks_above_removal(store: str, compact: int, verdict: str) -> None:
    flat = [0.9] * 5
    filters(flat, flat, conv_params_masked=[300, 250, 200, 150, 140],
            conv_params_compact=[300, compact, compact, compact, compact])  # fmt: skip
    assert judge(7).verdict == verdict


def times(masked: float, compact: Callable[[int], float]) -> list[Latency]:
    found = []
    for number in (0, 1, 2):
        for batch in (1, 4, 16):
            dense = 2.0 + 3.0 * batch
            found.append(latency(number, "dense", batch, dense, speedup=1.0))
            if number:
                ratios = {"masked": masked, "compact": compact(number)}
                found += [
                    latency(number, form, batch, dense * ratio, speedup=1 / ratio)
                    for form, ratio in ratios.items()
                ]
    return found


@pytest.mark.parametrize(
    ("masked", "compact", "verdict"),
    [
        (1.02, lambda n: 0.8**n, "confirmed"),
        (1.3, lambda n: 0.8**n, "refuted"),
        (1.0, lambda n: 0.5 + 0.1 * n, "refuted"),
    ],
)
def test_8_is_linear_masked_as_dense_and_compact_faster(
    store: str, masked: float, compact: Callable[[int], float], verdict: str
) -> None:
    benchmark(prune(), times(masked, compact))
    assert judge(8).verdict == verdict


@pytest.mark.parametrize(
    ("small", "bert", "verdict"),
    [(0.75, 0.6, "confirmed"), (0.5, 0.6, "refuted"), (0.75, 0.88, "refuted")],
)
def test_9_is_bert_below_the_cnns_and_small_steps_better(
    store: str, small: float, bert: float, verdict: str
) -> None:
    prune(levels([0.9, 0.9, 0.88, 0.85, 0.8]))
    of_bert = {"model": "bert", "dataset": "reviews"}
    prune(levels([0.9, 0.88, 0.7, bert, bert]), **of_bert)
    slow = [
        level(n, (1 - 0.2929) ** n, value)
        for n, value in enumerate([0.9, 0.89, 0.8, 0.78, small, 0.7, small])
    ]
    prune(slow, fraction=0.2929, iterations=6, **of_bert)
    assert judge(9).verdict == verdict


@pytest.mark.parametrize(("vgg", "verdict"), [(0.85, "confirmed"), (0.5, "refuted")])
def test_10_is_least_lost_of_three_cnns(store: str, vgg: float, verdict: str) -> None:
    prune(levels([0.9, 0.9, 0.88, 0.85, 0.8]))
    prune(levels([0.9, 0.9, 0.88, 0.85, vgg]), model="vgg16")
    assert judge(10).verdict == "not enough data"
    prune(levels([0.9, 0.9, 0.88, 0.85, 0.7]), model="resnet18")
    assert judge(10).verdict == verdict


@pytest.mark.parametrize(("compact", "verdict"), [(20, "confirmed"), (120, "refuted")])
def test_11_is_less_than_half_of_the_masks(store: str, compact: int, verdict: str) -> None:
    flat = [0.9] * 5
    filters(flat, flat, model="resnet18", conv_params_masked=[300, 160, 150, 140, 130],
            conv_params_compact=[300, compact, compact, compact, compact])  # fmt: skip
    assert judge(11).verdict == verdict


def test_without_runs_nothing_is_judged_and_the_command_is_named(store: str) -> None:
    prune(model="mobilenet_v2")
    told = {v.number: v for v in claims.judge(evidence.read("x"))}
    assert list(told) == list(range(1, 12))
    for number in (1, 2, 3, 4, 6, 7, 8, 9, 10, 11):
        assert told[number].verdict == "not enough data"
        assert told[number].command.startswith("pruneflow ")
