"""The study's claims on accuracy. Accuracies are fractions, a point is 0.01; differences are paired
by base run where runs share one."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pruneflow.config import reads_texts
from pruneflow.paper.samples import (
    ALEXNET,
    CHANNELS,
    ITERATIVE,
    by_seed,
    filters,
    l1,
    most_seeds,
    named,
    percent,
    since_start,
    spearman,
)
from pruneflow.paper.verdicts import Answer, Comparison, above, below, decided, joint, missing
from pruneflow.report.evidence import Evidence, differences, places, where

EIGHTH = 0.875  # sparsity of claim 1
NEAR = 0.005  # sparsities that count as the same
NEAREST = 0.02  # sparsities of two fractions that may still be compared
KEPT = 0.02  # "keeps its accuracy" loses at most
FAR = 0.05  # "by far"
CLEARLY = 0.01  # "clearly", and a rise that is more than noise
COLLAPSED = 0.5  # of its accuracy: below it a model is not compared any more
LEVELS = 4  # the least that a trend is seen in
CNNS = ("alexnet", "vgg16", "resnet18", "resnet50")


def keeps_accuracy(evidence: Evidence) -> Answer:
    """Test accuracy at 12.5 % left, after fine-tuning, less than KEPT below level 0's.

    At the target sparsity nearest 87.5 %, which has to be within NEAR of it.
    """
    levels = l1(evidence, model="alexnet")
    levels = levels.assign(change=since_start(levels, "test_after"))
    off = (levels["target_sparsity"] - EIGHTH).abs()
    at = most_seeds(levels[(off <= NEAR) & levels["change"].notna()])
    if at.empty:
        return missing("alexnet, single weights by L1, at 87.5 % sparsity", ALEXNET)
    off = (at["target_sparsity"] - EIGHTH).abs()
    at = at.loc[off.groupby(at["run_id"]).idxmin()]
    what = f"change of test accuracy of {named('alexnet', at['dataset'].iloc[0])} at 12.5 % left"
    change = above(what, by_seed(at, "change"), -KEPT)
    return decided([change], f"Test accuracy then {at['test_after'].mean():.3f}")


def beats_random(evidence: Evidence) -> Answer:
    """L1 over FAR better than random at every pruned level, after fine-tuning, paired by base.

    One level where it is not refutes; confirming needs a random run beside every level of L1's.
    """
    keys = ["model", "dataset", "fraction", "finetune_epochs"]
    random = evidence.of(
        granularity="weight", criterion="random", scope="global", schedule="iterative"
    )
    by_l1, random = (part[part["level"] > 0] for part in (l1(evidence), random))
    comparisons, expected = [], 0
    for values, of_random in random.groupby(keys, dropna=False):
        of_l1 = where(by_l1, **dict(zip(keys, values, strict=True)))
        expected += of_l1["level"].nunique()
        both = differences(of_l1, of_random, "target_sparsity", "test_after")
        for place, rows in both.groupby("target_sparsity"):
            what = f"L1 - random, {named(*values[:2])} at {percent(place)} sparsity"
            comparisons.append(above(what, by_seed(rows, "difference"), FAR))
    command = f"{ALEXNET} --criterion random"
    if not comparisons:
        return missing("runs by L1 and at random from one base", command)
    lacking = expected - len(comparisons)
    if lacking and joint(comparisons) != "refuted":
        what = f"a random run at {lacking} of {expected} levels of L1's"
        return missing(what, command, comparisons)
    return decided(comparisons)


def iterative_beats_direct(evidence: Evidence) -> Answer:
    """Iterative - direct, paired at one sparsity: over CLEARLY before fine-tuning, over 0 after.

    By L1, at every sparsity where both are, of which the study has one (93.75 %).
    """
    direct = evidence.of(granularity="weight", criterion="l1", scope="global", schedule="direct")
    direct = direct[direct["level"] > 0]
    comparisons = []
    for (model, dataset), of_direct in direct.groupby(["model", "dataset"]):
        iterative = l1(evidence, model=model, dataset=dataset)
        for fraction, rows in iterative[iterative["level"] > 0].groupby("fraction"):
            for when, edge in (("before", CLEARLY), ("after", 0.0)):
                both = differences(rows, of_direct, "target_sparsity", f"test_{when}")
                for place, here in both.groupby("target_sparsity"):
                    what = (
                        f"iterative (fraction {fraction:g}) - direct {when} fine-tuning, "
                        f"{named(model, dataset)} at {percent(place)} sparsity"
                    )
                    comparisons.append(above(what, by_seed(here, "difference"), edge))
    if len({comparison.edge for comparison in comparisons}) < 2:
        return missing(
            "iterative and direct runs by L1 of one base that meet at one sparsity",
            f"{ALEXNET} --iterations 4 && pruneflow prune_direct --model alexnet --iterations 4",
            comparisons,
        )
    return decided(comparisons, "Iterative runs have trained for more epochs")


def regularises(evidence: Evidence) -> Answer:
    """The train-test gap falls with sparsity (Spearman < 0), and ends below level 0's.

    Fine-tuning alone changes the gap: where there is a control that was trained as long, the last
    level's gap has to be below the control's too, over the bases that have both. Of every model
    that has LEVELS levels at which it keeps COLLAPSED of its accuracy: one that answers by chance
    has no gap to speak of.
    """
    levels = l1(evidence)
    levels = levels.assign(gap=levels["train_after"] - levels["test_after"])
    comparisons: list[Comparison] = []
    notes = []
    for (model, dataset), every in levels[levels["gap"].notna()].groupby(["model", "dataset"]):
        rows = most_seeds(every)
        rows = rows.assign(change=since_start(rows, "gap"))
        accuracy = rows.groupby("level")["test_after"].mean()
        lost = accuracy.index[accuracy < COLLAPSED * accuracy.iloc[0]]
        rows = rows[rows["level"] < lost.min()] if len(lost) else rows
        if rows["level"].nunique() < LEVELS or int(rows["level"].min()) != 0:
            continue
        last = rows[rows["level"] == rows["level"].max()]
        name = named(model, dataset)
        trend = rows.sort_values("level").groupby("seed")[["level", "gap"]].apply(
            lambda run: spearman(run["level"].tolist(), run["gap"].tolist())
        )  # fmt: skip
        comparisons += [
            below(f"gap at the last level - unpruned, {name}", by_seed(last, "change")),
            below(f"Spearman of gap and level, {name}", trend, points=False),
        ]
        control = evidence.control_of(last)
        control = control.assign(gap=control["train_after"] - control["test_after"])
        beside = differences(last, control, "level", "gap")
        if len(beside):
            what = f"gap at the last level - dense control's, {name}"
            comparisons.append(below(what, by_seed(beside, "difference")))
        else:
            notes.append(f"no dense control of {name} to tell it from training")
    if not comparisons:
        what = f"iterative L1 runs of at least {LEVELS} levels that keep half of their accuracy"
        return missing(what, ALEXNET)
    return decided(comparisons, "; ".join(notes))


def structured_falls_faster(evidence: Evidence) -> Answer:
    """Filters below single weights at as many parameters left, and erratic before fine-tuning.

    Of runs from one base run: the accuracy of single weights is interpolated over the logarithm of
    parameters left, at the filters' levels that lie within its range; the mean difference has to be
    below 0. Erratic: accuracy before fine-tuning rises by over CLEARLY from one level to the next
    somewhere.
    """
    comparisons: list[Comparison] = []
    columns = ["params_left", "test_after", "test_before"]
    for (model, dataset), every in filters(evidence).groupby(["model", "dataset"]):
        weights = most_seeds(l1(evidence, model=model, dataset=dataset)).dropna(subset=columns)
        falls, rises = [], []
        for base, run in most_seeds(every).dropna(subset=columns).groupby("base_run"):
            difference = _below_weights(run, where(weights, base_run=base))
            if difference is not None:
                falls.append(difference)
                rises.append(float(run.sort_values("level")["test_before"].diff().max()))
        if falls:
            name = named(model, dataset)
            what = f"largest rise from a level to the next before fine-tuning, {name}"
            comparisons += [
                below(f"filters - weights at equal parameters, {name}", falls),
                above(what, rises, CLEARLY),
            ]
    if not comparisons:
        return missing(
            "single weights by L1 and filters pruned independently, from one base run, at "
            "comparable parameters left",
            f"{ALEXNET} && {ALEXNET} {CHANNELS}",
        )
    return decided(comparisons)


def _below_weights(channels: pd.DataFrame, weights: pd.DataFrame) -> float | None:
    """Mean difference in accuracy of filters to weights with as many parameters left."""
    line = weights.groupby("level")[["params_left", "test_after"]].mean().sort_values("params_left")
    pruned = channels[channels["level"] > 0]
    if len(line) < 2 or len(pruned) < 2:
        return None
    within = pruned[pruned["params_left"].between(line["params_left"].iloc[0], 1.0)]
    if within.empty:
        return None
    expected = np.interp(
        np.log(within["params_left"].astype(float)), np.log(line["params_left"]), line["test_after"]
    )
    return float((within["test_after"] - expected).mean())


def _losses(levels: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy lost since level 0 of each seed at each target sparsity `at`, as `loss`.

    Of the configuration with most seeds of each model, data set and fraction.
    """
    columns = ["model", "dataset", "fraction"]
    levels = levels.dropna(subset=["target_sparsity"])
    levels = levels.assign(
        loss=-since_start(levels, "test_after"),
        at=levels["target_sparsity"].round(6).map(places(levels["target_sparsity"])),
    )
    levels = levels[(levels["level"] > 0) & levels["loss"].notna()]
    chosen = [most_seeds(part) for _, part in levels.groupby(columns)]
    rows = pd.concat(chosen) if chosen else levels
    return rows.groupby([*columns, "at", "seed"])["loss"].mean().reset_index()


def bert_is_fragile(evidence: Evidence) -> Answer:
    """BERT loses more accuracy than each CNN at the same sparsity; the smaller fraction is better.

    By L1, at the highest target sparsity that the encoder and the CNN both have, the mean over
    fractions; the smallest and the largest fraction of one encoder, by seed, at the highest
    sparsity that both have within NEAR, else the nearest within NEAREST. Encoders `hf:` stand for
    BERT.
    """
    losses = _losses(l1(evidence))
    of_texts = np.array([reads_texts(str(name)) for name in losses["model"]], dtype=bool)
    bert, cnns = losses[of_texts], where(losses, model=CNNS)
    if bert.empty or cnns.empty:
        kinds = {"bert": ("BERT (no encoder of texts)", bert), "alexnet": ("a CNN", cnns)}
        lacking = {name: what for name, (what, part) in kinds.items() if part.empty}
        commands = " && ".join(f"{ITERATIVE} {name}" for name in lacking)
        return missing(f"{' and '.join(lacking.values())}, pruned by L1", commands)
    comparisons: list[Comparison | None] = []
    for encoder, ours in bert.groupby(["model", "dataset"]):
        comparisons.append(_small_steps(named(*encoder), ours))
        for cnn, theirs in cnns.groupby(["model", "dataset"]):
            at = max(set(ours["at"]) & set(theirs["at"]), default=None)
            what = f"lost by {named(*encoder)} - by {named(*cnn)}"
            losses_there = [by_seed(where(part, at=at), "loss") for part in (ours, theirs)]
            comparisons.append(
                Comparison.between(f"{what} at {percent(at)} sparsity", *losses_there, above=True)
                if at is not None
                else None
            )
    known = [comparison for comparison in comparisons if comparison is not None]
    if len(known) < len(comparisons) and (not known or joint(known) != "refuted"):
        lacking_place = "a sparsity that an encoder and every CNN, and two fractions of it, reach"
        command = f"{ITERATIVE} bert --fraction 0.2929 --iterations 8"
        return missing(lacking_place, command, known)
    return decided(known)


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
    what = f"lost by fraction {small:g} - by {large:g}, {name} at {percent(chosen['at'])} sparsity"
    return below(what, here["loss"] - here["loss_large"])


def vgg_holds_best(evidence: Evidence) -> Answer:
    """VGG16 loses less than each of at least two CNNs on one data set, at their highest common
    sparsity.

    By L1; of a model's fractions the mean.
    """
    losses = _losses(where(l1(evidence), model=CNNS))
    comparisons = []
    for dataset, rows in losses.groupby("dataset"):
        models = sorted(set(rows["model"]) - {"vgg16"})
        common = set.intersection(*(set(part["at"]) for _, part in rows.groupby("model")))
        if "vgg16" not in set(rows["model"]) or len(models) < 2 or not common:
            continue
        here, at = where(rows, at=max(common)), percent(max(common))
        vgg = by_seed(where(here, model="vgg16"), "loss")
        for model in models:
            what = f"lost by vgg16 - by {named(model, dataset)} at {at} sparsity"
            theirs = by_seed(where(here, model=model), "loss")
            comparisons.append(Comparison.between(what, vgg, theirs, above=False))
    if not comparisons:
        there = ", ".join(sorted(losses["model"].unique())) or "none"
        lacking = [m for m in ("vgg16", "alexnet", "resnet18") if m not in set(losses["model"])]
        return missing(
            f"vgg16 and two other CNNs by L1 on one data set, at one sparsity (there are: {there})",
            " && ".join(f"{ITERATIVE} {model}" for model in lacking or ["vgg16"]),
        )
    return decided(comparisons)
