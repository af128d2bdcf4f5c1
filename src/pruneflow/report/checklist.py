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
_TOLD = 3  # configurations that are named where some fail


@dataclass(frozen=True)
class Item:
    """One item of the checklist, and what was found."""

    name: str
    met: bool
    why: str


Finding = tuple[bool, str]


def _named(evidence: Evidence, numbers: pd.Index) -> str:
    labels = [evidence.label(number) for number in numbers]
    more = f" and {len(labels) - _TOLD} more" if len(labels) > _TOLD else ""
    return "; ".join(labels[:_TOLD]) + more


def _pruned(evidence: Evidence) -> pd.DataFrame:
    table = evidence.configurations
    return table[table["schedule"] != "dense"]


def named_exactly(evidence: Evidence) -> Finding:
    """Architecture, data set and weights, of every configuration."""
    table = evidence.configurations
    if table.empty:
        return False, NONE
    said = table[["model", "dataset", "weights"]]
    lacking = said.isna().any(axis=1)
    if lacking.any():
        return (
            False,
            f"unnamed model, data set or weights: {_named(evidence, table.index[lacking])}",
        )
    whats = said.drop_duplicates().apply(
        lambda row: f"{row['model']} on {row['dataset']} (weights {row['weights']})", axis=1
    )
    return True, "; ".join(whats)


def compression_and_speedup(evidence: Evidence) -> Finding:
    """Compression ratio and theoretical speed-up (MACs), of every level."""
    left = evidence.levels[["params_left", "macs_left"]]
    lacking = left.isna().any(axis=1)
    if left.empty:
        return False, NONE
    if lacking.any():
        return False, f"{int(lacking.sum())} of {len(left)} levels lack params_left or macs_left"
    params, macs = (float(1 / left[name].clip(lower=1e-9).min()) for name in left)
    return (
        True,
        f"of all {len(left)} levels: up to {params:.1f} x fewer parameters, {macs:.1f} x "
        "fewer MACs",
    )


def operating_points(evidence: Evidence) -> Finding:
    """At least five levels, of every iterative configuration."""
    iterative = _pruned(evidence)
    iterative = iterative[iterative["schedule"] == "iterative"]
    most = evidence.levels.groupby("configuration")["level"].max().reindex(iterative.index)
    few = most.index[most < POINTS]
    if iterative.empty:
        return False, "no iterative run"
    if len(few):
        return False, f"fewer than {POINTS}: {_named(evidence, few)}"
    return True, f"{int(most.min())} to {int(most.max())} pruned levels"


def dense_control(evidence: Evidence) -> Finding:
    """A control of every model and data set that is trained as long and not pruned.

    As long: as many levels as the longest iterative run, of as many epochs each.
    """
    table = evidence.configurations
    most = evidence.levels.groupby("configuration")["level"].max()
    table = table.assign(epochs=most.reindex(table.index).astype(float) * table["finetune_epochs"])
    lacking, controls = [], 0
    for (model, dataset), own in table.groupby(["model", "dataset"]):
        dense = own[own["schedule"] == "dense"]
        pruned = own[own["schedule"] != "dense"]
        controls += len(dense)
        if pruned.empty:
            continue
        needed = pruned["epochs"].max()
        if dense.empty:
            lacking.append(f"none of {model} on {dataset}: pass fraction=0")
        elif dense["epochs"].max() < needed:
            lacking.append(
                f"that of {model} on {dataset} has {dense['epochs'].max():g} epochs of "
                f"fine-tuning, pruning {needed:g}"
            )
    if lacking:
        return False, "; ".join(lacking)
    if not controls:
        return False, NONE
    return True, f"{controls} control{'s' * (controls > 1)}, trained as long"


def baselines(evidence: Evidence) -> Finding:
    """Random and magnitude pruning of every model and data set."""
    table = _pruned(evidence)
    lacking = []
    for (model, dataset), own in table.groupby(["model", "dataset"]):
        criteria = set(own["criterion"])
        if "random" not in criteria or not criteria & {"l1", "l2"}:
            lacking.append(f"{model} on {dataset} (only {', '.join(sorted(criteria))})")
    if table.empty:
        return False, NONE
    if lacking:
        return False, f"not both: {'; '.join(lacking)}"
    return True, f"both, of every model and data set ({', '.join(sorted(set(table['criterion'])))})"


def seeds(evidence: Evidence) -> Finding:
    """At least three seeds of every configuration, with their spread."""
    table = evidence.configurations
    few = table.index[table["n"] < SEEDS]
    if len(few):
        return False, f"fewer than {SEEDS} in {len(few)} of {len(table)}: {_named(evidence, few)}"
    if table.empty:
        return False, NONE
    return True, f"{table['n'].min()} to {table['n'].max()} seeds, sd and 95 % interval"


def raw_and_differences(evidence: Evidence) -> Finding:
    """Raw accuracies as well as differences: level 0 and the levels, of every run."""
    levels = evidence.levels
    lacking = levels[["test_before", "test_after", "train_after"]].isna().any(axis=1)
    without = levels["run_id"].nunique() - levels[levels["level"] == 0]["run_id"].nunique()
    if lacking.any() or without:
        return False, f"{int(lacking.sum())} levels lack accuracies, {without} runs their level 0"
    if levels.empty:
        return False, NONE
    return True, f"accuracies of all {len(levels)} levels, and level 0 of every run to subtract"


def achieved(evidence: Evidence) -> Finding:
    """The sparsity that was reached, beside the one that was asked for."""
    pruned = evidence.levels[evidence.levels["level"] > 0]
    reached = pruned["sparsity"].where(pruned["channels_left"].isna(), 1 - pruned["channels_left"])
    off = (reached - pruned["target_sparsity"]).abs()
    if pruned.empty:
        return False, "no pruned level"
    if off.isna().any():
        return False, f"{int(off.isna().sum())} levels lack one of the two"
    return True, f"both recorded; largest difference {100 * off.max():.2f} % of what can be pruned"


def same_code_and_data(evidence: Evidence) -> Finding:
    """One commit, clean, one set of versions; one selection of each data set."""
    found = list(evidence.environments.values())
    commits = {str((one.get("git") or {}).get("commit")) for one in found}  # type: ignore[attr-defined]
    dirty = any((one.get("git") or {}).get("dirty") for one in found)  # type: ignore[attr-defined]
    versions = {str(one.get("versions")) for one in found}
    problems = []
    if not found:
        problems.append("no environment.json was read")
    if "None" in commits:
        problems.append("the commit of some runs is not known")
    if len(commits - {"None"}) > 1:
        problems.append(f"{len(commits - {'None'})} commits")
    if dirty:
        problems.append("the source had changes that were not committed")
    if len(versions) > 1:
        problems.append(f"{len(versions)} sets of package versions")
    for dataset, own in evidence.configurations.groupby("dataset"):
        sizes = own["train_limit"].astype("string").fillna("all").unique()
        if len(sizes) > 1:
            problems.append(f"{dataset} with different train_limit: {', '.join(sizes)}")
    if problems:
        return False, "; ".join(problems)
    told = f"commit {commits.pop()[:12]}, {len(found)} of {len(evidence.pruning)} runs looked at"
    return True, f"{told}; data told by name and train_limit, not by content"


def hardware(evidence: Evidence) -> Finding:
    """Processor, threads and versions, of the runs."""
    told = set()
    for run, one in evidence.environments.items():
        processor, threads = one.get("gpu") or one.get("cpu"), one.get("threads")
        torch = (one.get("versions") or {}).get("torch")  # type: ignore[attr-defined]
        if not (processor and threads and torch):
            return False, f"run {run[:8]} lacks its processor, threads or PyTorch's version"
        told.add(f"{processor}, {threads} threads, PyTorch {torch}")
    return bool(told), "; ".join(sorted(told)) or "no environment.json was read"


def mac_convention(evidence: Evidence) -> Finding:
    """What a MAC is, and that one model at one resolution has the same number in every run."""
    sizes = evidence.pruning.set_index("run_id")["image_size"]
    levels = evidence.levels.assign(size=evidence.levels["run_id"].map(sizes))
    counts = levels.groupby(["model", "dataset", "size"], dropna=False)["macs"].nunique()
    if counts.empty or (counts == 0).any():
        return False, "no MACs recorded of some model" if len(counts) else NONE
    differ = [f"{model} on {dataset}" for model, dataset, _ in counts.index[counts > 1]]
    if differ:
        return False, f"several counts of MACs for {', '.join(differ)}"
    return True, (
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
    return [Item(name, *test(evidence)) for name, test in CHECKLIST.items()]
