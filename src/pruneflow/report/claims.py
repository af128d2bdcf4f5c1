"""The 2020 study's eleven claims, each a test over runs: confirmed, refuted, or not enough data.

Accuracies are fractions, a point is 0.01. Means are over seeds; differences are paired by run or by
base run. A claim of several parts is refuted by one that fails, and confirmed by all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from pruneflow.config import short_model
from pruneflow.report.evidence import (
    Evidence,
    of_texts,
    paired,
    places,
    summary,
    where,
)

Outcome = Literal["confirmed", "refuted", "not enough data"]

EIGHTH = 0.875  # sparsity of claim 1
NEAR = 0.005  # sparsities that count as one
NEAREST = 0.02  # sparsities of two fractions that may still be compared
KEPT = 0.02  # "keeps its accuracy" loses at most
FAR = 0.05  # "by far"
CLEARLY = 0.01  # "clearly", and a rise that is more than noise
MOST = 0.5  # "most" of the zeros; and of the parameters that masks keep, claim 11
COLLAPSED = 0.5  # of its accuracy: below it a model is not compared any more
LEVELS = 4  # the least that a trend is told from
LINEAR = 0.98  # R squared
BATCHES = 3  # batch sizes that "linear" is told from
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


@dataclass(frozen=True)
class Verdict:
    """What runs say of a claim.

    Attributes:
        reason: the numbers behind the verdict in a sentence or two, or what is missing.
        numbers: the rows behind it; empty where there are none.
        command: what would produce what is missing.
    """

    number: int
    claim: str
    verdict: Outcome
    reason: str
    numbers: pd.DataFrame = field(default_factory=pd.DataFrame)
    command: str = ""


def _missing(number: int, what: str, command: str, numbers: pd.DataFrame | None = None) -> Verdict:
    shown = pd.DataFrame() if numbers is None else numbers
    return Verdict(number, STUDY[number], "not enough data", f"missing: {what}", shown, command)


def _decided(number: int, holds: bool, reason: str, numbers: pd.DataFrame) -> Verdict:
    outcome: Outcome = "confirmed" if holds else "refuted"
    return Verdict(number, STUDY[number], outcome, reason, numbers.reset_index(drop=True))


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


def _seeds(levels: pd.DataFrame) -> str:
    n = levels["seed"].nunique()
    return f"n = {n} seed{'s' * (n != 1)}"


def _first(levels: pd.DataFrame) -> pd.DataFrame:
    """Of one configuration: that with most seeds, so that means are over seeds alone."""
    if levels.empty:
        return levels
    counts = levels.groupby("configuration")["seed"].nunique()
    return where(levels, configuration=counts.idxmax())


def _unsure(found: pd.DataFrame, edge: float) -> str:
    """What is to be said where a 95 % interval has the boundary of the decision inside."""
    inside = (found["low"] < edge) & (edge < found["high"])
    if not inside.any():
        return ""
    many = "" if len(found) == 1 else f" of {int(inside.sum())} of {len(found)} comparisons"
    return f"; the 95 % interval{many} includes the boundary, {100 * edge:+g} points"


def _since_start(levels: pd.DataFrame, column: str) -> pd.Series[float]:
    """Change of a column since level 0 of the same run."""
    start = levels[levels["level"] == 0].set_index("run_id")[column]
    return levels[column].astype(float) - levels["run_id"].map(start).astype(float)


def _spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation; 0 where one of the two does not change."""
    if len(set(x)) < 2 or len(set(y)) < 2:
        return 0.0
    return float(stats.spearmanr(x, y).statistic)


def _range(values: pd.Series[float]) -> str:
    low, high = f"{100 * values.min():+.1f}", f"{100 * values.max():+.1f}"
    return low if low == high else f"{low} to {high}"


def keeps_accuracy(evidence: Evidence) -> Verdict:
    """Mean test accuracy at 12.5 % left, after fine-tuning, at most KEPT below level 0's.

    At the target sparsity nearest 87.5 %, which has to be within NEAR of it.
    """
    levels = _l1(evidence, model="alexnet")
    levels = levels.assign(change=_since_start(levels, "test_after"))
    off = (levels["target_sparsity"] - EIGHTH).abs()
    at = _first(levels[(off <= NEAR) & levels["change"].notna()])
    if at.empty:
        return _missing(1, "alexnet, single weights by L1, at 87.5 % sparsity", _ALEXNET)
    off = (at["target_sparsity"] - EIGHTH).abs()
    at = at.loc[off.groupby(at["run_id"]).idxmin()]
    found = summary(at, ["configuration"], "change")
    change = float(found["mean"].iloc[0])
    reason = (
        f"test accuracy of alexnet on {at['dataset'].iloc[0]} changes by {100 * change:+.1f} "
        f"points, to {at['test_after'].mean():.3f}, at 12.5 % of the connections ({_seeds(at)})"
        + _unsure(found, -KEPT)
    )
    return _decided(1, change >= -KEPT, reason, found.assign(test_after=at["test_after"].mean()))


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
    found, expected = [], 0
    for values, own in random.groupby(keys, dropna=False):
        here = dict(zip(keys, values, strict=True))
        other = where(l1, **here)
        expected += other["level"].nunique()
        part = paired(other, own, "target_sparsity", "test_after")
        found.append(part.assign(model=short_model(str(values[0])), dataset=str(values[1])))
    numbers = pd.concat(found, ignore_index=True) if found else pd.DataFrame()
    command = f"{_ALEXNET} --criterion random"
    if numbers.empty:
        return _missing(2, "runs by L1 and at random from one base", command)
    worst = numbers.sort_values("mean").iloc[0]
    reason = (
        f"L1 - random is {_range(numbers['mean'])} points; least at "
        f"{100 * worst['target_sparsity']:.1f} % sparsity of {worst['model']} on "
        f"{worst['dataset']} (n = {int(worst['n'])} base runs)" + _unsure(numbers, FAR)
    )
    holds = bool((numbers["mean"] > FAR).all())
    if holds and len(numbers) < expected:
        lacking = f"a random run at {expected - len(numbers)} of {expected} levels of L1's"
        return _missing(2, f"{lacking}; where there is one, {reason}", command, numbers)
    return _decided(2, holds, reason, numbers)


def iterative_beats_direct(evidence: Evidence) -> Verdict:
    """Iterative - direct, paired at one sparsity: over CLEARLY before fine-tuning, over 0 after.

    By L1, at every sparsity where both are, of which the study has one (93.75 %).
    """
    direct = evidence.of(granularity="weight", criterion="l1", scope="global", schedule="direct")
    direct = direct[direct["level"] > 0]
    found = []
    for (model, dataset), own in direct.groupby(["model", "dataset"]):
        for fraction, other in _l1(evidence, model=model, dataset=dataset).groupby("fraction"):
            for column in ("test_before", "test_after"):
                part = paired(other[other["level"] > 0], own, "target_sparsity", column)
                name = short_model(str(model))
                found.append(part.assign(model=name, fraction=fraction, measure=column))
    numbers = pd.concat(found, ignore_index=True) if found else pd.DataFrame()
    if numbers.empty or numbers["measure"].nunique() < 2:
        return _missing(
            3,
            "iterative and direct runs by L1 of one base that meet at one sparsity",
            f"{_ALEXNET} --iterations 4 && pruneflow prune_direct --model alexnet --iterations 4",
        )
    before = where(numbers, measure="test_before")
    after = where(numbers, measure="test_after")
    at = ", ".join(f"{100 * value:.2f}" for value in sorted(set(numbers["target_sparsity"])))
    reason = (
        f"iterative - direct of {', '.join(sorted(set(numbers['model'])))} at {at} % sparsity: "
        f"{_range(before['mean'])} points before fine-tuning{_unsure(before, CLEARLY)}, "
        f"{_range(after['mean'])} after{_unsure(after, 0.0)} (n = {int(numbers['n'].min())} base "
        "runs). Iterative runs have trained for more epochs"
    )
    holds = bool((before["mean"] > CLEARLY).all() and (after["mean"] > 0).all())
    return _decided(3, holds, reason, numbers)


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
    layers = _first(layers[layers["level"] > 0])
    if layers.empty:
        return _missing(4, "layers of alexnet, single weights pruned by L1", _ALEXNET)
    last = int(layers.groupby("run_id")["level"].max().min())
    layers = layers[layers["level"] == last]
    two = layers[layers["layer"].isin(["classifier.1.weight", "classifier.4.weight"])]
    every = layers.groupby("run_id")["zeros"].sum().astype(float)
    share = (two.groupby("run_id")["zeros"].sum().astype(float) / every).fillna(0.0)
    of_params = two["params"].sum() / layers["params"].sum()
    table = share.rename("share").reset_index().assign(level=last)
    found = summary(table, ["level"], "share")
    mean = float(found["mean"].iloc[0])
    reason = (
        f"classifier.1 and classifier.4 of alexnet hold {100 * mean:.1f} % of the zeros at level "
        f"{last} ({_seeds(layers)}), and {100 * of_params:.1f} % of the parameters"
        + _unsure(found, MOST)
    )
    return _decided(4, mean > MOST, reason, found)


def regularises(evidence: Evidence) -> Verdict:
    """The train-test gap falls with sparsity (Spearman < 0), and ends below level 0's.

    Fine-tuning alone changes the gap: where there is a control that was trained as long, the last
    level's gap has to be below the control's too, over the bases that have both. Of every model
    that has LEVELS levels at which it keeps COLLAPSED of its accuracy: one that answers by chance
    has no gap to speak of.
    """
    levels = _l1(evidence)
    levels = levels.assign(gap=levels["train_after"] - levels["test_after"])
    rows = []
    for (model, _), every in levels[levels["gap"].notna()].groupby(["model", "dataset"]):
        own = _first(every)
        own = own.assign(change=_since_start(own, "gap"))
        accuracy = own.groupby("level")["test_after"].mean()
        lost = accuracy.index[accuracy < COLLAPSED * accuracy.iloc[0]]
        own = own[own["level"] < lost.min()] if len(lost) else own
        means = summary(own, ["level"], "gap")
        if len(means) < LEVELS or int(means["level"].iloc[0]) != 0:
            continue
        last = own[own["level"] == means["level"].max()]
        change = summary(last, ["level"], "change").iloc[0]
        control = evidence.control_of(last)
        control = control.assign(gap=control["train_after"] - control["test_after"])
        beside = paired(last, control, "level", "gap")
        rows.append(
            {
                "model": short_model(str(model)),
                "gap_unpruned": means["mean"].iloc[0],
                "gap_last": means["mean"].iloc[-1],
                "low": change["low"],
                "high": change["high"],
                "gap_control": float(beside["other"].iloc[0]) if len(beside) else np.nan,
                "above_control": float(beside["mean"].iloc[0]) if len(beside) else np.nan,
                "spearman": _spearman(means["level"].tolist(), means["mean"].tolist()),
                "test_last": float(last["test_after"].mean()),
                "seeds": own["seed"].nunique(),
            }
        )
    numbers = pd.DataFrame(rows)
    if numbers.empty:
        what = f"iterative L1 runs of at least {LEVELS} levels that keep half of their accuracy"
        return _missing(5, what, _ALEXNET)
    falls = (numbers["spearman"] < 0) & (numbers["gap_last"] < numbers["gap_unpruned"])
    below = numbers["above_control"].isna() | (numbers["above_control"] < 0)
    told = "; ".join(
        f"{row['model']} {100 * row['gap_unpruned']:.1f} -> {100 * row['gap_last']:.1f} points "
        f"(Spearman {row['spearman']:+.2f}, n = {row['seeds']}, test accuracy then "
        f"{row['test_last']:.3f}"
        + (
            ", no dense control to tell it from training)"
            if pd.isna(row["gap_control"])
            else f", dense control {100 * row['gap_control']:.1f})"
        )
        for _, row in numbers.iterrows()
    )
    reason = f"train - test, unpruned to last level: {told}{_unsure(numbers, 0.0)}"
    return _decided(5, bool((falls & below).all()), reason, numbers)


def structured_falls_faster(evidence: Evidence) -> Verdict:
    """Filters below single weights at as many parameters left, and erratic before fine-tuning.

    The mean accuracy of single weights is interpolated over the logarithm of parameters left, at
    the filters' levels that lie within its range; the mean difference has to be below 0. Erratic:
    mean accuracy before fine-tuning rises by over CLEARLY from one level to the next somewhere.
    """
    rows = []
    columns = ["params_left", "test_after", "test_before"]
    for (model, dataset), every in _filters(evidence).groupby(["model", "dataset"]):
        weights = _first(_l1(evidence, model=model, dataset=dataset)).dropna(subset=columns)
        own = _first(every).dropna(subset=columns)
        line = weights.groupby("level")[columns].mean().sort_values("params_left")
        means = own.groupby("level")[columns].mean().sort_index()
        pruned = means[means.index > 0]
        if len(line) < 2 or len(pruned) < 2:
            continue
        within = pruned[pruned["params_left"].between(line["params_left"].iloc[0], 1.0)]
        if within.empty:
            continue
        expected = np.interp(
            np.log(within["params_left"]), np.log(line["params_left"]), line["test_after"]
        )
        rows.append(
            {
                "model": short_model(str(model)),
                "dataset": dataset,
                "levels": len(within),
                "params_left_last": within["params_left"].iloc[-1],
                "mean_difference": float((within["test_after"] - expected).mean()),
                "largest_rise_before": float(means["test_before"].diff().max()),
                "seeds": own["seed"].nunique(),
            }
        )
    numbers = pd.DataFrame(rows)
    if numbers.empty:
        return _missing(
            6,
            "single weights by L1 and filters pruned independently, of one model, at comparable "
            "parameters left",
            f"{_ALEXNET} && {_ALEXNET} {_CHANNELS}",
        )
    lower = bool((numbers["mean_difference"] < 0).all())
    erratic = bool((numbers["largest_rise_before"] > CLEARLY).all())
    told = "; ".join(
        f"{row['model']} {100 * row['mean_difference']:+.1f} points over {row['levels']} levels, "
        f"down to {100 * row['params_left_last']:.1f} % left; largest change from a level to the "
        f"next before fine-tuning {100 * row['largest_rise_before']:+.1f} (n = {row['seeds']})"
        for _, row in numbers.iterrows()
    )
    return _decided(6, lower and erratic, f"filters - weights at equal parameters: {told}", numbers)


def masks_overstate(evidence: Evidence) -> Verdict:
    """Masks keep more parameters of convolutions than removal leaves, at every pruned level."""
    levels = _filters(evidence)
    counts = ["conv_params_masked", "conv_params_compact"]
    levels = levels[levels["level"] > 0].dropna(subset=counts)
    if levels.empty:
        return _missing(7, "filters pruned independently", f"{_ALEXNET} {_CHANNELS}")
    masked, compact = (levels[name].astype(float) for name in counts)
    levels = levels.assign(ratio=masked / compact.clip(lower=1.0))
    numbers = summary(levels, ["model", "dataset", "target_sparsity"], "ratio")
    models = ", ".join(short_model(str(model)) for model in sorted(set(levels["model"])))
    more = int((levels["ratio"] > 1).sum())
    reason = (
        f"masks keep {levels['ratio'].min():.2f} to {levels['ratio'].max():.2f} times what removal "
        f"leaves, more at {more} of {len(levels)} pruned levels ({models}; {_seeds(levels)})"
    )
    return _decided(7, more == len(levels), reason, numbers)


def latency_behaves(evidence: Evidence) -> Verdict:
    """Linear in the batch, masked as dense, compact faster the fewer parameters are left.

    Of every pruning run, machine, device and number of threads with BATCHES batch sizes and two
    pruned levels. Linear: R squared of the dense median against batch size, at the largest level,
    at least LINEAR. As dense: the median of masked / dense within SAME_TIME of 1. Faster: compact /
    dense (median over batch sizes) below 1 at the last level, and its Spearman with parameters
    removed below 0, over levels.
    """
    rows = evidence.latencies
    rows = rows[(rows["engine"] == "eager") & rows["p50_ms"].notna() & rows["model"].notna()]
    found = []
    settings = ["pruning_run", "machine", "device", "threads"]
    for (_, machine, device, threads), own in rows.groupby(settings, dropna=False):
        kept = ["level", "batch_size"]
        times = own.groupby([*kept, "form"])["p50_ms"].median().unstack("form")
        if not {"dense", "masked", "compact"} <= set(times.columns):
            continue
        dense = times["dense"].dropna()
        most = dense.xs(dense.index.get_level_values("level").max(), level="level")
        masked = (times["masked"] / times["dense"]).dropna()
        ratio = (times["compact"] / times["dense"]).dropna().groupby("level").median()
        ratio = ratio[ratio.index > 0]
        if len(most) < BATCHES or len(ratio) < 2 or masked.empty:
            continue
        params = own.groupby(["level", "form"])["params"].max().unstack("form").astype(float)
        left = (params["compact"] / params["dense"]).reindex(ratio.index)
        fit = stats.linregress(most.index.to_numpy(dtype=float), most.to_numpy(dtype=float))
        found.append(
            {
                "model": short_model(str(own["model"].iloc[0])),
                "machine": machine,
                "device": device,
                "threads": threads,
                "batch_sizes": len(most),
                "r_squared": float(fit.rvalue) ** 2,
                "masked_over_dense": float(masked.median()),
                "compact_over_dense_last": float(ratio.iloc[-1]),
                "params_left_last": float(left.iloc[-1]),
                "spearman": _spearman((1 - left).tolist(), ratio.tolist()),
            }
        )
    table = pd.DataFrame(found)
    if table.empty:
        return _missing(
            8,
            f"times of dense, masked and compact at {BATCHES} batch sizes and two pruned levels",
            f"{_ALEXNET} {_CHANNELS} && pruneflow benchmark_latency --model alexnet",
        )
    linear = bool((table["r_squared"] >= LINEAR).all())
    equal = bool(((table["masked_over_dense"] - 1).abs() <= SAME_TIME).all())
    faster = bool((table["compact_over_dense_last"] < 1).all())
    falls = bool((table["spearman"] < 0).all())
    told = "; ".join(
        f"{row['model']} on {row['device']} ({row['threads']} threads, {row['machine']}): R2 "
        f"{row['r_squared']:.3f} over {row['batch_sizes']} batch sizes, masked "
        f"{row['masked_over_dense']:.2f} of dense, compact {row['compact_over_dense_last']:.2f} "
        f"at {100 * row['params_left_last']:.1f} % of the parameters (Spearman "
        f"{row['spearman']:+.2f})"
        for _, row in table.iterrows()
    )
    reason = f"{told}. The study's AlexNet, on a GPU: compact about 0.67 of dense"
    return _decided(8, linear and equal and faster and falls, reason, table)


def _losses(levels: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy lost since level 0 at each target sparsity `at`, the mean over seeds.

    Of the configuration with most seeds of each model, data set and fraction.
    """
    columns = ["model", "dataset", "fraction", "at"]
    levels = levels.dropna(subset=["target_sparsity"])
    levels = levels.assign(
        loss=-_since_start(levels, "test_after"),
        at=levels["target_sparsity"].round(6).map(places(levels["target_sparsity"])),
    )
    own = [_first(part) for _, part in levels[levels["level"] > 0].groupby(columns[:3])]
    chosen = pd.concat(own) if own else levels[:0]
    return summary(chosen, columns, "loss").rename(columns={"mean": "loss"})


def bert_is_fragile(evidence: Evidence) -> Verdict:
    """BERT loses more accuracy than each CNN at the same sparsity; the smaller fraction is better.

    By L1, at the highest target sparsity that the encoder and the CNN both have, the mean over
    fractions; the smallest and the largest fraction of one encoder at the highest sparsity that
    both have within NEAR, else the nearest within NEAREST. Encoders `hf:` stand for BERT.
    """
    losses = _losses(_l1(evidence))
    bert, cnns = losses[of_texts(losses["model"])], where(losses, model=CNNS)
    if bert.empty or cnns.empty:
        none = [name for name, part in (("BERT (no encoder of texts)", bert), ("a CNN", cnns))
                if part.empty]  # fmt: skip
        commands = [f"{_ITERATIVE} {name}" for name, part in (("bert", bert), ("alexnet", cnns))
                    if part.empty]  # fmt: skip
        return _missing(9, f"{' and '.join(none)}, pruned by L1", " && ".join(commands))
    rows: list[dict[str, object]] = []
    parts: list[bool | None] = []
    for (encoder, _), own in bert.groupby(["model", "dataset"]):
        ours = own.groupby("at")["loss"].mean()
        for (cnn, _), theirs in cnns.groupby(["model", "dataset"]):
            there = theirs.groupby("at")["loss"].mean()
            common = ours.index.intersection(there.index)
            if common.empty:
                parts.append(None)
                continue
            at = common.max()
            parts.append(bool(ours[at] > there[at]))
            rows.append(_against(encoder, str(cnn), at, ours[at], there[at]))
    for (other, _), own in bert.groupby(["model", "dataset"]):
        met = _meeting(own)
        if met is None:
            parts.append(None)
            continue
        parts.append(bool(met["loss"] < met["loss_other"]))
        what = f"fraction {met['fraction']:g} against {met['fraction_other']:g}"
        rows.append(_against(other, what, met["at"], met["loss"], met["loss_other"]))
    numbers = pd.DataFrame(rows)
    told = "; ".join(_comparison(row) for _, row in numbers.iterrows())
    reason = f"{told} (n = {int(min(bert['n'].min(), cnns['n'].min()))} seeds at least)"
    if False in parts:
        return _decided(9, False, reason, numbers)
    if None in parts:
        lacking = "a sparsity that an encoder and every CNN, and two fractions of it, both reach"
        command = f"{_ITERATIVE} bert --fraction 0.2929 --iterations 8"
        return _missing(9, f"{lacking}; so far {told or 'none'}", command, numbers)
    return _decided(9, True, reason, numbers)


def _comparison(row: pd.Series[Any]) -> str:
    """A row of claim 9 in words."""
    at = f"at {100 * row['at']:.1f} % sparsity"
    loss, theirs = 100 * row["loss"], 100 * row["loss_against"]
    if row["against"].startswith("fraction"):
        return f"{row['against']} of {row['model']} {at}: {loss:.1f} against {theirs:.1f} lost"
    return f"{row['model']} loses {loss:.1f} points {at}, {row['against']} {theirs:.1f}"


def _against(model: object, other: str, at: float, loss: float, theirs: float) -> dict[str, object]:
    return {
        "model": short_model(str(model)),
        "against": other,
        "at": at,
        "loss": loss,
        "loss_against": theirs,
    }


def _meeting(losses: pd.DataFrame) -> pd.Series[Any] | None:
    """Where the smallest and the largest fraction of a model come nearest; None if nowhere."""
    small, large = losses["fraction"].min(), losses["fraction"].max()
    if small == large:
        return None
    pairs = losses[losses["fraction"] == small].merge(
        losses[losses["fraction"] == large], how="cross", suffixes=("", "_other")
    )
    pairs = pairs.assign(off=(pairs["at"] - pairs["at_other"]).abs())
    pairs = pairs[pairs["off"] <= NEAREST]
    if pairs.empty:
        return None
    same = pairs[pairs["off"] <= NEAR]
    chosen = same["at"].idxmax() if len(same) else pairs["off"].idxmin()
    row: pd.Series[Any] = pairs.loc[chosen]
    return row


def vgg_holds_best(evidence: Evidence) -> Verdict:
    """VGG16 loses least of at least three CNNs on one data set, at their highest common sparsity.

    By L1; of a model's fractions the mean.
    """
    losses = _losses(where(_l1(evidence), model=CNNS))
    rows = []
    for dataset, own in losses.groupby("dataset"):
        models = set(own["model"])
        common = set.intersection(*(set(part["at"]) for _, part in own.groupby("model")))
        if "vgg16" in models and len(models) >= 3 and common:
            here = own[own["at"] == max(common)]
            rows.append(
                here.groupby("model")["loss"].mean().reset_index().assign(
                    dataset=dataset, at=max(common), n=int(here["n"].min())
                )
            )  # fmt: skip
    if not rows:
        there = ", ".join(sorted(losses["model"].unique())) or "none"
        lacking = [m for m in ("vgg16", "alexnet", "resnet18") if m not in set(losses["model"])]
        return _missing(
            10,
            f"vgg16 and two other CNNs by L1 on one data set, at one sparsity (there are: {there})",
            " && ".join(f"{_ITERATIVE} {model}" for model in lacking or ["vgg16"]),
        )
    numbers = pd.concat(rows, ignore_index=True)
    holds, told = True, []
    for dataset, own in numbers.groupby("dataset"):
        loss = own.set_index("model")["loss"].sort_values()
        holds = holds and bool(loss["vgg16"] < loss.drop("vgg16").min())
        listed = ", ".join(f"{model} {100 * value:.1f}" for model, value in loss.items())
        told.append(
            f"points lost at {100 * own['at'].iloc[0]:.1f} % sparsity on {dataset}: {listed} "
            f"(n = {own['n'].iloc[0]} seeds)"
        )
    return _decided(10, holds, "; ".join(told), numbers)


def skips_cost_more(evidence: Evidence) -> Verdict:
    """ResNets, by filters: removal leaves less than MOST of what masks say, near the study's level.

    Of convolutions' parameters, at each run's level whose share by masks is nearest the study's
    53.13 %, within NEAR_MASKED. The study's: 6.27 % (ResNet18) and 17.21 % (ResNet50) left.
    """
    levels = _filters(evidence, model=("resnet18", "resnet50"))
    levels = levels.dropna(subset=["conv_params_masked", "conv_params_compact"])
    whole = levels[levels["level"] == 0].set_index("run_id")["conv_params_masked"]
    of_whole = levels["run_id"].map(whole).astype(float)
    levels = levels.assign(
        by_masks=levels["conv_params_masked"].astype(float) / of_whole,
        removed=levels["conv_params_compact"].astype(float) / of_whole,
    )
    off = (levels["by_masks"] - MASKED).abs()
    near = levels[(levels["level"] > 0) & (off <= NEAR_MASKED)]
    if near.empty:
        return _missing(
            11,
            "filters of resnet18 or resnet50 pruned independently to some 53 % by masks",
            f"{_ITERATIVE} resnet18 {_CHANNELS}",
        )
    at = near.loc[off[near.index].groupby(near["run_id"]).idxmin()]
    numbers = at.groupby("model")[["by_masks", "removed"]].mean().reset_index()
    numbers = numbers.merge(at.groupby("model")["seed"].nunique().rename("seeds"), on="model")
    told = "; ".join(
        f"{row['model']} {100 * row['by_masks']:.2f} % by masks, {100 * row['removed']:.2f} % "
        f"when removed (n = {row['seeds']})"
        for _, row in numbers.iterrows()
    )
    holds = bool((numbers["removed"] < MOST * numbers["by_masks"]).all())
    return _decided(11, holds, told, numbers)


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
