"""Published numbers, and the levels of runs that they can be laid beside."""

from __future__ import annotations

from importlib import resources
from typing import Any

import pandas as pd

from pruneflow.report.evidence import Evidence, where
from pruneflow.report.page import Section, Statement

_NEAR = 0.02  # of sparsity or of the MACs left: a level so near is at the same place
_ABOUT = (
    "Numbers of others for the same model and data set, and the runs of this report whose "
    f"sparsity or share of the MACs is at most {_NEAR} away; the difference is the best one's. "
    "Recipes differ: what counts is what each loses of its base."
)
_COLUMNS = ["configuration", "seeds", "level", "base", "accuracy", "lost", "published lost"]


def published() -> list[dict[str, Any]]:
    """The facts: model, data set, where, accuracy and base in [0, 1], recipe and source.

    `sparsity` or `macs_left` says where (sparsity 0 is the dense model), `base` what was pruned.
    """
    with (resources.files("pruneflow.paper") / "published.csv").open("rb") as file:
        table = pd.read_csv(file)
    return [{str(k): v for k, v in row.dropna().items()} for _, row in table.iterrows()]


def section(evidence: Evidence) -> Section | None:
    """The facts that runs of a report can be laid beside, with those; None if there are none."""
    statements = [beside for fact in published() if (beside := _beside(evidence, fact))]
    if not statements:
        return None
    return Section("published", "Published numbers", _ABOUT, statements)


def _beside(evidence: Evidence, fact: dict[str, Any]) -> Statement | None:
    """A fact with the levels that fit it; None if none does."""
    axis = "macs_left" if "macs_left" in fact else "sparsity"
    wanted = {name: fact[name] for name in ("model", "dataset", "granularity") if name in fact}
    levels = where(evidence.levels, **wanted)
    dense = axis == "sparsity" and fact["sparsity"] == 0
    if dense:
        levels = levels[levels["level"] == 0].drop_duplicates("base_run")
    rows, recipes = [], []
    for number, of in levels.groupby("configuration", sort=True):
        run = evidence.configurations.loc[number]
        means = of.groupby("level")[[axis, "test_after"]].mean()
        off = (means[axis] - fact[axis]).abs()
        if dense:
            off[:] = 0.0  # a level 0 is dense, whatever zeros its weights came with
        if not off.min() <= _NEAR:  # nor where no level says it
            continue
        level = off.idxmin()
        base = where(evidence.levels, configuration=number, level=0)["test_after"].mean()
        rows.append({
            "configuration": run["label"],
            "seeds": of["seed"].nunique(),
            "level": level,
            "base": base,
            "accuracy": means["test_after"][level],
            "lost": base - means["test_after"][level],
            "published lost": fact["base"] - fact["accuracy"] if "base" in fact else None,
        })  # fmt: skip
        recipes.append(_recipe(run, _base_epochs(evidence, of), dense=dense))
    if not rows:
        return None
    best = max(row["accuracy"] for row in rows)
    return Statement(
        outcome=f"{best - fact['accuracy']:+.4f}",
        reason=f"here: {'; '.join(dict.fromkeys(recipes))}. There: {fact['recipe']}",
        text=_text(fact),
        rows=pd.DataFrame(rows, columns=_COLUMNS).dropna(axis=1, how="all"),
    )


def _text(fact: dict[str, Any]) -> str:
    if fact.get("sparsity") == 0:
        at = "dense"
    elif "macs_left" in fact:
        at = f"{fact['granularity']}s, {fact['macs_left']:.3f} of the MACs"
    else:
        at = f"{fact['granularity']}s, sparsity {fact['sparsity']:.2f}"
    base = f" (base {fact['base']:.4f})" if "base" in fact else ""
    what = f"{fact['model']} on {fact['dataset']}, {at}"
    return f"{what}: {fact['accuracy']:.4f}{base}. {fact['source']}"


def _base_epochs(evidence: Evidence, levels: pd.DataFrame) -> str:
    """Epochs of the base runs of some levels, as those say it: a named base has its own."""
    bases = evidence.runs[evidence.runs["run_id"].isin(levels["base_run"])]
    known = sorted({int(n) for n in bases.get("epochs", pd.Series(dtype=float)).dropna()})
    return ", ".join(map(str, known)) or "not in this report"


def _recipe(run: Any, base_epochs: str, *, dense: bool) -> str:
    """How a run was trained, in the words of its parameters."""
    images = "all" if pd.isna(run["train_limit"]) else f"{int(run['train_limit']):,}"
    words = [
        f"preset {run['preset']}",
        f"epochs of the base: {base_epochs}",
        f"augment={run['augment']}",
        f"{images} training images less those for validation",
    ]
    if not dense:
        words += [run["procedure"], f"finetune_epochs={run['finetune_epochs']}"]
    return ", ".join(map(str, words))
