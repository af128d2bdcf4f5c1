"""The 2020 study's eleven claims, each a test over runs: confirmed, refuted, or not enough data.

Accuracies are fractions, a point is 0.01. Means are over seeds; differences are paired by base run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from pruneflow.report.evidence import Evidence, is_bert, paired, short_model, summary, where

CONFIRMED: Outcome = "confirmed"
REFUTED: Outcome = "refuted"
NOT_ENOUGH: Outcome = "not enough data"
Outcome = Literal["confirmed", "refuted", "not enough data"]

KEPT = 0.02  # points that "keeps its accuracy" may lose
FAR = 0.05  # "by far"
CLEARLY = 0.01
SAME_PLACE = 0.005  # sparsities that count as one
SAME_TIME = 0.10  # relative, of times that count as equal
LINEAR = 0.98  # R squared of "linear"
_CNNS = ("alexnet", "vgg16", "resnet18", "resnet50")
_ALEXNET = "pruneflow prune_iterative --model alexnet"
_CHANNELS = "--granularity channel --coupling independent"


@dataclass(frozen=True)
class Verdict:
    """What runs say of a claim.

    Attributes:
        reason: the numbers behind the verdict in a sentence, or what is missing.
        numbers: the rows behind it.
        command: what would produce what is missing.
    """

    number: int
    claim: str
    verdict: Outcome
    reason: str
    numbers: pd.DataFrame = field(default_factory=pd.DataFrame)
    command: str = ""


@dataclass(frozen=True)
class _Finding:
    """A verdict before it is known of which claim."""

    verdict: Outcome
    reason: str
    numbers: pd.DataFrame = field(default_factory=pd.DataFrame)
    command: str = ""


def _missing(what: str, command: str) -> _Finding:
    return _Finding(NOT_ENOUGH, f"missing: {what}", command=command)


def _decided(holds: bool, reason: str, numbers: pd.DataFrame) -> _Finding:
    return _Finding(CONFIRMED if holds else REFUTED, reason, numbers)


def _l1(evidence: Evidence, **values: object) -> pd.DataFrame:
    """Levels of single weights by L1, globally, iteratively."""
    return evidence.of(
        granularity="weight", criterion="l1", scope="global", schedule="iterative", **values
    )


def _independent(evidence: Evidence, **values: object) -> pd.DataFrame:
    """Levels of filters by L2 as `ln_structured` chooses them."""
    return evidence.of(
        granularity="channel", coupling="independent", schedule="iterative", **values
    )


def _at(levels: pd.DataFrame, sparsity: float) -> pd.DataFrame:
    """The levels that aim at a sparsity."""
    return levels[(levels["target_sparsity"] - sparsity).abs() < SAME_PLACE]


def _seeds(levels: pd.DataFrame) -> str:
    n = levels["seed"].nunique()
    return f"n = {n} seed{'s' * (n != 1)}"


def _first(levels: pd.DataFrame) -> pd.DataFrame:
    """Of one configuration: that with most seeds, so that means are over seeds alone."""
    if levels.empty:
        return levels
    counts = levels.groupby("configuration")["seed"].nunique()
    return where(levels, configuration=counts.idxmax())


def keeps_accuracy(evidence: Evidence) -> _Finding:
    """Mean test accuracy at 12.5 % left, after fine-tuning, at most 2 points below level 0's."""
    levels = _first(_l1(evidence, model="alexnet", fraction=0.5))
    at = _at(levels, 0.875)
    if at.empty:
        return _missing("AlexNet, single weights by L1, at 87.5 % sparsity", _ALEXNET)
    start = where(levels, level=0)[["run_id", "test_after"]]
    both = at.merge(start, on="run_id", suffixes=("", "_unpruned"))
    both["change"] = both["test_after"] - both["test_after_unpruned"]
    found = summary(both, ["target_sparsity"], "change")
    change, low = float(found["mean"].iloc[0]), float(found["low"].iloc[0])
    unsure = low < -KEPT < float(found["high"].iloc[0])
    reason = (
        f"test accuracy changes by {100 * change:+.1f} points at 12.5 % of the connections "
        f"({_seeds(at)})" + (", and the 95 % interval includes -2" if unsure else "")
    )
    return _decided(change >= -KEPT, reason, found)


def beats_random(evidence: Evidence) -> _Finding:
    """L1 at least 5 points better than random at every pruned level, after fine-tuning, paired."""
    l1 = _l1(evidence)
    random = evidence.of(granularity="weight", criterion="random", schedule="iterative")
    found = []
    for (model, dataset), own in random.groupby(["model", "dataset"]):
        other = where(l1, model=model, dataset=dataset)
        part = paired(
            other[other["level"] > 0], own[own["level"] > 0], "target_sparsity", "test_after"
        )
        found.append(part.assign(model=short_model(str(model))))
    numbers = pd.concat(found, ignore_index=True) if found else pd.DataFrame()
    if numbers.empty:
        return _missing("runs by L1 and at random from one base", f"{_ALEXNET} --criterion random")
    worst = numbers.sort_values("mean").iloc[0]
    reason = (
        f"L1 - random is between {100 * worst['mean']:+.1f} and {100 * numbers['mean'].max():+.1f} "
        f"points; least at {100 * worst['target_sparsity']:.1f} % sparsity of {worst['model']} "
        f"({int(worst['n'])} pairs)"
    )
    return _decided(bool((numbers["mean"] >= FAR).all()), reason, numbers)


def iterative_beats_direct(evidence: Evidence) -> _Finding:
    """Iterative - direct, paired at one sparsity: over 1 point before fine-tuning, over 0 after."""
    direct = evidence.of(granularity="weight", criterion="l1", schedule="direct")
    direct = direct[direct["level"] > 0]
    found = []
    for model, own in direct.groupby("model"):
        for column in ("test_before", "test_after"):
            part = paired(_l1(evidence, model=model), own, "target_sparsity", column)
            found.append(part.assign(model=short_model(str(model)), measure=column))
    numbers = pd.concat(found, ignore_index=True) if found else pd.DataFrame()
    if numbers.empty:
        return _missing(
            "iterative and direct runs of one base that meet at one sparsity",
            "pruneflow prune_direct --model alexnet --iterations 4",
        )
    before = where(numbers, measure="test_before")["mean"]
    after = where(numbers, measure="test_after")["mean"]
    reason = (
        f"iterative - direct: {100 * before.min():+.1f} to {100 * before.max():+.1f} points before "
        f"fine-tuning, {100 * after.min():+.1f} to {100 * after.max():+.1f} after "
        f"({int(numbers['n'].max())} pairs; iterative runs have trained for more epochs)"
    )
    return _decided(bool((before > CLEARLY).all() and (after > 0).all()), reason, numbers)


def first_linears(evidence: Evidence) -> _Finding:
    """Over half of the pruned weights of AlexNet in its first two linear layers, at every level."""
    layers = where(
        evidence.layers, model="alexnet", granularity="weight", criterion="l1", schedule="iterative"
    )
    layers = layers[layers["level"] > 0]
    if layers.empty:
        return _missing("layers of AlexNet pruned by L1", _ALEXNET)
    two = layers["layer"].isin(["classifier.1.weight", "classifier.4.weight"])
    zeros = layers.assign(of_two=layers["zeros"].where(two, 0)).groupby("level")
    numbers = (zeros["of_two"].sum() / zeros["zeros"].sum()).rename("share").reset_index()
    low, high = numbers["share"].min(), numbers["share"].max()
    reason = (
        f"the first two linear layers hold {100 * low:.1f} to {100 * high:.1f} % of the pruned "
        f"weights ({_seeds(layers)})"
    )
    return _decided(bool(low > 0.5), reason, numbers)


def regularises(evidence: Evidence) -> _Finding:
    """The train-test gap falls with sparsity (Spearman < 0), and ends below the dense control's.

    Fine-tuning alone changes the gap, so that where there is a control that was trained as long,
    the last level's gap has to be below that of the control too.
    """
    levels = evidence.of(granularity="weight", criterion="l1", schedule="iterative")
    levels = levels.assign(gap=levels["train_after"] - levels["test_after"])
    control = evidence.of(schedule="dense")
    control = control.assign(gap=control["train_after"] - control["test_after"])
    rows = []
    for (model, _), every in levels.groupby(["model", "dataset"]):
        own = _first(every)
        means = summary(own, ["level"], "gap")
        if len(means) < 4:
            continue
        last = int(means["level"].max())
        same = control[control["base_run"].isin(own["base_run"]) & (control["level"] == last)]
        rows.append(
            {
                "model": short_model(str(model)),
                "gap_unpruned": means["mean"].iloc[0],
                "gap_last": means["mean"].iloc[-1],
                "gap_control": float(same["gap"].mean()) if len(same) else np.nan,
                "spearman": float(stats.spearmanr(means["level"], means["mean"]).statistic),
                "seeds": own["seed"].nunique(),
            }
        )
    numbers = pd.DataFrame(rows)
    if numbers.empty:
        return _missing("iterative L1 runs of at least four levels", _ALEXNET)
    falls = (numbers["spearman"] < 0) & (numbers["gap_last"] < numbers["gap_unpruned"])
    below = numbers["gap_control"].isna() | (numbers["gap_last"] < numbers["gap_control"])
    told = "; ".join(
        f"{row['model']} {100 * row['gap_unpruned']:.1f} -> {100 * row['gap_last']:.1f} points"
        + ("" if pd.isna(row["gap_control"]) else f" (control {100 * row['gap_control']:.1f})")
        for _, row in numbers.iterrows()
    )
    without = (
        ""
        if numbers["gap_control"].notna().any()
        else "; no dense control to tell it from training"
    )
    return _decided(
        bool((falls & below).all()), f"gap, unpruned to last level: {told}{without}", numbers
    )


def structured_falls_faster(evidence: Evidence) -> _Finding:
    """Channels below single weights at as many parameters left, and erratic before fine-tuning.

    The accuracy of single weights is interpolated at the channels' parameters left. Erratic:
    accuracy before fine-tuning rises by over 1 point from one level to the next somewhere.
    """
    rows = []
    for (model, dataset), every in _independent(evidence).groupby(["model", "dataset"]):
        weights = _first(_l1(evidence, model=model, dataset=dataset))
        if weights.empty:
            continue
        own = _first(every)
        line = (
            weights.groupby("level")[["params_left", "test_after"]]
            .mean()
            .sort_values("params_left")
        )
        means = own.groupby("level")[["params_left", "test_after", "test_before"]].mean()
        expected = np.interp(
            np.log(means["params_left"]), np.log(line["params_left"]), line["test_after"]
        )
        difference = means["test_after"].to_numpy() - expected
        rises = means["test_before"].diff().max()
        rows.append(
            {
                "model": short_model(str(model)),
                "params_left_last": means["params_left"].iloc[-1],
                "channels_minus_weights": difference[-1],
                "mean_difference": difference[1:].mean(),
                "largest_rise_before": rises,
                "seeds": own["seed"].nunique(),
            }
        )
    numbers = pd.DataFrame(rows)
    if numbers.empty:
        return _missing("single weights and channels of one model", f"{_ALEXNET} {_CHANNELS}")
    faster = bool((numbers["mean_difference"] < 0).all())
    erratic = bool((numbers["largest_rise_before"] > CLEARLY).all())
    told = "; ".join(
        f"{row['model']} {100 * row['mean_difference']:+.1f} points on average, largest rise "
        f"before fine-tuning {100 * row['largest_rise_before']:+.1f}"
        for _, row in numbers.iterrows()
    )
    return _decided(
        faster and erratic, f"channels - single weights at equal parameters: {told}", numbers
    )


def masks_overstate(evidence: Evidence) -> _Finding:
    """Masks keep more parameters of convolutions than removal leaves, at every pruned level."""
    levels = _independent(evidence)
    levels = levels[levels["level"] > 0]
    if levels.empty:
        return _missing("filters pruned independently", f"{_ALEXNET} {_CHANNELS}")
    levels = levels.assign(
        ratio=levels["conv_params_masked"].astype(float)
        / levels["conv_params_compact"].astype(float)
    )
    numbers = summary(levels, ["model", "target_sparsity"], "ratio")
    low, high = numbers["mean"].min(), numbers["mean"].max()
    reason = f"masks keep {low:.2f} to {high:.2f} times the parameters that removal leaves"
    return _decided(bool(low > 1), reason, numbers)


def latency_behaves(evidence: Evidence) -> _Finding:
    """Linear in the batch, masked as dense, compact faster the fewer parameters are left.

    Linear: R squared of dense time against batch size at least 0.98. As dense: within 10 %, the
    median over all points. Faster: Spearman of compact speed-up and parameters left below 0.
    """
    rows = evidence.latencies
    rows = rows[(rows["engine"] == "eager") & rows["p50_ms"].notna()]
    dense = where(rows, form="dense")
    masked, compact = where(rows, form="masked"), where(rows, form="compact")
    compact = compact[compact["level"] > 0]
    enough = dense["batch_size"].nunique() >= 3 and len(masked) and compact["level"].nunique() >= 2
    if not enough:
        return _missing(
            "times of dense, masked and compact at three batch sizes and two levels",
            "pruneflow benchmark_latency --model alexnet",
        )
    numbers = []
    for (model, device, threads), own in dense.groupby(["model", "device", "threads"]):
        fit = stats.linregress(own["batch_size"].astype(float), own["p50_ms"].astype(float))
        here = {"model": model, "device": device, "threads": threads}
        smaller = where(compact, **here)
        order = stats.spearmanr(smaller["params_left"], smaller["speedup"]).statistic
        last = smaller[smaller["level"] == smaller["level"].max()]
        numbers.append(
            {
                **here,
                "r_squared": float(fit.rvalue) ** 2,
                "masked_over_dense": float((1 / where(masked, **here)["speedup"]).median()),
                "compact_over_dense_last": float((1 / last["speedup"]).median()),
                "params_left_last": float(last["params_left"].mean()),
                "spearman": float(order),
            }
        )
    table = pd.DataFrame(numbers)
    linear = bool((table["r_squared"] >= LINEAR).all())
    equal = bool(((table["masked_over_dense"] - 1).abs() <= SAME_TIME).all())
    falls = bool((table["spearman"] < 0).all())
    told = "; ".join(
        f"{short_model(str(row['model']))} on {row['device']}: R2 {row['r_squared']:.3f}, masked "
        f"{row['masked_over_dense']:.2f} of dense, compact {row['compact_over_dense_last']:.2f} of "
        f"it at the last level (the study's AlexNet on a GPU: about 0.67)"
        for _, row in table.iterrows()
    )
    return _decided(linear and equal and falls, told, table)


def bert_is_fragile(evidence: Evidence) -> _Finding:
    """BERT loses more accuracy than each CNN at the same sparsity; the smaller fraction is better.

    Compared at the highest target sparsity that BERT and a CNN both have; the fractions at the
    nearest sparsities of BERT's configurations, within 2 %.
    """
    levels = evidence.of(granularity="weight", criterion="l1", schedule="iterative")
    bert, cnns = levels[is_bert(levels["model"])], where(levels, model=_CNNS)
    if bert.empty or cnns.empty or bert["fraction"].nunique() < 2:
        return _missing(
            "an encoder of texts pruned by two fractions, and a CNN, by L1",
            "pruneflow prune_iterative --model bert --fraction 0.2929",
        )
    losses = _losses(levels)
    of_bert, of_cnns = losses[is_bert(losses["model"])], where(losses, model=_CNNS)
    common = sorted(set(of_bert["at"]) & set(of_cnns["at"]))
    if not common:
        return _missing("a sparsity that BERT and a CNN both reach", _ALEXNET)
    here = losses[losses["at"] == common[-1]]
    theirs = float(here[is_bert(here["model"])]["loss"].mean())
    others = where(here, model=_CNNS)["loss"]
    small, large = of_bert["fraction"].min(), of_bert["fraction"].max()
    pairs = of_bert[of_bert["fraction"] == small].merge(
        of_bert[of_bert["fraction"] == large], how="cross", suffixes=("_small", "_large")
    )
    pairs = pairs[((pairs["at_small"] - pairs["at_large"]).abs() < 0.02) & (pairs["at_small"] > 0)]
    if pairs.empty:
        return _missing(
            "a sparsity that both fractions reach", "pruneflow sweep --study paper_small"
        )
    better = float((pairs["loss_large"] - pairs["loss_small"]).iloc[-1])
    reason = (
        f"at {100 * common[-1]:.1f} % sparsity {short_model(str(bert['model'].iloc[0]))} loses "
        f"{100 * theirs:.1f} points, the CNNs {100 * others.min():.1f} to "
        f"{100 * others.max():.1f}; "
        f"fraction {small:g} is {100 * better:+.1f} points better than {large:g} at "
        f"{100 * pairs['at_small'].iloc[-1]:.1f} %"
    )
    return _decided(bool(theirs > others.max() and better > 0), reason, losses)


def _losses(levels: pd.DataFrame) -> pd.DataFrame:
    """Points lost since level 0, by model, fraction and target sparsity, the mean over seeds."""
    start = levels[levels["level"] == 0].set_index("run_id")["test_after"]
    levels = levels.assign(
        loss=levels["run_id"].map(start) - levels["test_after"],
        at=levels["target_sparsity"].round(3),
    )
    found = summary(levels, ["model", "fraction", "at"], "loss")
    return found.rename(columns={"mean": "loss"})


def vgg_holds_best(evidence: Evidence) -> _Finding:
    """VGG16 loses least of at least three CNNs, at the highest sparsity that all have."""
    levels = where(_l1(evidence), model=_CNNS)
    models = sorted(levels["model"].unique())
    if "vgg16" not in models or len(models) < 3:
        there = ", ".join(models) or "none"
        return _missing(
            f"VGG16 and two other CNNs by L1 (there are: {there})",
            "pruneflow prune_iterative --model vgg16",
        )
    losses = _losses(levels)
    common = set.intersection(*(set(own["at"]) for _, own in losses.groupby("model")))
    here = losses[losses["at"] == max(common)].set_index("model")["loss"]
    told = ", ".join(f"{model} {100 * loss:.1f}" for model, loss in here.sort_values().items())
    reason = f"points lost at {100 * max(common):.1f} % sparsity: {told}"
    return _decided(here.idxmin() == "vgg16", reason, here.reset_index())


def skips_cost_more(evidence: Evidence) -> _Finding:
    """ResNets, by filters: removal leaves less than half of what masks say, at the last level.

    The study's: 53.13 % by masks, 6.27 % (ResNet18) and 17.21 % (ResNet50) left when removed.
    """
    levels = _independent(evidence, model=("resnet18", "resnet50"))
    if levels.empty:
        return _missing(
            "a ResNet's filters pruned independently",
            f"pruneflow prune_iterative --model resnet18 {_CHANNELS}",
        )
    whole = levels[levels["level"] == 0].set_index("run_id")["conv_params_masked"]
    of_whole = levels["run_id"].map(whole).astype(float)
    levels = levels.assign(
        by_masks=levels["conv_params_masked"].astype(float) / of_whole,
        removed=levels["conv_params_compact"].astype(float) / of_whole,
    )
    nearest = (levels["by_masks"] - 0.5313).abs().groupby(levels["run_id"]).idxmin()
    numbers = levels.loc[nearest].groupby("model")[["by_masks", "removed"]].mean().reset_index()
    told = "; ".join(
        f"{row['model']} {100 * row['by_masks']:.2f} % by masks, "
        f"{100 * row['removed']:.2f} % removed"
        for _, row in numbers.iterrows()
    )
    return _decided(bool((numbers["removed"] < numbers["by_masks"] / 2).all()), told, numbers)


CLAIMS: dict[int, tuple[str, Callable[[Evidence], _Finding]]] = {
    1: (
        "AlexNet keeps its accuracy (within 2 points) with 12.5 % of its connections",
        keeps_accuracy,
    ),
    2: ("L1 beats random by far at every sparsity", beats_random),
    3: (
        "Iterative beats direct: slightly after fine-tuning, clearly before",
        iterative_beats_direct,
    ),
    4: ("Most pruned weights are in the first two linear layers of AlexNet", first_linears),
    5: ("Pruning regularises: the train-test gap narrows as sparsity grows", regularises),
    6: (
        "Structured accuracy falls faster than unstructured and is erratic before fine-tuning",
        structured_falls_faster,
    ),
    7: (
        "Structured masks overstate the parameters left, against physical removal",
        masks_overstate,
    ),
    8: (
        "Latency grows linearly with batch size; masked equals original; compact is faster, and "
        "more so as parameters go",
        latency_behaves,
    ),
    9: (
        "BERT loses accuracy faster than the CNNs; a smaller fraction is slightly better",
        bert_is_fragile,
    ),
    10: ("VGG16 holds best at high sparsity among the CNNs", vgg_holds_best),
    11: (
        "Removal through skip connections takes far more of a ResNet than the masks say",
        skips_cost_more,
    ),
}


def judge(evidence: Evidence) -> list[Verdict]:
    """Every claim, in the study's order."""
    verdicts = []
    for number, (claim, test) in CLAIMS.items():
        found = test(evidence)
        verdicts.append(
            Verdict(number, claim, found.verdict, found.reason, found.numbers, found.command)
        )
    return verdicts
