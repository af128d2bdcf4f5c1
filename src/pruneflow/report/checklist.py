"""A checklist of sound pruning evaluation, item by item: met or not, and why.

After Blalock, Gonzalez Ortiz, Frankle and Guttag, "What is the State of Neural Network Pruning?"
(MLSys 2020), its recommendations and Appendix B.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from pruneflow.report.evidence import Evidence

POINTS = 5
SEEDS = 3
NONE = "no finished pruning run"
_NAMED = 3  # configurations that are named where some fail


@dataclass(frozen=True)
class Item:
    """One item of the checklist, and what the runs say of it."""

    name: str
    met: bool
    why: str


Finding = tuple[list[str], str]  # what is lacking, if anything; else what the runs have


def _labels(evidence: Evidence, numbers: pd.Index) -> str:
    labels = [evidence.label(number) for number in numbers]
    more = f" and {len(labels) - _NAMED} more" if len(labels) > _NAMED else ""
    return "; ".join(labels[:_NAMED]) + more


def _pruned(evidence: Evidence) -> pd.DataFrame:
    table = evidence.configurations
    return table[table["schedule"] != "dense"]


def _most_levels(evidence: Evidence) -> pd.Series[int]:
    return evidence.levels.groupby("configuration")["level"].max()


def named_exactly(evidence: Evidence) -> Finding:
    """Architecture, data set and weights, of every configuration."""
    table = evidence.configurations[["model", "dataset", "weights"]]
    lacking = table.index[table.isna().any(axis=1)]
    what = f"unnamed model, data set or weights: {_labels(evidence, lacking)}"
    kinds = table.drop_duplicates().itertuples(index=False)
    names = [f"{model} on {dataset} (weights {weights})" for model, dataset, weights in kinds]
    return [what] * bool(len(lacking)), "; ".join(names)


def compression_and_speedup(evidence: Evidence) -> Finding:
    """Compression ratio and theoretical speed-up (MACs), of every level."""
    left = evidence.levels[["params_left", "macs_left"]]
    lacking = int(left.isna().any(axis=1).sum())
    params, macs = (1 / left.clip(lower=1e-9).min()).tolist()
    what = f"up to {params:.1f} x fewer parameters, {macs:.1f} x fewer MACs"
    problem = f"{lacking} of {len(left)} levels lack params_left or macs_left"
    return [problem] * bool(lacking), f"of all {len(left)} levels: {what}"


def operating_points(evidence: Evidence) -> Finding:
    """At least five levels, of every iterative configuration."""
    iterative = evidence.configurations.query("schedule == 'iterative'")
    most = _most_levels(evidence).reindex(iterative.index)
    if most.empty:
        return ["no iterative run"], ""
    few = most.index[most < POINTS]
    problem = f"fewer than {POINTS}: {_labels(evidence, few)}"
    return [problem] * bool(len(few)), f"{int(most.min())} to {int(most.max())} pruned levels"


def dense_control(evidence: Evidence) -> Finding:
    """A control of every model and data set that is trained as long and not pruned.

    As long: as many levels as the longest iterative run, of as many epochs each.
    """
    table = evidence.configurations
    most = _most_levels(evidence).reindex(table.index).astype(float)
    epochs = most * table["finetune_epochs"].astype(float)
    dense = table["schedule"] == "dense"
    lacking = []
    for (model, dataset), rows in table.groupby(["model", "dataset"]):
        longest = epochs[rows.index].groupby(dense[rows.index]).max()
        needed, trained = longest.get(False), longest.get(True)
        if trained is None:
            lacking.append(f"none of {model} on {dataset}: pass fraction=0")
        elif needed is not None and trained < needed:
            lacking.append(
                f"that of {model} on {dataset} has {trained:g} epochs of fine-tuning, "
                f"pruning {needed:g}"
            )
    return lacking, f"{dense.sum()} control{'s' * bool(dense.sum() > 1)}, trained as long"


def baselines(evidence: Evidence) -> Finding:
    """Random and magnitude pruning of every model and data set."""
    table = _pruned(evidence)
    lacking = []
    for (model, dataset), rows in table.groupby(["model", "dataset"]):
        criteria = set(rows["criterion"])
        if "random" not in criteria or not criteria & {"l1", "l2"}:
            lacking.append(f"{model} on {dataset} (only {', '.join(sorted(criteria))})")
    names = ", ".join(sorted(set(table["criterion"])))
    problem = f"not both: {'; '.join(lacking)}"
    return [problem] * bool(lacking), f"both, of every model and data set ({names})"


def seeds(evidence: Evidence) -> Finding:
    """At least three seeds of every configuration, with their spread."""
    n = evidence.configurations["n"]
    few = n.index[n < SEEDS]
    problem = f"fewer than {SEEDS} in {len(few)} of {len(n)}: {_labels(evidence, few)}"
    return [problem] * bool(len(few)), f"{n.min()} to {n.max()} seeds, sd and 95 % interval"


def raw_and_differences(evidence: Evidence) -> Finding:
    """Raw accuracies as well as differences: level 0 and the levels, of every run."""
    levels = evidence.levels
    lacking = int(levels[["test_before", "test_after", "train_after"]].isna().any(axis=1).sum())
    without = levels["run_id"].nunique() - levels[levels["level"] == 0]["run_id"].nunique()
    problem = f"{lacking} levels lack accuracies, {without} runs their level 0"
    what = f"accuracies of all {len(levels)} levels, and level 0 of every run to subtract"
    return [problem] * bool(lacking or without), what


def achieved(evidence: Evidence) -> Finding:
    """The sparsity that was reached, beside the one that was asked for."""
    pruned = evidence.levels[evidence.levels["level"] > 0]
    if pruned.empty:
        return ["no pruned level"], ""
    reached = pruned["sparsity"].where(pruned["channels_left"].isna(), 1 - pruned["channels_left"])
    off = (reached - pruned["target_sparsity"]).abs()
    problem = f"{int(off.isna().sum())} levels lack one of the two"
    what = f"both recorded; largest difference {100 * off.max():.2f} % of what can be pruned"
    return [problem] * bool(off.isna().any()), what


def same_code_and_data(evidence: Evidence) -> Finding:
    """One commit, clean, one set of versions; one selection of each data set."""
    environments = evidence.environments.values()
    git = [dict(e.get("git") or {}) for e in environments]  # type: ignore[call-overload]
    commits = {str(one.get("commit")) for one in git}
    versions = len({str(e.get("versions")) for e in environments})
    known = len(commits - {"None"})
    problems = {
        "no environment.json was read": not git,
        "the commit of some runs is not known": "None" in commits,
        f"{known} commits": known > 1,
        "the source had changes that were not committed": any(one.get("dirty") for one in git),
        f"{versions} sets of package versions": versions > 1,
    }
    for dataset, rows in evidence.configurations.groupby("dataset"):
        sizes = rows["train_limit"].astype("string").fillna("all").unique()
        problems[f"{dataset} with different train_limit: {', '.join(sizes)}"] = len(sizes) > 1
    what = f"commit {', '.join(commits)[:12]}, {len(git)} of {len(evidence.pruning)} runs looked at"
    lacking = [problem for problem, there in problems.items() if there]
    return lacking, f"{what}; data known by name and train_limit, not by content"


def hardware(evidence: Evidence) -> Finding:
    """Processor, threads and versions, of the runs."""
    names, lacking = set(), []
    for run, environment in evidence.environments.items():
        processor = environment.get("gpu") or environment.get("cpu")
        threads = environment.get("threads")
        torch = dict(environment.get("versions") or {}).get("torch")  # type: ignore[call-overload]
        names.add(f"{processor}, {threads} threads, PyTorch {torch}")
        if not (processor and threads and torch):
            lacking.append(f"run {run[:8]} lacks its processor, threads or PyTorch's version")
    return lacking[:1] if names else ["no environment.json was read"], "; ".join(sorted(names))


def mac_convention(evidence: Evidence) -> Finding:
    """What a MAC is, and that one model at one resolution has the same number in every run."""
    sizes = evidence.pruning.set_index("run_id")["image_size"]
    levels = evidence.levels.assign(size=evidence.levels["run_id"].map(sizes))
    counts = levels.groupby(["model", "dataset", "size"], dropna=False)["macs"].nunique()
    differ = [f"{model} on {dataset}" for model, dataset, _ in counts.index[counts > 1]]
    problems = ["no MACs recorded of some model"] * bool((counts == 0).any())
    problems += [f"several counts of MACs for {', '.join(differ)}"] * bool(differ)
    return problems, (
        f"one count for each of {len(counts)} models at a resolution: one multiply-accumulate of a "
        "convolution or linear layer for one sample; biases, normalisation, pooling, embeddings "
        "and attention's products count nothing"
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
        return [Item(name, False, NONE) for name in CHECKLIST]
    items = []
    for name, test in CHECKLIST.items():
        lacking, what = test(evidence)
        items.append(Item(name, not lacking, "; ".join(lacking) or what))
    return items
