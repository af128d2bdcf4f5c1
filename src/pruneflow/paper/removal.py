"""The study's claims on what is removed, and on the time that it saves."""

from __future__ import annotations

import pandas as pd
from scipy import stats

from pruneflow.config import short_model
from pruneflow.paper.samples import (
    ALEXNET,
    CHANNELS,
    ITERATIVE,
    by_seed,
    filters,
    most_seeds,
    named,
    percent,
    spearman,
)
from pruneflow.paper.verdicts import Answer, Comparison, above, below, decided, missing
from pruneflow.report.evidence import Evidence, where
from pruneflow.report.latency import SETTING

MOST = 0.5  # "most" of the zeros; and of the parameters that masks keep, claim 11
LINEAR = 0.98  # R squared
BATCHES = 3  # the least batch sizes that show a line
SAME_TIME = 0.10  # relative, of times that count as equal
MASKED = 0.5313  # of the study's ResNets, by masks
NEAR_MASKED = 0.10


def first_linears(evidence: Evidence) -> Answer:
    """Over MOST of AlexNet's zeros in its first two linear layers, at the last common level."""
    layers = where(
        evidence.layers,
        model="alexnet",
        granularity="weight",
        criterion="l1",
        scope="global",
        schedule="iterative",
    )
    layers = most_seeds(layers[layers["level"] > 0])
    if layers.empty:
        return missing("layers of alexnet, single weights pruned by L1", ALEXNET)
    last = int(layers.groupby("run_id")["level"].max().min())
    layers = layers[layers["level"] == last]
    two = layers[layers["layer"].isin(["classifier.1.weight", "classifier.4.weight"])]
    every = layers.groupby("seed")["zeros"].sum().astype(float)
    share = (two.groupby("seed")["zeros"].sum().astype(float) / every).fillna(0.0)
    of_params = two["params"].sum() / layers["params"].sum()
    what = f"share of alexnet's zeros in classifier.1 and classifier.4 at level {last}"
    note = f"They hold {percent(of_params)} of the parameters"
    return decided([above(what, share, MOST, points=False)], note)


def masks_overstate(evidence: Evidence) -> Answer:
    """Masks keep more parameters of convolutions than removal leaves, at every pruned level."""
    levels = filters(evidence)
    counts = ["conv_params_masked", "conv_params_compact"]
    levels = levels[levels["level"] > 0].dropna(subset=counts)
    if levels.empty:
        return missing("filters pruned independently", f"{ALEXNET} {CHANNELS}")
    masked, compact = (levels[name].astype(float) for name in counts)
    levels = levels.assign(ratio=masked / compact.clip(lower=1.0))
    comparisons = [
        above(
            f"masked / removed of {named(model, dataset)} at {percent(at)}",
            by_seed(rows, "ratio"),
            1.0,
            points=False,
        )
        for (model, dataset, at), rows in levels.groupby(["model", "dataset", "target_sparsity"])
    ]
    low, high = levels["ratio"].min(), levels["ratio"].max()
    return decided(comparisons, f"From {low:.2f} to {high:.2f} times in all")


def latency_behaves(evidence: Evidence) -> Answer:
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
    apart = ["model", *SETTING]
    for (model, machine, device, threads), every in rows.groupby(apart, dropna=False):
        runs = every.groupby(["seed", "pruning_run"])
        behaviour = pd.DataFrame([
            {"seed": seed} | row for (seed, _), run in runs if (row := _behaviour(run))
        ])  # fmt: skip
        if behaviour.empty:
            continue
        name = f"{short_model(str(model))} on {device} ({threads} threads, {machine})"
        for what, column, side, edge in (
            ("R squared of time and batch size", "r_squared", above, LINEAR),
            ("masked / dense", "masked", above, 1 - SAME_TIME),
            ("masked / dense", "masked", below, 1 + SAME_TIME),
            ("compact / dense at the last level", "compact", below, 1.0),
            ("Spearman of that and parameters removed", "spearman", below, 0.0),
        ):
            values = by_seed(behaviour, column)
            comparisons.append(side(f"{what}, {name}", values, edge, points=False))
    if not comparisons:
        return missing(
            f"times of dense, masked and compact at {BATCHES} batch sizes and two pruned levels",
            f"{ALEXNET} {CHANNELS} && pruneflow benchmark_latency --model alexnet",
        )
    return decided(comparisons, "The study's AlexNet, on a GPU: compact about 0.67 of dense")


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
        "spearman": spearman(removed.tolist(), ratio.tolist()),
    }


def skips_cost_more(evidence: Evidence) -> Answer:
    """ResNets, by filters: removal leaves less than MOST of what masks say, near the study's level.

    Of convolutions' parameters, at each run's level whose share by masks is nearest the study's
    53.13 %, within NEAR_MASKED. The study's: 6.27 % (ResNet18) and 17.21 % (ResNet50) left.
    """
    levels = filters(evidence, model=("resnet18", "resnet50"))
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
        return missing(
            "filters of resnet18 or resnet50 pruned independently to some 53 % by masks",
            f"{ITERATIVE} resnet18 {CHANNELS}",
        )
    at = near.loc[near["off"].groupby(near["run_id"]).idxmin()]
    comparisons = [
        below(f"removed / masked of {named(*kind)}", by_seed(rows, "ratio"), MOST, points=False)
        for kind, rows in at.groupby(["model", "dataset"])
    ]
    return decided(comparisons)
