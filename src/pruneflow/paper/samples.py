"""Samples of the runs that the study's claims are about: levels, and a value a seed of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from scipy import stats

from pruneflow.config import short_model
from pruneflow.report.evidence import Evidence, where

ITERATIVE = "pruneflow prune_iterative --model"
ALEXNET = f"{ITERATIVE} alexnet"
CHANNELS = "--granularity channel --coupling independent"


def l1(evidence: Evidence, **values: object) -> pd.DataFrame:
    """Levels of single weights by L1, globally, iteratively."""
    return evidence.of(
        granularity="weight", criterion="l1", scope="global", schedule="iterative", **values
    )


def filters(evidence: Evidence, **values: object) -> pd.DataFrame:
    """Levels of filters by magnitude, every Conv2d by itself, as `ln_structured` chooses them."""
    return evidence.of(
        granularity="channel",
        coupling="independent",
        criterion=("l1", "l2"),
        schedule="iterative",
        **values,
    )


def most_seeds(levels: pd.DataFrame) -> pd.DataFrame:
    """Of the configuration with most seeds, so that means are over seeds alone."""
    if levels.empty:
        return levels
    counts = levels.groupby("configuration")["seed"].nunique()
    return where(levels, configuration=counts.idxmax())


def by_seed(frame: pd.DataFrame, column: str) -> pd.Series[float]:
    """The mean of a column for each seed; rows where it is missing count nothing."""
    return frame[frame[column].notna()].groupby("seed")[column].mean().astype(float)


def since_start(levels: pd.DataFrame, column: str) -> pd.Series[float]:
    """Change of a column since level 0 of the same run."""
    start = levels[levels["level"] == 0].set_index("run_id")[column]
    return levels[column].astype(float) - levels["run_id"].map(start).astype(float)


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation; 0 where one of the two does not change."""
    if len(set(x)) < 2 or len(set(y)) < 2:
        return 0.0
    return float(stats.spearmanr(x, y).statistic)


def named(model: object, dataset: object) -> str:
    return f"{short_model(str(model))} on {dataset}"


def percent(share: Any) -> str:
    return f"{100 * float(share):.4g} %"
