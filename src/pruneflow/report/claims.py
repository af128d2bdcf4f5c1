"""The 2020 study's eleven claims, each a test over runs: confirmed, refuted, undecided, or open.

Every claim comes down to comparisons of a mean over seeds with an edge; a claim of several is
confirmed by all of them and refuted by one (see `verdicts`). Accuracies are fractions, a point is
0.01; differences are paired by base run where runs share one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from pruneflow.config import short_model
from pruneflow.report.evidence import Evidence, differences, of_texts, places, where
from pruneflow.report.verdicts import Comparison, Verdict, joint, reason, table

EIGHTH = 0.875  # sparsity of claim 1
NEAR = 0.005  # sparsities that count as the same
NEAREST = 0.02  # sparsities of two fractions that may still be compared
KEPT = 0.02  # "keeps its accuracy" loses at most
FAR = 0.05  # "by far"
CLEARLY = 0.01  # "clearly", and a rise that is more than noise
MOST = 0.5  # "most" of the zeros; and of the parameters that masks keep, claim 11
COLLAPSED = 0.5  # of its accuracy: below it a model is not compared any more
LEVELS = 4  # the least that a trend is seen in
LINEAR = 0.98  # R squared
BATCHES = 3  # the least batch sizes that show a line
SAME_TIME = 0.10  # relative, of times that count as equal
CNNS = ("alexnet", "vgg16", "resnet18", "resnet50")
MASKED = 0.5313  # of the study's ResNets, by masks
NEAR_MASKED = 0.10

STUDY: dict[int, str] = {
    1: "AlexNet keeps its accuracy (within 2 points) with 12.5 % of its connections",
    2: "L1 beats random by far at every sparsity",
    3: "Iterative beats direct: slightly after fine-tuning, clearly before",
    4: "Most pruned weights are in the first two linear layers of AlexNet",
    5: "Pruning regularises: the train-test gap narrows as sparsity grows",
    6: "Structured accuracy falls faster than unstructured and is erratic before fine-tuning",
    7: "Structured masks overstate the parameters left, against physical removal",
    8: "Latency grows linearly with batch size; masked equals original; compact is faster, and "
    "more so as parameters go",
    9: "BERT loses accuracy faster than the CNNs; a smaller fraction is slightly better",
    10: "VGG16 holds best at high sparsity among the CNNs",
    11: "Removal through skip connections takes far more of a ResNet than the masks say",
}
_ITERATIVE = "pruneflow prune_iterative --model"
_ALEXNET = f"{_ITERATIVE} alexnet"
_CHANNELS = "--granularity channel --coupling independent"


def _missing(
    number: int, what: str, command: str, comparisons: Sequence[Comparison] = ()
) -> Verdict:
    text = f"missing: {what}"
    if comparisons:
        text += f"; so far: {reason(comparisons)}"
    return Verdict(number, STUDY[number], "not enough data", text, table(comparisons), command)


def _decided(number: int, comparisons: Sequence[Comparison], note: str = "") -> Verdict:
    text = reason(comparisons) + (f". {note}" if note else "")
    return Verdict(number, STUDY[number], joint(comparisons), text, table(comparisons))


def _l1(evidence: Evidence, **values: object) -> pd.DataFrame:
    """Levels of single weights by L1, globally, iteratively."""
    return evidence.of(
        granularity="weight", criterion="l1", scope="global", schedule="iterative", **values
    )


def _filters(evidence: Evidence, **values: object) -> pd.DataFrame:
    """Levels of filters by magnitude, every Conv2d by itself, as `ln_structured` chooses them."""
    return evidence.of(
        granularity="channel",
        coupling="independent",
        criterion=("l1", "l2"),
        schedule="iterative",
        **values,
    )


def _most_seeds(levels: pd.DataFrame) -> pd.DataFrame:
    """Of the configuration with most seeds, so that means are over seeds alone."""
    if levels.empty:
        return levels
    counts = levels.groupby("configuration")["seed"].nunique()
    return where(levels, configuration=counts.idxmax())


def _by_seed(frame: pd.DataFrame, column: str) -> pd.Series[float]:
    """The mean of a column for each seed; rows where it is missing count nothing."""
    return frame[frame[column].notna()].groupby("seed")[column].mean().astype(float)


def _since_start(levels: pd.DataFrame, column: str) -> pd.Series[float]:
    """Change of a column since level 0 of the same run."""
    start = levels[levels["level"] == 0].set_index("run_id")[column]
    return levels[column].astype(float) - levels["run_id"].map(start).astype(float)


def _spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation; 0 where one of the two does not change."""
    if len(set(x)) < 2 or len(set(y)) < 2:
        return 0.0
    return float(stats.spearmanr(x, y).statistic)


def _named(model: object, dataset: object) -> str:
    return f"{short_model(str(model))} on {dataset}"


def _percent(share: Any) -> str:
    return f"{100 * float(share):.4g} %"


def keeps_accuracy(evidence: Evidence) -> Verdict:
    """Test accuracy at 12.5 % left, after fine-tuning, less than KEPT below level 0's.

    At the target sparsity nearest 87.5 %, which has to be within NEAR of it.
    """
    levels = _l1(evidence, model="alexnet")
    levels = levels.assign(change=_since_start(levels, "test_after"))
    off = (levels["target_sparsity"] - EIGHTH).abs()
    at = _most_seeds(levels[(off <= NEAR) & levels["change"].notna()])
    if at.empty:
        return _missing(1, "alexnet, single weights by L1, at 87.5 % sparsity", _ALEXNET)
    off = (at["target_sparsity"] - EIGHTH).abs()
    at = at.loc[off.groupby(at["run_id"]).idxmin()]
    what = f"change of test accuracy of {_named('alexnet', at['dataset'].iloc[0])} at 12.5 % left"
    change = Comparison.of(what, _by_seed(at, "change"), -KEPT, above=True)
    return _decided(1, [change], f"Test accuracy then {at['test_after'].mean():.3f}")


def beats_random(evidence: Evidence) -> Verdict:
    """L1 over FAR better than random at every pruned level, after fine-tuning, paired by base.

    One level where it is not refutes; confirming needs a random run beside every level of L1's.
    """
    keys = ["model", "dataset", "fraction", "finetune_epochs"]
    l1 = _l1(evidence)
    random = evidence.of(
        granularity="weight", criterion="random", scope="global", schedule="iterative"
    )
    l1, random = (part[part["level"] > 0] for part in (l1, random))
    comparisons, expected = [], 0
    for values, of_random in random.groupby(keys, dropna=False):
        of_l1 = where(l1, **dict(zip(keys, values, strict=True)))
        expected += of_l1["level"].nunique()
        both = differences(of_l1, of_random, "target_sparsity", "test_after")
        for place, rows in both.groupby("target_sparsity"):
            what = f"L1 - random, {_named(*values[:2])} at {_percent(place)} sparsity"
            comparisons.append(
                Comparison.of(what, _by_seed(rows, "difference"), FAR, above=True)
            )  # fmt: skip
    command = f"{_ALEXNET} --criterion random"
    if not comparisons:
        return _missing(2, "runs by L1 and at random from one base", command)
    lacking = expected - len(comparisons)
    if lacking and joint(comparisons) != "refuted":
        what = f"a random run at {lacking} of {expected} levels of L1's"
        return _missing(2, what, command, comparisons)
    return _decided(2, comparisons)


def iterative_beats_direct(evidence: Evidence) -> Verdict:
    """Iterative - direct, paired at one sparsity: over CLEARLY before fine-tuning, over 0 after.

    By L1, at every sparsity where both are, of which the study has one (93.75 %).
    """
    direct = evidence.of(granularity="weight", criterion="l1", scope="global", schedule="direct")
    direct = direct[direct["level"] > 0]
    comparisons = []
    for (model, dataset), of_direct in direct.groupby(["model", "dataset"]):
        iterative = _l1(evidence, model=model, dataset=dataset)
        for fraction, rows in iterative[iterative["level"] > 0].groupby("fraction"):
            for when, edge in (("before", CLEARLY), ("after", 0.0)):
                both = differences(rows, of_direct, "target_sparsity", f"test_{when}")
                for place, here in both.groupby("target_sparsity"):
                    what = (
                        f"iterative (fraction {fraction:g}) - direct {when} fine-tuning, "
                        f"{_named(model, dataset)} at {_percent(place)} sparsity"
                    )
                    values = _by_seed(here, "difference")
                    comparisons.append(Comparison.of(what, values, edge, above=True))
    if len({comparison.edge for comparison in comparisons}) < 2:
        return _missing(
            3,
            "iterative and direct runs by L1 of one base that meet at one sparsity",
            f"{_ALEXNET} --iterations 4 && pruneflow prune_direct --model alexnet --iterations 4",
            comparisons,
        )
    return _decided(3, comparisons, "Iterative runs have trained for more epochs")


def first_linears(evidence: Evidence) -> Verdict:
    """Over MOST of AlexNet's zeros in its first two linear layers, at the last common level."""
    layers = where(
        evidence.layers,
        model="alexnet",
        granularity="weight",
        criterion="l1",
        scope="global",
        schedule="iterative",
    )
    layers = _most_seeds(layers[layers["level"] > 0])
    if layers.empty:
        return _missing(4, "layers of alexnet, single weights pruned by L1", _ALEXNET)
    last = int(layers.groupby("run_id")["level"].max().min())
    layers = layers[layers["level"] == last]
    two = layers[layers["layer"].isin(["classifier.1.weight", "classifier.4.weight"])]
    every = layers.groupby("seed")["zeros"].sum().astype(float)
    share = (two.groupby("seed")["zeros"].sum().astype(float) / every).fillna(0.0)
    of_params = two["params"].sum() / layers["params"].sum()
    what = f"share of alexnet's zeros in classifier.1 and classifier.4 at level {last}"
    comparison = Comparison.of(what, share, MOST, above=True, points=False)
    return _decided(4, [comparison], f"They hold {_percent(of_params)} of the parameters")


def regularises(evidence: Evidence) -> Verdict:
    """The train-test gap falls with sparsity (Spearman < 0), and ends below level 0's.

    Fine-tuning alone changes the gap: where there is a control that was trained as long, the last
    level's gap has to be below the control's too, over the bases that have both. Of every model
    that has LEVELS levels at which it keeps COLLAPSED of its accuracy: one that answers by chance
    has no gap to speak of.
    """
    levels = _l1(evidence)
    levels = levels.assign(gap=levels["train_after"] - levels["test_after"])
    comparisons: list[Comparison] = []
    notes = []
    for (model, dataset), every in levels[levels["gap"].notna()].groupby(["model", "dataset"]):
        rows = _most_seeds(every)
        rows = rows.assign(change=_since_start(rows, "gap"))
        accuracy = rows.groupby("level")["test_after"].mean()
        lost = accuracy.index[accuracy < COLLAPSED * accuracy.iloc[0]]
        rows = rows[rows["level"] < lost.min()] if len(lost) else rows
        if rows["level"].nunique() < LEVELS or int(rows["level"].min()) != 0:
            continue
        last = rows[rows["level"] == rows["level"].max()]
        name = _named(model, dataset)
        trend = rows.sort_values("level").groupby("seed")[["level", "gap"]].apply(
            lambda run: _spearman(run["level"].tolist(), run["gap"].tolist())
        )  # fmt: skip
        comparisons += [
            Comparison.of(
                f"gap at the last level - unpruned, {name}",
                _by_seed(last, "change"),
                0.0,
                above=False,
            ),
            Comparison.of(
                f"Spearman of gap and level, {name}", trend, 0.0, above=False, points=False
            ),
        ]
        control = evidence.control_of(last)
        control = control.assign(gap=control["train_after"] - control["test_after"])
        beside = differences(last, control, "level", "gap")
        if len(beside):
            values = _by_seed(beside, "difference")
            what = f"gap at the last level - dense control's, {name}"
            comparisons.append(Comparison.of(what, values, 0.0, above=False))
        else:
            notes.append(f"no dense control of {name} to tell it from training")
    if not comparisons:
        what = f"iterative L1 runs of at least {LEVELS} levels that keep half of their accuracy"
        return _missing(5, what, _ALEXNET)
    return _decided(5, comparisons, "; ".join(notes))


def structured_falls_faster(evidence: Evidence) -> Verdict:
    """Filters below single weights at as many parameters left, and erratic before fine-tuning.

    Of runs from one base run: the accuracy of single weights is interpolated over the logarithm of
    parameters left, at the filters' levels that lie within its range; the mean difference has to be
    below 0. Erratic: accuracy before fine-tuning rises by over CLEARLY from one level to the next
    somewhere.
    """
    comparisons: list[Comparison] = []
    columns = ["params_left", "test_after", "test_before"]
    for (model, dataset), every in _filters(evidence).groupby(["model", "dataset"]):
        weights = _most_seeds(_l1(evidence, model=model, dataset=dataset)).dropna(subset=columns)
        falls, rises = [], []
        for base, run in _most_seeds(every).dropna(subset=columns).groupby("base_run"):
            below = _below_weights(run, where(weights, base_run=base))
            if below is not None:
                falls.append(below)
                rises.append(float(run.sort_values("level")["test_before"].diff().max()))
        if falls:
            name = _named(model, dataset)
            what = f"filters - weights at equal parameters, {name}"
            comparisons.append(Comparison.of(what, falls, 0.0, above=False))
            what = f"largest rise from a level to the next before fine-tuning, {name}"
            comparisons.append(Comparison.of(what, rises, CLEARLY, above=True))
    if not comparisons:
        return _missing(
            6,
            "single weights by L1 and filters pruned independently, from one base run, at "
            "comparable parameters left",
            f"{_ALEXNET} && {_ALEXNET} {_CHANNELS}",
        )
    return _decided(6, comparisons)


def _below_weights(filters: pd.DataFrame, weights: pd.DataFrame) -> float | None:
    """Mean difference in accuracy of filters to weights with as many parameters left."""
    line = weights.groupby("level")[["params_left", "test_after"]].mean().sort_values("params_left")
    pruned = filters[filters["level"] > 0]
    if len(line) < 2 or len(pruned) < 2:
        return None
    within = pruned[pruned["params_left"].between(line["params_left"].iloc[0], 1.0)]
    if within.empty:
        return None
    expected = np.interp(
        np.log(within["params_left"].astype(float)), np.log(line["params_left"]), line["test_after"]
    )
    return float((within["test_after"] - expected).mean())


def masks_overstate(evidence: Evidence) -> Verdict:
    """Masks keep more parameters of convolutions than removal leaves, at every pruned level."""
    levels = _filters(evidence)
    counts = ["conv_params_masked", "conv_params_compact"]
    levels = levels[levels["level"] > 0].dropna(subset=counts)
    if levels.empty:
        return _missing(7, "filters pruned independently", f"{_ALEXNET} {_CHANNELS}")
    masked, compact = (levels[name].astype(float) for name in counts)
    levels = levels.assign(ratio=masked / compact.clip(lower=1.0))
    comparisons = [
        Comparison.of(
            f"masked / removed of {_named(*values[:2])} at {_percent(values[2])}",
            _by_seed(rows, "ratio"),
            1.0,
            above=True,
            points=False,
        )
        for values, rows in levels.groupby(["model", "dataset", "target_sparsity"])
    ]
    low, high = levels["ratio"].min(), levels["ratio"].max()
    return _decided(7, comparisons, f"From {low:.2f} to {high:.2f} times in all")


def latency_behaves(evidence: Evidence) -> Verdict:
    """Linear in the batch, masked as dense, compact faster the fewer parameters are left.

    Of every machine, device and number of threads, over pruning runs with BATCHES batch sizes and
    two pruned levels. Linear: R squared of the dense median against batch size, at the largest
    level, over LINEAR. As dense: the median of masked / dense within SAME_TIME of 1. Faster:
    compact / dense (median over batch sizes) below 1 at the last level, and its Spearman with
    parameters removed below 0, over levels.
    """
    rows = evidence.latencies
    rows = rows[(rows["engine"] == "eager") & rows["p50_ms"].notna() & rows["model"].notna()]
    comparisons: list[Comparison] = []
    apart = ["model", "machine", "device", "threads"]
    for (model, machine, device, threads), every in rows.groupby(apart, dropna=False):
        runs = every.groupby(["seed", "pruning_run"])
        behaviour = pd.DataFrame([
            {"seed": seed} | found for (seed, _), run in runs if (found := _behaviour(run))
        ])  # fmt: skip
        if behaviour.empty:
            continue
        name = f"{short_model(str(model))} on {device} ({threads} threads, {machine})"
        for what, column, edge, above in (
            ("R squared of time and batch size", "r_squared", LINEAR, True),
            ("masked / dense", "masked", 1 - SAME_TIME, True),
            ("masked / dense", "masked", 1 + SAME_TIME, False),
            ("compact / dense at the last level", "compact", 1.0, False),
            ("Spearman of that and parameters removed", "spearman", 0.0, False),
        ):
            values = _by_seed(behaviour, column)
            comparisons.append(
                Comparison.of(f"{what}, {name}", values, edge, above=above, points=False)
            )
    if not comparisons:
        return _missing(
            8,
            f"times of dense, masked and compact at {BATCHES} batch sizes and two pruned levels",
            f"{_ALEXNET} {_CHANNELS} && pruneflow benchmark_latency --model alexnet",
        )
    return _decided(8, comparisons, "The study's AlexNet, on a GPU: compact about 0.67 of dense")


def _behaviour(run: pd.DataFrame) -> dict[str, float] | None:
    """What the times of a pruning run's forms do with batch size and level; None if too few."""
    times = run.groupby(["level", "batch_size", "form"])["p50_ms"].median().unstack("form")
    if not {"dense", "masked", "compact"} <= set(times.columns):
        return None
    dense = times["dense"].dropna()
    most = dense.xs(dense.index.get_level_values("level").max(), level="level")
    masked = (times["masked"] / times["dense"]).dropna()
    ratio = (times["compact"] / times["dense"]).dropna().groupby("level").median()
    ratio = ratio[ratio.index > 0]
    if len(most) < BATCHES or len(ratio) < 2 or masked.empty:
        return None
    params = run.groupby(["level", "form"])["params"].max().unstack("form").astype(float)
    removed = 1 - (params["compact"] / params["dense"]).reindex(ratio.index)
    fit = stats.linregress(most.index.to_numpy(dtype=float), most.to_numpy(dtype=float))
    return {
        "r_squared": float(fit.rvalue) ** 2,
        "masked": float(masked.median()),
        "compact": float(ratio.iloc[-1]),
        "spearman": _spearman(removed.tolist(), ratio.tolist()),
    }


def _losses(levels: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy lost since level 0 of each seed at each target sparsity `at`, as `loss`.

    Of the configuration with most seeds of each model, data set and fraction.
    """
    columns = ["model", "dataset", "fraction"]
    levels = levels.dropna(subset=["target_sparsity"])
    levels = levels.assign(
        loss=-_since_start(levels, "test_after"),
        at=levels["target_sparsity"].round(6).map(places(levels["target_sparsity"])),
    )
    levels = levels[(levels["level"] > 0) & levels["loss"].notna()]
    chosen = [_most_seeds(part) for _, part in levels.groupby(columns)]
    rows = pd.concat(chosen) if chosen else levels
    return rows.groupby([*columns, "at", "seed"])["loss"].mean().reset_index()


def bert_is_fragile(evidence: Evidence) -> Verdict:
    """BERT loses more accuracy than each CNN at the same sparsity; the smaller fraction is better.

    By L1, at the highest target sparsity that the encoder and the CNN both have, the mean over
    fractions; the smallest and the largest fraction of one encoder, by seed, at the highest
    sparsity that both have within NEAR, else the nearest within NEAREST. Encoders `hf:` stand for
    BERT.
    """
    losses = _losses(_l1(evidence))
    bert, cnns = losses[of_texts(losses["model"])], where(losses, model=CNNS)
    if bert.empty or cnns.empty:
        kinds = {"bert": ("BERT (no encoder of texts)", bert), "alexnet": ("a CNN", cnns)}
        lacking = {name: what for name, (what, part) in kinds.items() if part.empty}
        commands = " && ".join(f"{_ITERATIVE} {name}" for name in lacking)
        return _missing(9, f"{' and '.join(lacking.values())}, pruned by L1", commands)
    comparisons: list[Comparison | None] = []
    for (encoder, texts), ours in bert.groupby(["model", "dataset"]):
        comparisons.append(_small_steps(_named(encoder, texts), ours))
        for (cnn, images), theirs in cnns.groupby(["model", "dataset"]):
            common = set(ours["at"]) & set(theirs["at"])
            at = max(common, default=None)
            comparisons.append(
                None
                if at is None
                else Comparison.between(
                    f"lost by {_named(encoder, texts)} - by {_named(cnn, images)} at "
                    f"{_percent(at)} sparsity",
                    _by_seed(where(ours, at=at), "loss"),
                    _by_seed(where(theirs, at=at), "loss"),
                    above=True,
                )
            )
    known = [comparison for comparison in comparisons if comparison is not None]
    if len(known) < len(comparisons) and (not known or joint(known) != "refuted"):
        lacking_place = "a sparsity that an encoder and every CNN, and two fractions of it, reach"
        command = f"{_ITERATIVE} bert --fraction 0.2929 --iterations 8"
        return _missing(9, lacking_place, command, known)
    return _decided(9, known)


def _small_steps(name: str, losses: pd.DataFrame) -> Comparison | None:
    """The smallest fraction's loss beside the largest's, where they come nearest; or nothing."""
    small, large = losses["fraction"].min(), losses["fraction"].max()
    if small == large:
        return None
    pairs = where(losses, fraction=small).merge(
        where(losses, fraction=large), on="seed", suffixes=("", "_large")
    )
    pairs = pairs.assign(off=(pairs["at"] - pairs["at_large"]).abs())
    pairs = pairs[pairs["off"] <= NEAREST]
    if pairs.empty:
        return None
    same = pairs[pairs["off"] <= NEAR]
    by_rank = same.sort_values("at", ascending=False) if len(same) else pairs.sort_values("off")
    chosen = by_rank.iloc[0]
    here = where(pairs, at=chosen["at"], at_large=chosen["at_large"])
    what = f"lost by fraction {small:g} - by {large:g}, {name} at {_percent(chosen['at'])} sparsity"
    return Comparison.of(what, here["loss"] - here["loss_large"], 0.0, above=False)


def vgg_holds_best(evidence: Evidence) -> Verdict:
    """VGG16 loses less than each of at least two CNNs on one data set, at their highest common
    sparsity.

    By L1; of a model's fractions the mean.
    """
    losses = _losses(where(_l1(evidence), model=CNNS))
    comparisons = []
    for dataset, rows in losses.groupby("dataset"):
        models = sorted(set(rows["model"]) - {"vgg16"})
        common = set.intersection(*(set(part["at"]) for _, part in rows.groupby("model")))
        if "vgg16" not in set(rows["model"]) or len(models) < 2 or not common:
            continue
        here = where(rows, at=max(common))
        for model in models:
            comparisons.append(
                Comparison.between(
                    f"lost by vgg16 - by {_named(model, dataset)} at {_percent(max(common))} "
                    "sparsity",
                    _by_seed(where(here, model="vgg16"), "loss"),
                    _by_seed(where(here, model=model), "loss"),
                    above=False,
                )
            )
    if not comparisons:
        there = ", ".join(sorted(losses["model"].unique())) or "none"
        lacking = [m for m in ("vgg16", "alexnet", "resnet18") if m not in set(losses["model"])]
        return _missing(
            10,
            f"vgg16 and two other CNNs by L1 on one data set, at one sparsity (there are: {there})",
            " && ".join(f"{_ITERATIVE} {model}" for model in lacking or ["vgg16"]),
        )
    return _decided(10, comparisons)


def skips_cost_more(evidence: Evidence) -> Verdict:
    """ResNets, by filters: removal leaves less than MOST of what masks say, near the study's level.

    Of convolutions' parameters, at each run's level whose share by masks is nearest the study's
    53.13 %, within NEAR_MASKED. The study's: 6.27 % (ResNet18) and 17.21 % (ResNet50) left.
    """
    levels = _filters(evidence, model=("resnet18", "resnet50"))
    levels = levels.dropna(subset=["conv_params_masked", "conv_params_compact"])
    unpruned = levels[levels["level"] == 0].set_index("run_id")["conv_params_masked"]
    of_unpruned = levels["run_id"].map(unpruned).astype(float)
    by_masks = levels["conv_params_masked"].astype(float)
    levels = levels.assign(
        off=(by_masks / of_unpruned - MASKED).abs(),
        ratio=levels["conv_params_compact"].astype(float) / by_masks,
    )
    near = levels[(levels["level"] > 0) & (levels["off"] <= NEAR_MASKED)]
    if near.empty:
        return _missing(
            11,
            "filters of resnet18 or resnet50 pruned independently to some 53 % by masks",
            f"{_ITERATIVE} resnet18 {_CHANNELS}",
        )
    at = near.loc[near["off"].groupby(near["run_id"]).idxmin()]
    comparisons = [
        Comparison.of(
            f"removed / masked of {_named(*values)}",
            _by_seed(rows, "ratio"),
            MOST,
            above=False,
            points=False,
        )
        for values, rows in at.groupby(["model", "dataset"])
    ]
    return _decided(11, comparisons)


CLAIMS: dict[int, Callable[[Evidence], Verdict]] = {
    1: keeps_accuracy,
    2: beats_random,
    3: iterative_beats_direct,
    4: first_linears,
    5: regularises,
    6: structured_falls_faster,
    7: masks_overstate,
    8: latency_behaves,
    9: bert_is_fragile,
    10: vgg_holds_best,
    11: skips_cost_more,
}


def judge(evidence: Evidence) -> list[Verdict]:
    """Every claim, in the study's order."""
    return [test(evidence) for test in CLAIMS.values()]
