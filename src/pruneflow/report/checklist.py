"""A checklist of sound pruning evaluation, item by item: met or not, and why.

After Blalock, Gonzalez Ortiz, Frankle and Guttag, "What is the State of Neural Network Pruning?"
(MLSys 2020), its recommendations and Appendix B.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pruneflow.report.evidence import Evidence

POINTS = 5
SEEDS = 3
_NAMED = 3  # configurations that are named where some fail


@dataclass(frozen=True)
class Item:
    """One item of the checklist, and what the runs say of it."""

    name: str
    met: bool
    why: str


Finding = tuple[Any, str, str]  # whether something is lacking, what, and else what the runs have


def _labels(rows: pd.DataFrame) -> str:
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return "; ".join(rows["label"][:_NAMED]) + more


def named_exactly(evidence: Evidence) -> Finding:
    table = evidence.configurations
    named = table[["model", "dataset", "weights"]]
    lacking = table[named.isna().any(axis=1)]
    kinds = named.drop_duplicates().itertuples(index=False)
    names = [f"{model} on {dataset} (weights {weights})" for model, dataset, weights in kinds]
    problem = f"unnamed model, data set or weights: {_labels(lacking)}"
    return len(lacking), problem, "; ".join(names)


def compression_and_speedup(evidence: Evidence) -> Finding:
    shares = evidence.levels[["params_left", "macs_left"]]
    lacking = shares.isna().any(axis=1).sum()
    params, macs = 1 / shares.clip(lower=1e-9).min()
    what = f"up to {params:.1f} x fewer parameters, {macs:.1f} x fewer MACs"
    problem = f"{lacking} of {len(shares)} levels lack params_left or macs_left"
    return lacking, problem, f"of all {len(shares)} levels: {what}"


def operating_points(evidence: Evidence) -> Finding:
    table = evidence.configurations.query("procedure == 'iterative'")
    few = table[table["last_level"] < POINTS]
    problem = f"fewer than {POINTS}: {_labels(few)}" if len(table) else "no iterative run"
    levels = f"{table['last_level'].min():.0f} to {table['last_level'].max():.0f} pruned levels"
    return table.empty or len(few), problem, levels


def dense_control(evidence: Evidence) -> Finding:
    """Trained as long: as many levels as the longest iterative run, of as many epochs each."""
    table = evidence.configurations
    epochs = table["last_level"] * table["finetune_epochs"].astype(float)
    dense = table["procedure"] == "dense"
    problems = []
    for (model, dataset), rows in table.groupby(["model", "dataset"]):
        longest = epochs[rows.index].groupby(dense).max()
        needed, trained = longest.get(False), longest.get(True)
        if trained is None:
            problems.append(f"none of {model} on {dataset}: pass fraction=0")
        elif needed is not None and trained < needed:
            short = f"{trained:g} epochs of fine-tuning, pruning {needed:g}"
            problems.append(f"that of {model} on {dataset} has {short}")
    what = f"{dense.sum()} control{'s' * bool(dense.sum() > 1)}, trained as long"
    return problems, "; ".join(problems), what


def baselines(evidence: Evidence) -> Finding:
    table = evidence.configurations.query("procedure != 'dense'")
    lacking = []
    for (model, dataset), rows in table.groupby(["model", "dataset"]):
        criteria = set(rows["criterion"])
        if "random" not in criteria or not criteria & {"l1", "l2"}:
            lacking.append(f"{model} on {dataset} (only {', '.join(sorted(criteria))})")
    names = ", ".join(sorted(set(table["criterion"])))
    what = f"both, of every model and data set ({names})"
    return lacking, f"not both: {'; '.join(lacking)}", what


def seeds(evidence: Evidence) -> Finding:
    table = evidence.configurations
    few = table[table["n"] < SEEDS]
    problem = f"fewer than {SEEDS} in {len(few)} of {len(table)}: {_labels(few)}"
    spread = f"{table['n'].min()} to {table['n'].max()} seeds, sd and 95 % interval"
    return len(few), problem, spread


def raw_and_differences(evidence: Evidence) -> Finding:
    levels = evidence.levels
    lacking = levels[["test_before", "test_after", "train_after"]].isna().any(axis=1).sum()
    without = levels["run_id"].nunique() - (levels["level"] == 0).sum()
    problem = f"{lacking} levels lack accuracies, {without} runs their level 0"
    what = f"accuracies of all {len(levels)} levels, and level 0 of every run to subtract"
    return lacking or without, problem, what


def achieved(evidence: Evidence) -> Finding:
    pruned = evidence.levels[evidence.levels["level"] > 0]
    off = (pruned["achieved"] - pruned["target_sparsity"]).abs()
    lacking = off.isna().sum()
    problem = f"{lacking} levels lack one of the two" if len(pruned) else "no pruned level"
    largest = f"largest difference {100 * off.max():.2f} % of what can be pruned"
    return pruned.empty or lacking, problem, f"both recorded; {largest}"


def same_code_and_data(evidence: Evidence) -> Finding:
    environments = evidence.environments.values()
    git = [environment.get("git") or {} for environment in environments]
    commits = {str(state.get("commit")) for state in git}
    versions = len({str(environment.get("versions")) for environment in environments})
    known = len(commits - {"None"})
    problems = {
        "no environment.json was read": not git,
        "the commit of some runs is not known": "None" in commits,
        f"{known} commits": known > 1,
        "the source had changes that were not committed": any(state.get("dirty") for state in git),
        f"{versions} sets of package versions": versions > 1,
    }
    for dataset, rows in evidence.configurations.groupby("dataset"):
        sizes = rows["train_limit"].astype("string").fillna("all").unique()
        problems[f"{dataset} with different train_limit: {', '.join(sizes)}"] = len(sizes) > 1
    lacking = [problem for problem, there in problems.items() if there]
    what = f"commit {', '.join(commits)[:12]}, {len(git)} of {len(evidence.pruning)} runs looked at"
    known_by = "data known by name and train_limit, not by content"
    return lacking, "; ".join(lacking), f"{what}; {known_by}"


def hardware(evidence: Evidence) -> Finding:
    names, lacking = set(), []
    for run, environment in evidence.environments.items():
        processor, threads = (
            environment.get("gpu") or environment.get("cpu"),
            environment.get("threads"),
        )
        torch = (environment.get("versions") or {}).get("torch")
        names.add(f"{processor}, {threads} threads, PyTorch {torch}")
        if not (processor and threads and torch):
            lacking.append(f"run {run[:8]} lacks its processor, threads or PyTorch's version")
    problem = lacking[0] if lacking else "no environment.json was read"
    return lacking or not names, problem, "; ".join(sorted(names))


def mac_convention(evidence: Evidence) -> Finding:
    """What a MAC is, and that one model at one resolution has the same number in every run."""
    sizes = evidence.pruning.set_index("run_id")["image_size"]
    levels = evidence.levels.assign(size=evidence.levels["run_id"].map(sizes))
    counts = levels.groupby(["model", "dataset", "size"], dropna=False)["macs"].nunique()
    differ = [f"{model} on {dataset}" for model, dataset, _ in counts.index[counts > 1]]
    problem = f"several counts of MACs for {', '.join(differ)}"
    return (
        differ or (counts == 0).any(),
        problem if differ else "no MACs recorded of some model",
        f"one count for each of {len(counts)} models at a resolution: one multiply-accumulate of a "
        "convolution or linear layer for one sample; biases, normalisation, pooling, embeddings "
        "and attention's products count nothing",
    )


CHECKLIST: dict[str, Callable[[Evidence], Finding]] = {
    "Architecture and data named exactly": named_exactly,
    "Compression ratio and theoretical speed-up": compression_and_speedup,
    "At least five operating points": operating_points,
    "Dense control": dense_control,
    "Random and magnitude baselines": baselines,
    "Several seeds, with spread": seeds,
    "Raw accuracies as well as differences": raw_and_differences,
    "Achieved sparsity": achieved,
    "Same code and data for all": same_code_and_data,
    "Hardware and versions": hardware,
    "MAC convention": mac_convention,
}


def check(evidence: Evidence) -> list[Item]:
    """Every item, in order."""
    if evidence.levels.empty:
        return [Item(name, False, "no finished pruning run") for name in CHECKLIST]
    findings = {name: test(evidence) for name, test in CHECKLIST.items()}
    return [
        Item(name, not lacking, problem if lacking else what)
        for name, (lacking, problem, what) in findings.items()
    ]
