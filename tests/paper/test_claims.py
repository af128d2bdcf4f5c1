"""Claims: runs that confirm each, that refute it, and that cannot tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from frames import Frames
from records import latency, level

from pruneflow.config import BenchmarkConfig, PruneConfig
from pruneflow.paper import claims
from pruneflow.report.page import Statement
from pruneflow.resolution import resolve
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


@pytest.fixture
def runs() -> Frames:
    return Frames()


SPREAD = (0.0, 0.001, -0.001)  # of three seeds


def judge(runs: Frames, number: int) -> Statement:
    return claims.judge(runs.evidence(), number)


def three_seeds(runs: Frames, after: list[float], **given: Any) -> None:
    """A run of each of three seeds, from a base run of its own; pruned levels differ a little."""
    own = {k: given.pop(k) for k in list(given) if k in Level.__dataclass_fields__ or k == "before"}
    for seed, off in enumerate(SPREAD):
        values = [after[0], *(value + off for value in after[1:])]
        runs.prune(levels(values, **own), seed=seed, base=f"b{seed}", **given)


def test_1_is_two_points_at_an_eighth(runs: Frames) -> None:
    three_seeds(runs, [0.9, 0.9, 0.9, 0.885, 0.5])
    assert judge(runs, 1).outcome == "confirmed"
    assert "-1.5 [-1.7, -1.3] points" in judge(runs, 1).reason
    assert "n = 3 seeds" in judge(runs, 1).reason


def test_1_is_refuted_by_an_interval_beyond_two_points(runs: Frames) -> None:
    three_seeds(runs, [0.9, 0.9, 0.9, 0.80, 0.5])
    assert judge(runs, 1).outcome == "refuted"


@pytest.mark.parametrize("values", [[0.9], [0.80], [0.9, 0.9], [0.80, 0.80], [0.91, 0.88, 0.86]])
def test_1_is_undecided_by_too_few_seeds_or_too_wide_an_interval(
    runs: Frames, values: list[float]
) -> None:
    for seed, value in enumerate(values):
        runs.prune(levels([0.9, 0.9, 0.9, value, 0.5]), seed=seed, base=f"b{seed}")
    found = judge(runs, 1)
    assert found.outcome == "undecided"
    assert "to be decided by" in found.reason


@pytest.mark.parametrize(
    ("random", "verdict"),
    [([0.9, 0.5, 0.4, 0.3, 0.1], "confirmed"), ([0.9, 0.89, 0.4, 0.3, 0.1], "refuted")],
)
def test_2_is_five_points_at_every_level(runs: Frames, random: list[float], verdict: str) -> None:
    three_seeds(runs, [0.9, 0.9, 0.9, 0.8, 0.7])
    three_seeds(runs, random, criterion="random")
    assert judge(runs, 2).outcome == verdict


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [(0.5, 0.69, "confirmed"), (0.595, 0.69, "refuted"), (0.5, 0.71, "refuted")],
)
def test_3_is_clear_before_and_positive_after(
    runs: Frames, before: float, after: float, verdict: str
) -> None:
    three_seeds(runs, [0.9, 0.9, 0.9, 0.8, 0.7], before=[0.9, 0.8, 0.8, 0.7, 0.6])
    for seed in range(3):
        last = level(1, LEFT[4], after, test_before=before)
        direct = {"stage": "prune_direct", "iterations": 4, "seed": seed, "base": f"b{seed}"}
        runs.prune([level(0, 1.0, 0.9), last], **direct)
    assert judge(runs, 3).outcome == verdict


@pytest.mark.parametrize(("zeros", "verdict"), [(90, "confirmed"), (40, "refuted")])
def test_4_is_over_half_of_the_zeros(runs: Frames, zeros: int, verdict: str) -> None:
    layers = [
        Layer(0, "classifier.1.weight", "Linear", "10x10", 100, zeros, zeros / 100),
        Layer(0, "features.0.weight", "Conv2d", "10x10", 100, 60, 0.6),
    ]
    for seed in range(3):
        runs.prune(layers=layers, seed=seed, base=f"b{seed}")
    assert judge(runs, 4).outcome == verdict


@pytest.mark.parametrize(("control", "verdict"), [(0.3, "confirmed"), (0.02, "refuted")])
def test_5_is_beside_a_control_trained_as_long(runs: Frames, control: float, verdict: str) -> None:
    test = [0.9, 0.88, 0.86, 0.84, 0.8]
    gaps = [0.2, 0.15, 0.12, 0.08, 0.05]
    for seed in range(3):
        of_seed: dict[str, Any] = {"seed": seed, "base": f"b{seed}"}
        train = [t + g for t, g in zip(test, gaps, strict=True)]
        runs.prune(levels(test, train_after=train), **of_seed)
        assert "no dense control" in judge(runs, 5).reason or seed
        runs.prune(levels(test, train_after=[t + control for t in test]), fraction=0, **of_seed)
    assert judge(runs, 5).outcome == verdict


def test_5_compares_with_the_control_of_the_same_bases(runs: Frames) -> None:
    test = [0.9, 0.88, 0.86, 0.84, 0.8]
    # 0.035 on average: below the controls, which are of the first three bases
    for seed, last in enumerate((0.06, 0.06, 0.06, 0.01, 0.01, 0.01)):
        gaps = [0.2, 0.15, 0.12, 0.08, last]
        train = [t + g for t, g in zip(test, gaps, strict=True)]
        runs.prune(levels(test, train_after=train), seed=seed, base=f"b{seed}")
        if seed < 3:
            control = levels(test, train_after=[t + 0.05 for t in test])
            runs.prune(control, fraction=0, seed=seed, base=f"b{seed}")
    assert judge(runs, 5).outcome == "refuted"


def test_5_does_not_count_levels_that_answer_by_chance(runs: Frames) -> None:
    test, train = [0.9, 0.5, 0.1, 0.1, 0.1], [0.95, 0.6, 0.1, 0.1, 0.1]
    runs.prune(levels(test, train_after=train))
    assert judge(runs, 5).outcome == "not enough data"


def filters(runs: Frames, after: list[float], before: list[float], **given: Any) -> None:
    """Runs of filters, chosen Conv2d by Conv2d."""
    how = {"model": given.pop("model", "alexnet"), "granularity": "channel"}
    left = list(LEFT[: len(after)])
    three_seeds(
        runs, after, before=before, channels_left=left, coupling="independent", **how, **given
    )


@pytest.mark.parametrize(
    ("after", "before", "verdict"),
    [
        ([0.9, 0.7, 0.6, 0.5, 0.4], [0.9, 0.2, 0.3, 0.1, 0.1], "confirmed"),
        ([0.9, 0.7, 0.6, 0.5, 0.4], [0.9, 0.4, 0.3, 0.2, 0.1], "refuted"),
        ([0.9, 0.9, 0.9, 0.9, 0.9], [0.9, 0.2, 0.3, 0.1, 0.1], "refuted"),
    ],
)
def test_6_is_lower_and_erratic(
    runs: Frames, after: list[float], before: list[float], verdict: str
) -> None:
    three_seeds(runs, [0.9, 0.9, 0.88, 0.8, 0.7])
    filters(runs, after, before)
    assert judge(runs, 6).outcome == verdict


@pytest.mark.parametrize(("compact", "verdict"), [(100, "confirmed"), (300, "refuted")])
def test_7_is_masks_above_removal(runs: Frames, compact: int, verdict: str) -> None:
    flat = [0.9] * 5
    filters(runs, flat, flat, conv_params_masked=[300, 250, 200, 150, 140],
            conv_params_compact=[300, compact, compact, compact, compact])  # fmt: skip
    assert judge(runs, 7).outcome == verdict


def times(masked: float, compact: Callable[[int], float]) -> list[Latency]:
    found = []
    for number in (0, 1, 2):
        for batch in (1, 4, 16):
            dense = 2.0 + 3.0 * batch
            found.append(latency(number, "dense", batch, dense, speedup=1.0))
            if number:
                ratios = {"masked": masked, "compact": compact(number)}
                found += [
                    latency(
                        number,
                        form,
                        batch,
                        dense * ratio,
                        speedup=1 / ratio,
                        params=100 // 2**number if form == "compact" else 100,
                    )
                    for form, ratio in ratios.items()
                ]
    return found


@pytest.mark.parametrize(
    ("masked", "compact", "verdict"),
    [
        (1.02, lambda n: 0.8**n, "confirmed"),
        (1.3, lambda n: 0.8**n, "refuted"),
        (1.0, lambda n: 0.5 + 0.1 * n, "refuted"),
        (1.0, lambda n: 1.5 - 0.1 * n, "refuted"),  # less slow at each level, and never faster
    ],
)
def test_8_is_linear_masked_as_dense_and_compact_faster(
    runs: Frames, masked: float, compact: Callable[[int], float], verdict: str
) -> None:
    for seed in range(3):
        runs.benchmark(runs.prune(seed=seed, base=f"b{seed}"), times(masked, compact))
    assert judge(runs, 8).outcome == verdict


def test_8_puts_times_of_two_machines_side_by_side_and_never_together(runs: Frames) -> None:
    pruned = runs.prune()
    for machine, factor in (("slow", 10.0), ("fast", 1.0)):
        rows = times(1.0, lambda n: 0.8**n)
        # on the faster one the dense model was not timed with the largest batch
        rows = [r for r in rows if machine == "slow" or r.batch_size < 16]
        rows += [replace(r, batch_size=8) for r in rows if machine == "fast" and r.batch_size == 4]
        runs.benchmark(
            pruned, [replace(r, machine=machine, p50_ms=factor * (r.p50_ms or 0)) for r in rows]
        )
    found = judge(runs, 8)
    assert "(2 threads, slow)" in found.reason
    assert "(2 threads, fast)" in found.reason


@pytest.mark.parametrize(
    ("small", "bert", "verdict"),
    [(0.75, 0.6, "confirmed"), (0.5, 0.6, "refuted"), (0.75, 0.88, "refuted")],
)
def test_9_is_bert_below_the_cnns_and_small_steps_better(
    runs: Frames, small: float, bert: float, verdict: str
) -> None:
    three_seeds(runs, [0.9, 0.9, 0.88, 0.85, 0.8])
    of_bert: dict[str, Any] = {"model": "bert", "dataset": "reviews"}
    three_seeds(runs, [0.9, 0.88, 0.7, bert, bert], **of_bert)
    for seed, off in enumerate(SPREAD):
        slow = [
            level(n, (1 - 0.2929) ** n, value + off)
            for n, value in enumerate([0.9, 0.89, 0.8, 0.78, small, 0.7, small])
        ]
        of_seed = {"seed": seed, "base": f"b{seed}"}
        runs.prune(slow, fraction=0.2929, iterations=6, **of_seed, **of_bert)
    assert judge(runs, 9).outcome == verdict


@pytest.mark.parametrize(("vgg", "verdict"), [(0.85, "confirmed"), (0.5, "refuted")])
def test_10_is_least_lost_of_three_cnns(runs: Frames, vgg: float, verdict: str) -> None:
    three_seeds(runs, [0.9, 0.9, 0.88, 0.85, 0.8])
    three_seeds(runs, [0.9, 0.9, 0.88, 0.85, vgg], model="vgg16")
    assert judge(runs, 10).outcome == "not enough data"
    three_seeds(runs, [0.9, 0.9, 0.88, 0.85, 0.7], model="resnet18")
    assert judge(runs, 10).outcome == verdict


@pytest.mark.parametrize(("compact", "verdict"), [(20, "confirmed"), (120, "refuted")])
def test_11_is_less_than_half_of_the_masks(runs: Frames, compact: int, verdict: str) -> None:
    flat = [0.9] * 5
    filters(runs, flat, flat, model="resnet18", conv_params_masked=[300, 160, 150, 140, 130],
            conv_params_compact=[300, compact, compact, compact, compact])  # fmt: skip
    assert judge(runs, 11).outcome == verdict


@pytest.mark.parametrize("others", [True, False])
def test_without_what_a_claim_is_about_the_command_that_makes_it_is_named(
    runs: Frames, others: bool
) -> None:
    if others:
        runs.prune(model="mobilenet_v2")
    assert list(claims.CLAIMS) == list(range(1, 12))
    for verdict in (judge(runs, number) for number in claims.CLAIMS):
        assert verdict.outcome == "not enough data"
        for command in verdict.command.split(" && "):
            program, stage, *options = command.split()
            assert program == "pruneflow"
            given = {
                k.removeprefix("--"): v for k, v in zip(options[::2], options[1::2], strict=True)
            }
            resolve(BenchmarkConfig if stage == "benchmark_latency" else PruneConfig, given)


def test_1_at_another_sparsity_or_of_another_model_is_open(runs: Frames) -> None:
    runs.prune(levels([0.9, 0.9, 0.9]))
    runs.prune(levels([0.9, 0.9, 0.9, 0.9]), model="vgg16")
    found = judge(runs, 1)
    assert found.outcome == "not enough data"
    assert "alexnet" in found.reason


def test_2_is_open_where_levels_of_l1_have_no_random_beside_them(runs: Frames) -> None:
    runs.prune(levels([0.9, 0.9, 0.9, 0.8]))
    runs.prune(levels([0.9, 0.5, 0.4]), criterion="random")
    assert judge(runs, 2).outcome == "not enough data"
    assert "1 of 3 levels" in judge(runs, 2).reason


def test_2_and_3_need_one_base(runs: Frames) -> None:
    runs.prune(levels([0.9, 0.9]))
    runs.prune(levels([0.9, 0.1]), criterion="random", base="b1")
    runs.prune(levels([0.9, 0.1]), stage="prune_direct", base="b1")
    assert judge(runs, 2).outcome == judge(runs, 3).outcome == "not enough data"


def test_6_compares_only_where_single_weights_were_measured(runs: Frames) -> None:
    runs.prune(levels([0.9, 0.9]))  # to a half
    few = [level(n, left, 0.5, channels_left=left) for n, left in enumerate((1.0, 0.3, 0.2))]
    runs.prune(few, granularity="channel", coupling="independent")
    assert judge(runs, 6).outcome == "not enough data"


def test_8_of_two_batch_sizes_is_open(runs: Frames) -> None:
    rows = [row for row in times(1.0, lambda n: 0.8**n) if row.batch_size < 16]
    runs.benchmark(runs.prune(), rows)
    assert judge(runs, 8).outcome == "not enough data"


def test_8_is_refuted_by_times_that_bend(runs: Frames) -> None:
    rows = [
        replace(row, p50_ms=(row.p50_ms or 0) * row.batch_size**2)
        for row in times(1.0, lambda n: 0.8**n)
    ]
    rows += [replace(row, batch_size=8) for row in rows[:1]]
    for seed in range(3):
        runs.benchmark(runs.prune(seed=seed, base=f"b{seed}"), rows)
    assert judge(runs, 8).outcome == "refuted"


def test_9_names_the_encoder_that_stands_for_bert(runs: Frames) -> None:
    runs.prune(levels([0.9, 0.9, 0.88]))
    runs.prune(levels([0.9, 0.7, 0.5]), model="hf:x/tiny", dataset="reviews")
    found = judge(runs, 9)
    assert found.outcome == "not enough data"  # one fraction
    assert "by tiny on reviews - by alexnet on digits at 75 % sparsity +38.0" in found.reason


def test_9_compares_each_data_set_of_an_encoder(runs: Frames) -> None:
    three_seeds(runs, [0.9, 0.9, 0.8])
    for dataset, last in (("reviews", 0.3), ("sst2", 0.85)):  # lost on average: more than 0.1
        for fraction in (0.5, 0.2929):
            lost = last - 0.01 * (fraction == 0.5)
            steps = levels([0.9, 0.9, lost]) if fraction == 0.5 else [
                level(n, (1 - fraction) ** n, value)
                for n, value in enumerate([0.9, 0.9, 0.9, 0.9, lost])
            ]  # fmt: skip
            for seed in range(3):
                of_seed: dict[str, Any] = {"seed": seed, "base": f"b{seed}"}
                runs.prune(steps, model="bert", dataset=dataset, fraction=fraction, **of_seed)
    assert judge(runs, 9).outcome == "refuted"


def test_10_is_open_where_only_the_unpruned_level_is_common(runs: Frames) -> None:
    for model, fraction in (("alexnet", 0.5), ("vgg16", 0.3), ("resnet18", 0.2)):
        pruned = level(1, 1 - fraction, 0.8)
        runs.prune([level(0, 1.0, 0.9), pruned], model=model, fraction=fraction)
    assert judge(runs, 10).outcome == "not enough data"


def test_11_far_from_the_studys_level_is_open(runs: Frames) -> None:
    filters(runs, [0.9, 0.9], [0.9, 0.9], model="resnet18",
            conv_params_masked=[300, 270], conv_params_compact=[300, 20])  # fmt: skip
    assert judge(runs, 11).outcome == "not enough data"


@pytest.mark.parametrize(("seeds", "decided"), [(1, False), (2, False), (3, True)])
def test_no_claim_is_decided_by_fewer_than_three_seeds(
    runs: Frames, seeds: int, decided: bool
) -> None:
    for seed in range(seeds):
        runs_of_every_claim(runs, {"seed": seed, "base": f"b{seed}"}, SPREAD[seed])
    evidence = runs.evidence()
    verdicts = [claims.judge(evidence, number).outcome for number in claims.CLAIMS]
    assert len(verdicts) == 11
    assert "not enough data" not in verdicts
    assert all((verdict == "undecided") is not decided for verdict in verdicts)


def runs_of_every_claim(runs: Frames, of_seed: dict[str, Any], off: float) -> None:
    """All that the eleven claims ask for, of one seed."""

    def of(*values: float, left: tuple[float, ...] = LEFT, **more: Any) -> list[Level]:
        pruned = [0.9, *(value + off for value in values)]
        found = levels(pruned, **more)
        return [replace(one, target_sparsity=1 - part, sparsity=1 - part, params_left=part)
                for one, part in zip(found, left, strict=False)]  # fmt: skip

    linear = Layer(0, "classifier.1.weight", "Linear", "10x10", 100, 90, 0.9)
    first = Layer(0, "features.0.weight", "Conv2d", "10x10", 100, 40, 0.4)
    runs.prune(of(0.9, 0.89, 0.885, 0.5), layers=[linear, first], **of_seed)
    runs.prune(of(0.5, 0.4, 0.3, 0.1), criterion="random", **of_seed)
    runs.prune(of(0.9, 0.89, 0.885, 0.5), fraction=0, **of_seed)
    direct = of(0.4, left=(1.0, LEFT[4]), before=[0.9, 0.1])
    runs.prune(direct, stage="prune_direct", iterations=4, **of_seed)
    for model, last in (("vgg16", 0.88), ("resnet18", 0.6)):
        runs.prune(of(0.9, 0.89, 0.885, last), model=model, **of_seed)
    for fraction in (0.5, 0.2929):
        left = tuple((1 - fraction) ** n for n in range(5))
        texts = {"model": "bert", "dataset": "reviews", "fraction": fraction}
        small = 0.1 * (fraction < 0.5)
        runs.prune(of(0.8, 0.5 + small, 0.4, 0.3 + small, left=left), **texts, **of_seed)
    for model in ("alexnet", "resnet18"):
        counts: dict[str, Any] = {
            "conv_params_masked": [300, 160, 150, 140, 130],
            "conv_params_compact": [300, 70, 60, 40, 20],
            "channels_left": list(LEFT),
            "before": [0.9, 0.2, 0.3, 0.1, 0.1],
        }
        how = {"model": model, "granularity": "channel", "coupling": "independent"}
        pruned = runs.prune(of(0.7, 0.6, 0.5, 0.4, **counts), **how, **of_seed)
    runs.benchmark(pruned, times(1.0, lambda level: 0.8**level))
