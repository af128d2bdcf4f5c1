"""The 2020 study's eleven claims, each a test over runs and a row of CLAIMS.

Accuracies are fractions, a point is 0.01; differences are paired by base run where runs share one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from pandas import DataFrame
from scipy import stats

from pruneflow.config import reads_texts, short_model
from pruneflow.paper.verdicts import Claim, Comparison, Tested, above, below
from pruneflow.report.evidence import SETTING, Evidence, differences, nearly_same, where
from pruneflow.report.page import Statement

EIGHTH = 0.875  # sparsity of claim 1
NEAR, NEAREST = 0.005, 0.02  # sparsities that count as the same, and that may be compared
KEPT, FAR = 0.02, 0.05  # "keeps its accuracy" loses at most; "by far"
CLEARLY = 0.01  # "clearly", and a rise that is more than noise
COLLAPSED = 0.5  # of its accuracy: below it a model is not compared any more
LEVELS = 4  # the least that a trend is seen in
MOST = 0.5  # "most" of the zeros; and of the parameters that masks keep, claim 11
LINEAR = 0.98  # R squared
BATCHES = 3  # the least batch sizes that show a line
SAME_TIME = 0.10  # relative, of times that count as equal
MASKED, NEAR_MASKED = 0.5313, 0.10  # of its ResNets, of which removal left 6.27 and 17.21 %
CNNS = ("alexnet", "vgg16", "resnet18", "resnet50")
_KIND = ["model", "dataset"]
_LEVELS = {"procedure": "iterative", "schedule": "geometric"}
_WEIGHTS = {"granularity": "weight", "scope": "global", **_LEVELS}


def _levels(evidence: Evidence, **values: object) -> DataFrame:
    """Levels, with their `kind` and sparsity `at`, and what changed since the run's level 0."""
    levels = evidence.of(**values)
    start = levels[levels["level"] == 0].set_index("run_id").reindex(levels["run_id"])
    return levels.assign(
        kind=levels["model"].map(short_model) + " on " + levels["dataset"],
        at=nearly_same(levels["target_sparsity"]),
        change=levels["test_after"] - start["test_after"].to_numpy(),
        gap_change=levels["gap"] - start["gap"].to_numpy(),
    )


def _l1(evidence: Evidence, **values: object) -> DataFrame:
    """Of single weights by L1."""
    return _levels(evidence, **{"criterion": "l1"} | _WEIGHTS | values)


def _filters(evidence: Evidence, **values: object) -> DataFrame:
    """Of filters by magnitude, every Conv2d by itself, as torch's ln_structured."""
    how = {"granularity": "channel", "coupling": "independent", **_LEVELS}
    return _levels(evidence, criterion=("l1", "l2"), **how, **values)


def _most_seeds(levels: DataFrame) -> DataFrame:
    """Of the configuration with most seeds, so that means are over seeds alone."""
    seeds = levels.groupby("configuration")["seed"].nunique()
    return where(levels, configuration=seeds.idxmax()) if len(seeds) else levels


def _compared(
    side: Callable[..., Comparison], rows: DataFrame, column: str, *edge: float, **show: bool
) -> list[Comparison]:
    """The mean over seeds of a column beside an edge, of the rows of each `what`."""
    means = rows.dropna(subset=[column]).groupby(["what", "seed"], sort=False)[column].mean()
    groups = means.astype(float).groupby("what", sort=False)
    return [side(what, values, *edge, **show) for what, values in groups]


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _at_each_sparsity(
    pair: str, first: DataFrame, second: DataFrame, column: str, edge: float
) -> list[Comparison]:
    """First - second, of the runs of one base."""
    both = differences(first, second, "target_sparsity", column)
    both["what"] = f"{pair} at " + both["target_sparsity"].map(_percent).astype(str) + " sparsity"
    return _compared(above, both, "difference", edge)


def keeps_accuracy(evidence: Evidence) -> Tested:
    """Test accuracy at 12.5 % left, after fine-tuning, less than KEPT below level 0's."""
    levels = _l1(evidence, model="alexnet").dropna(subset=["change"])
    levels = levels.assign(off=(levels["target_sparsity"] - EIGHTH).abs()).sort_values("off")
    at = _most_seeds(levels[levels["off"] <= NEAR]).drop_duplicates("run_id")
    at["what"] = "change of test accuracy of " + at["kind"] + " at 12.5 % left"
    accuracy = f"Test accuracy then {at['test_after'].mean():.3f}"
    return Tested(_compared(above, at, "change", -KEPT), accuracy)


def beats_random(evidence: Evidence) -> Tested:
    """L1 over FAR better than random at every pruned level, after fine-tuning, paired by base.

    One level where it is not refutes; confirming needs a random run beside every level of L1's.
    """
    keys = [*_KIND, "fraction", "finetune_epochs"]
    l1, random = _l1(evidence), _l1(evidence, criterion="random")
    comparisons, expected = [], 0
    for values, of_random in random[random["level"] > 0].groupby(keys, dropna=False):
        of_l1 = where(l1[l1["level"] > 0], **dict(zip(keys, values, strict=True)))
        expected += of_l1["level"].nunique()
        pair = f"L1 - random, {of_random['kind'].iloc[0]}"
        comparisons += _at_each_sparsity(pair, of_l1, of_random, "test_after", FAR)
    lacking = f"a random run at {expected - len(comparisons)} of {expected} levels of L1's"
    return Tested(comparisons, lacking=lacking if len(comparisons) < expected else "")


def iterative_beats_direct(evidence: Evidence) -> Tested:
    """Iterative - direct, paired at one sparsity: over CLEARLY before fine-tuning, over 0 after."""
    iterative, direct = _l1(evidence), _l1(evidence, procedure="direct")
    comparisons = []
    for keys, rows in iterative[iterative["level"] > 0].groupby([*_KIND, "fraction"]):
        like = where(direct[direct["level"] > 0], model=keys[0], dataset=keys[1])
        for when, edge in (("before", CLEARLY), ("after", 0.0)):
            pair = f"iterative (fraction {keys[2]:g}) - direct {when} fine-tuning"
            pair = f"{pair}, {rows['kind'].iloc[0]}"
            comparisons += _at_each_sparsity(pair, rows, like, f"test_{when}", edge)
    edges = {comparison.edge for comparison in comparisons}
    lacking = "" if len(edges) == 2 else "accuracy before and after fine-tuning"
    return Tested(comparisons, "Iterative runs have trained for more epochs", lacking)


def first_linears(evidence: Evidence) -> Tested:
    """Over MOST of AlexNet's zeros in its first two linear layers, at the last common level."""
    layers = where(evidence.layers, model="alexnet", criterion="l1", **_WEIGHTS)
    layers = _most_seeds(layers[layers["level"] > 0])
    last = layers.groupby("run_id")["level"].max().min()
    layers = where(layers, level=last)
    two = layers["layer"].isin(["classifier.1.weight", "classifier.4.weight"])
    zeros = layers.assign(two=layers["zeros"] * two).groupby("seed")[["two", "zeros"]].sum()
    shares = (zeros["two"] / zeros["zeros"]).fillna(0.0).reset_index(name="share")
    shares["what"] = f"share of alexnet's zeros in classifier.1 and classifier.4 at level {last}"
    of_params = (layers["params"] * two).sum() / max(1, layers["params"].sum())
    note = f"They hold {_percent(of_params)} of the parameters"
    return Tested(_compared(above, shares, "share", MOST, points=False), note)


def regularises(evidence: Evidence) -> Tested:
    """The train-test gap falls with sparsity (Spearman < 0), and ends below level 0's.

    And below that of a control trained as long, where there is one: fine-tuning alone changes it.
    Levels count while they keep COLLAPSED of the accuracy: what answers by chance has no gap.
    """
    comparisons, notes = [], []
    for _, every in _l1(evidence).dropna(subset=["gap"]).groupby(_KIND):
        rows, gap = _most_seeds(every).sort_values("level"), "gap at the last level - "
        accuracy = rows.groupby("level")["test_after"].mean()
        collapsed = (accuracy < COLLAPSED * accuracy.iloc[0]).cummax()
        rows = rows[~rows["level"].map(collapsed)]
        if rows["level"].nunique() < LEVELS or rows["level"].min() != 0:
            continue
        last, kind = where(rows, level=rows["level"].max()), rows["kind"].iloc[0]
        comparisons += _compared(below, last.assign(what=f"{gap}unpruned, {kind}"), "gap_change")
        trends = rows.groupby("seed")[["level", "gap"]].corr("spearman").fillna(0.0)["gap"]
        trend = below(f"Spearman of gap and level, {kind}", trends[:, "level"], points=False)
        comparisons.append(trend)
        beside = differences(last, evidence.control_of(last), "level", "gap")
        beside["what"] = f"{gap}dense control's, {kind}"
        comparisons += _compared(below, beside, "difference")
        notes += [] if len(beside) else [f"no dense control of {kind} to tell it from training"]
    return Tested(comparisons, "; ".join(notes))


def structured_falls_faster(evidence: Evidence) -> Tested:
    """Filters below single weights at as many parameters left, and erratic before fine-tuning.

    Of runs from one base run: accuracy of weights is interpolated over the logarithm of parameters
    left, within its range. Erratic: it rises by over CLEARLY from one level to the next somewhere.
    """
    comparisons = []
    columns = ["params_left", "test_after", "test_before"]
    for (model, dataset), every in _filters(evidence).dropna(subset=columns).groupby(_KIND):
        l1 = _most_seeds(_l1(evidence, model=model, dataset=dataset).dropna(subset=columns))
        falls, rises = [], []
        for base, run in _most_seeds(every).sort_values("level").groupby("base_run"):
            weights = where(l1, base_run=base).groupby("level")[columns[:2]].mean()
            weights = weights.sort_values("params_left")
            pruned = run[run["level"] > 0]
            within = pruned[pruned["params_left"].between(weights["params_left"].min(), 1.0)]
            if len(weights) < 2 or len(pruned) < 2 or within.empty:
                continue
            at, known = (np.log(part["params_left"].astype(float)) for part in (within, weights))
            expected = np.interp(at, known, weights["test_after"])
            falls.append((within["test_after"] - expected).mean())
            rises.append(run["test_before"].diff().max())
        if falls:
            kind = every["kind"].iloc[0]
            rise = f"largest rise from a level to the next before fine-tuning, {kind}"
            comparisons.append(below(f"filters - weights at equal parameters, {kind}", falls))
            comparisons.append(above(rise, rises, CLEARLY))
    return Tested(comparisons)


def masks_overstate(evidence: Evidence) -> Tested:
    """Masks keep more parameters of convolutions than removal leaves, at every pruned level."""
    levels = _filters(evidence)
    levels = levels[levels["level"] > 0]
    masked, compact = (levels[f"conv_params_{by}"].astype(float) for by in ("masked", "compact"))
    what = "masked / removed of " + levels["kind"] + " at " + levels["at"].map(_percent).astype(str)
    levels = levels.assign(ratio=masked / compact.clip(lower=1.0), what=what)
    note = f"From {levels['ratio'].min():.2f} to {levels['ratio'].max():.2f} times in all"
    return Tested(_compared(above, levels, "ratio", 1.0, points=False), note)


def latency_behaves(evidence: Evidence) -> Tested:
    """Linear in the batch, masked as dense, compact faster the fewer parameters are left.

    Of every machine, device and number of threads, over pruning runs with BATCHES batch sizes and
    two pruned levels. Linear: R squared over LINEAR. As dense: within SAME_TIME.
    """
    rows = where(evidence.latencies, engine="eager").dropna(subset=["p50_ms", "model"])
    behaviour = []
    for keys, run in rows.groupby(["model", *SETTING, "seed", "pruning_run"]):
        on = f"{short_model(str(keys[0]))} on {keys[2]} ({keys[3]} threads, {keys[1]})"
        if measured := _behaviour(run):
            behaviour.append({"on": on, "seed": keys[4]} | measured)
    comparisons = []
    for what, column, side, edge in (
        ("R squared of time and batch size, ", "r_squared", above, LINEAR),
        ("masked / dense, ", "masked", above, 1 - SAME_TIME),
        ("masked / dense, ", "masked", below, 1 + SAME_TIME),
        ("compact / dense at the last level, ", "compact", below, 1.0),
        ("Spearman of that and parameters removed, ", "spearman", below, 0.0),
    ):
        if behaviour:
            runs = DataFrame(behaviour)
            runs["what"] = what + runs["on"]
            comparisons += _compared(side, runs, column, edge, points=False)
    return Tested(comparisons, "The study's AlexNet, on a GPU: compact about 0.67 of dense")


def _behaviour(run: DataFrame) -> dict[str, float]:
    """What the times of a pruning run's forms do with batch size and level; nothing if too few."""
    times = run.groupby(["level", "batch_size", "form"])["p50_ms"].median().unstack("form")
    times = times.reindex(columns=["dense", "masked", "compact"])
    dense = times["dense"].dropna().reset_index().astype(float)
    most = dense[dense["level"] == dense["level"].max()]
    masked = (times["masked"] / times["dense"]).median()
    ratio = (times["compact"] / times["dense"]).dropna().groupby("level").median()
    ratio = ratio[ratio.index > 0]
    if len(most) < BATCHES or len(ratio) < 2 or np.isnan(masked):
        return {}
    params = run.groupby(["level", "form"])["params"].max().unstack("form").astype(float)
    removed = 1 - (params["compact"] / params["dense"]).reindex(ratio.index)
    trend = DataFrame({"removed": removed, "ratio": ratio}).corr("spearman")
    return {
        "r_squared": float(stats.linregress(most["batch_size"], most["dense"]).rvalue) ** 2,
        "masked": masked,
        "compact": ratio.iloc[-1],
        "spearman": trend.fillna(0.0).iloc[0, 1],
    }


def _losses(evidence: Evidence) -> DataFrame:
    """Test accuracy that each seed lost since level 0, as `loss`, by L1 at each sparsity `at`."""
    levels = _l1(evidence).dropna(subset=["at", "change"])
    levels = levels[levels["level"] > 0].assign(loss=-levels["change"])
    keys = [*_KIND, "kind", "fraction"]
    chosen = [_most_seeds(part) for _, part in levels.groupby(keys)]
    rows = pd.concat(chosen) if chosen else levels
    return rows.groupby([*keys, "at", "seed"])["loss"].mean().reset_index()


def _lost(first: DataFrame, second: DataFrame, at: float, *, above: bool) -> Comparison:
    """How much more the first lost than the second, by fractions' means."""
    losses = [where(part, at=at).groupby("seed")["loss"].mean() for part in (first, second)]
    pair = f"lost by {first['kind'].iloc[0]} - by {second['kind'].iloc[0]}"
    return Comparison.between(f"{pair} at {_percent(at)} sparsity", *losses, above=above)


def bert_is_fragile(evidence: Evidence) -> Tested:
    """BERT loses more accuracy than each CNN at the same sparsity; the smaller fraction is better.

    At the highest target sparsity of both. Encoders `hf:` stand for BERT.
    """
    losses = _losses(evidence)
    cnns = [rows for _, rows in where(losses, model=CNNS).groupby(_KIND)]
    comparisons, expected = [], 0 if cnns else 1
    for _, ours in losses[losses["model"].map(reads_texts).astype(bool)].groupby(_KIND):
        comparisons += _small_steps(ours)
        common = [(cnn, set(ours["at"]) & set(cnn["at"])) for cnn in cnns]
        comparisons += [_lost(ours, cnn, max(at), above=True) for cnn, at in common if at]
        expected += 1 + len(cnns)
    lacking = "a sparsity that an encoder and every CNN, and two fractions of it, reach"
    return Tested(comparisons, lacking=lacking if len(comparisons) < expected else "")


def _small_steps(losses: DataFrame) -> list[Comparison]:
    """The smallest fraction's loss beside the largest's, by seed; nothing if they do not meet.

    At the highest sparsity that both have within NEAR, else the nearest within NEAREST.
    """
    low, high = losses["fraction"].min(), losses["fraction"].max()
    small, large = (where(losses, fraction=fraction) for fraction in (low, high))
    pairs = small.merge(large, on="seed", suffixes=("", "_large"))
    pairs = pairs.assign(off=(pairs["at"] - pairs["at_large"]).abs())
    pairs = pairs[pairs["off"] <= NEAREST]
    if pairs.empty or low == high:
        return []
    same = pairs[pairs["off"] <= NEAR]
    chosen = same.nlargest(1, "at") if len(same) else pairs.nsmallest(1, "off")
    kind, at, at_large = chosen.iloc[0][["kind", "at", "at_large"]]
    here = where(pairs, at=at, at_large=at_large)
    what = f"{kind} at {_percent(at)} sparsity"
    return [
        below(f"lost by fraction {low:g} - by {high:g}, {what}", here["loss"] - here["loss_large"])
    ]


def vgg_holds_best(evidence: Evidence) -> Tested:
    """VGG16 loses less than two other CNNs on one data set, at their highest common sparsity."""
    comparisons = []
    for _, rows in where(_losses(evidence), model=CNNS).groupby("dataset"):
        cnns = dict(list(rows.groupby("model")))
        common = set.intersection(*(set(part["at"]) for part in cnns.values()))
        vgg = cnns.pop("vgg16", None)
        if vgg is not None and len(cnns) > 1 and common:
            comparisons += [_lost(vgg, cnn, max(common), above=False) for cnn in cnns.values()]
    return Tested(comparisons)


def skips_cost_more(evidence: Evidence) -> Tested:
    """Of ResNets removal leaves less than MOST of what masks say, near the study's level."""
    levels = _filters(evidence, model=("resnet18", "resnet50"))
    levels["off"] = (levels["masks_left"] - MASKED).abs()
    levels["ratio"] = levels["removed_left"] / levels["masks_left"]
    near = levels[(levels["level"] > 0) & (levels["off"] <= NEAR_MASKED)].dropna(subset=["ratio"])
    at = near.sort_values("off", kind="stable").drop_duplicates("run_id")
    at["what"] = "removed / masked of " + at["kind"]
    return Tested(_compared(below, at, "ratio", MOST, points=False))


_ITERATIVE = "pruneflow prune_iterative --model"
_ALEXNET = f"{_ITERATIVE} alexnet"
_FILTERS = f"{_ALEXNET} --granularity channel --coupling independent"
CLAIMS: dict[int, Claim] = {
    1: Claim(
        "AlexNet keeps its accuracy (within 2 points) with 12.5 % of its connections",
        keeps_accuracy, "alexnet, single weights by L1, at 87.5 % sparsity", _ALEXNET,
    ),
    2: Claim(
        "L1 beats random by far at every sparsity",
        beats_random, "runs by L1 and at random from one base", f"{_ALEXNET} --criterion random",
    ),
    3: Claim(
        "Iterative beats direct: slightly after fine-tuning, clearly before",
        iterative_beats_direct, "iterative and direct runs by L1 of one base, at one sparsity",
        f"{_ALEXNET} --iterations 4 && pruneflow prune_direct --model alexnet --iterations 4",
    ),
    4: Claim(
        "Most pruned weights are in the first two linear layers of AlexNet",
        first_linears, "layers of alexnet, single weights pruned by L1", _ALEXNET,
    ),
    5: Claim(
        "Pruning regularises: the train-test gap narrows as sparsity grows",
        regularises, f"runs by L1 of {LEVELS} levels that keep half of their accuracy", _ALEXNET,
    ),
    6: Claim(
        "Structured accuracy falls faster than unstructured and is erratic before fine-tuning",
        structured_falls_faster, "single weights by L1 and filters pruned independently, from one "
        "base run, at comparable parameters left", f"{_ALEXNET} && {_FILTERS}",
    ),
    7: Claim(
        "Structured masks overstate the parameters left, against physical removal",
        masks_overstate, "filters pruned independently", _FILTERS,
    ),
    8: Claim(
        "Latency grows linearly with batch size; masked equals original; compact is faster, and "
        "more so as parameters go", latency_behaves,
        f"times of dense, masked and compact at {BATCHES} batch sizes and two pruned levels",
        f"{_FILTERS} && pruneflow benchmark_latency --model alexnet",
    ),
    9: Claim(
        "BERT loses accuracy faster than the CNNs; a smaller fraction is slightly better",
        bert_is_fragile, "BERT (an encoder of texts) by two fractions and a CNN, by L1",
        f"{_ALEXNET} && {_ITERATIVE} bert && {_ITERATIVE} bert --fraction 0.2929 --iterations 8",
    ),
    10: Claim(
        "VGG16 holds best at high sparsity among the CNNs",
        vgg_holds_best, "vgg16 and two other CNNs by L1 on one data set, at one sparsity",
        f"{_ITERATIVE} vgg16 && {_ALEXNET} && {_ITERATIVE} resnet18",
    ),
    11: Claim(
        "Removal through skip connections takes far more of a ResNet than the masks say",
        skips_cost_more, "filters of a ResNet pruned independently to some 53 % by masks",
        _FILTERS.replace("alexnet", "resnet18"),
    ),
}  # fmt: skip


def judge(evidence: Evidence, number: int) -> Statement:
    """A claim by its number, and what the runs say of it."""
    return CLAIMS[number].judge(evidence, str(number))
