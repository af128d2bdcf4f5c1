"""Channels of one model pruned by every criterion here and by Torch-Pruning's, at the same MACs.

    python benchmarks/quality/channels.py --data_dir DIR --output DIR [--seeds 0,1,2]

Every seed has one base run, from which all start. At each level they are pruned to the same share
of its MACs and trained alike, by the same code on the same samples; BatchNorm's statistics are
re-estimated before the accuracy "before" is taken. Ours are runs (MLFLOW_TRACKING_URI says where),
Torch-Pruning's are rows of `torch_pruning.csv`; what is there already is not done again.
`channels.csv` has a row a method, seed and level; what is printed are means over seeds.
"""

from __future__ import annotations

import argparse
import copy
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch_pruning as tp
from scipy import stats
from torch import nn
from torch.nn import functional

import pruneflow
from pruneflow.config import PruneConfig
from pruneflow.pruning import cost
from pruneflow.resolution import resolve
from pruneflow.stages import base_run
from pruneflow.stages.experiment import Experiment, prepare
from pruneflow.stages.progress import Reporter
from pruneflow.workloads import batches, models, training
from pruneflow.workloads.splits import balanced

MACS = (0.5, 0.25)  # of a sample, after each level
SETTINGS: dict[str, Any] = {
    "model": "resnet18",
    "dataset": "cifar10",
    "train_limit": 10_000,
    "granularity": "channel",
    "form": "compact",
    "budget": f"macs:{MACS[-1]}",
    "iterations": len(MACS),
    "finetune_epochs": 2,
}
OURS = [
    *("l2", "taylor", "fpgm", "l1", "fisher", "lamp", "bn_scale", "variance", "apoz", "wanda"),
    *("snip", "synflow", "random"),
]
THEIRS = {
    "tp l2": tp.importance.GroupMagnitudeImportance(p=2),
    "tp taylor": tp.importance.GroupTaylorImportance(),
    "tp fpgm": tp.importance.FPGMImportance(p=2),
}
COUNTERPART = {"l2": "tp l2", "taylor": "tp taylor", "fpgm": "tp fpgm"}
Row = dict[str, Any]


def ours(criterion: str, settings: dict[str, Any]) -> Iterator[Row]:
    """Rows of a run of ours."""
    levels = pruneflow.prune_iterative(criterion=criterion, **settings).levels
    for row in levels.iloc[1:].itertuples():
        yield {
            "level": row.level,
            "params": row.params_compact / row.params,
            "macs": row.macs_compact / row.macs,
            "before": row.test_before,
            "after": row.test_after,
        }


def theirs(importance: tp.importance.Importance, settings: dict[str, Any]) -> Iterator[Row]:
    """Rows of Torch-Pruning's: from the same base, by the same training."""
    experiment, model = prepare(resolve(PruneConfig, settings), load=False)
    _, base = base_run.find_or_make(experiment, model, Reporter()).open("0")
    models.load_state(model, base.state)
    params, uses = sum(p.numel() for p in model.parameters()), experiment.uses
    macs = cost.macs(model, uses)[0]
    for level, share in enumerate(MACS, 1):
        accumulate_gradients(experiment, model)
        model = pruned_to(experiment, model, importance, share * macs)
        experiment.recalibrate(model, level)
        before = experiment.accuracy(model, experiment.data.test)
        recipe = experiment.recipe(experiment.config.finetune_epochs, level=level)
        for _ in training.fit(model, experiment.data.train, recipe, experiment.machine):
            pass
        yield {
            "level": level,
            "params": sum(p.numel() for p in model.parameters()) / params,
            "macs": cost.macs(model, uses)[0] / macs,
            "before": before,
            "after": experiment.accuracy(model, experiment.data.test),
        }


def accumulate_gradients(experiment: Experiment[PruneConfig], model: nn.Module) -> None:
    """Gradients of the mean loss over as many calibration samples as ours see."""
    config, train = experiment.config, experiment.data.train
    subset, _ = balanced(train.labels, config.calibration_samples, config.seed, shares=True)
    model.zero_grad()
    model.eval()
    for batch in batches.slices(len(subset), config.batch_size):
        part: Any = np.asarray(subset)[batch]
        inputs, labels = batches.to_model(train, part, config.image_size, experiment.machine)
        loss = functional.cross_entropy(model(inputs), labels, reduction="sum") / len(subset)
        loss.backward()  # type: ignore[no-untyped-call]


def pruned_to(
    experiment: Experiment[PruneConfig],
    model: nn.Module,
    importance: tp.importance.Importance,
    macs: float,
) -> nn.Module:
    """A copy with so many MACs, by global selection: its ratio of channels is bisected."""
    gradients = {name: p.grad for name, p in model.named_parameters()}
    low, high, best = 0.0, 1.0, model
    for _ in range(12):
        ratio = (low + high) / 2
        smaller = copy.deepcopy(model)
        for name, parameter in smaller.named_parameters():
            parameter.grad = gradients[name]
        tp.pruner.BasePruner(
            smaller,
            experiment.samples.float(),  # type: ignore[union-attr]
            importance,
            global_pruning=True,
            pruning_ratio=ratio,
            ignored_layers=[smaller.get_submodule(experiment.head)],
        ).step()
        found = cost.macs(smaller, experiment.uses)[0]
        low, high = (ratio, high) if found > macs else (low, ratio)
        if abs(found - macs) < abs(cost.macs(best, experiment.uses)[0] - macs):
            best = smaller
    best.zero_grad()
    return models.channels_last(best)


def measured(seeds: list[int], data_dir: str, output: Path) -> Iterator[Row]:
    """All rows; those of Torch-Pruning that are there already are read."""
    path = output / "torch_pruning.csv"
    known = list(csv.DictReader(path.open())) if path.is_file() else []
    for seed in seeds:
        settings = SETTINGS | {"data_dir": data_dir, "seed": seed, "threads": 1}
        for method, importance in THEIRS.items():
            rows = [r for r in known if (r["method"], int(r["seed"])) == (method, seed)]
            if len(rows) < len(MACS):
                rows = [{"method": method, "seed": seed} | r for r in theirs(importance, settings)]
                known += rows
                pd.DataFrame(known).to_csv(path, index=False)
            yield from rows
        for criterion in OURS:
            for row in ours(criterion, settings):
                yield {"method": criterion, "seed": seed} | row


def table(rows: pd.DataFrame) -> str:
    """Means over seeds, and the 95 % interval of the difference to the counterpart, if any."""
    lines = ["| method | level | seeds | params | MACs | before | after | after, to counterpart |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|---:|"]
    for (level, method), group in rows.groupby(["level", "method"], sort=False):
        mean = group[["params", "macs", "before", "after"]].mean()
        versus = ""
        if method in COUNTERPART:
            other = rows[(rows.method == COUNTERPART[method]) & (rows.level == level)]
            pairs = group.merge(other, on="seed")
            gains = pairs.after_x - pairs.after_y
            half = stats.t.ppf(0.975, len(gains) - 1) * gains.sem() if len(gains) > 1 else np.nan
            versus = f"{gains.mean():+.4f} ± {half:.4f}"
        cells = [f"{mean[c]:.3f}" for c in ("params", "macs")]
        cells += [f"{mean[c]:.4f}" for c in ("before", "after")]
        lines.append(f"| {method} | {level} | {len(group)} | {' | '.join(cells)} | {versus} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    rows: list[Row] = []
    for row in measured(seeds, options.data_dir, options.output):
        rows.append(row)
        pd.DataFrame(rows).to_csv(options.output / "channels.csv", index=False)
    numbers = dict.fromkeys(("params", "macs", "before", "after"), float)
    frame = pd.DataFrame(rows).astype(numbers | {"seed": int, "level": int})
    print(table(frame.sort_values("level", kind="stable")))


if __name__ == "__main__":
    main()
