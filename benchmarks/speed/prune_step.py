"""Six prune steps of 50 %, by themselves and in a run, against torch.nn.utils.prune."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping

import torch
from measure import distinct, forget_peak, in_process, model_of, peak_mib, spread, tell, weights_of
from torch import Tensor, nn
from torch.nn.utils import prune

import pruneflow
from pruneflow.pruning import groups
from pruneflow.pruning.channels import Channels
from pruneflow.pruning.criteria import CRITERIA
from pruneflow.pruning.prunable import prunable_parameters
from pruneflow.pruning.selection import select
from pruneflow.pruning.units import Units

MODELS = ("alexnet", "resnet50", "bert-base", "vgg16")
IN_RUNS = ("alexnet", "resnet50", "vgg16")
LEVELS, FRACTION, REPEATS = 6, 0.5, 3


def by_pruneflow(units: Units, criterion: str, scope: str) -> Mapping[str, Tensor]:
    """Masks after LEVELS steps; the pruned entries are zero."""
    for level in range(LEVELS):
        scores = units.scores(CRITERIA[criterion], 0, level)
        units.apply(select(units.masks, scores, fraction=FRACTION, scope=scope))
    return units.parameter_masks()


def in_run(name: str, threads: int) -> float:
    """Seconds that a run of pruneflow says its LEVELS steps took, between short trainings."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        os.environ["PRUNEFLOW_STATE"] = f"{folder}/state"
        os.chdir(folder)
        done = pruneflow.prune_iterative(
            model=name,
            image_size=64,
            train_limit=100,
            batch_size=50,
            base_epochs=1,
            fraction=FRACTION,
            iterations=LEVELS,
            prune_bias=False,
            threads=threads,
        )
        os.chdir("/")
    return float(done.levels["score_seconds"].sum())


def by_torch(model: nn.Module, names: list[str], method: object) -> Mapping[str, Tensor]:
    """The same by PyTorch's own global pruning."""
    split = [name.rpartition(".") for name in names]
    places = [(model.get_submodule(layer), attribute) for layer, _, attribute in split]
    for _ in range(LEVELS):
        prune.global_unstructured(places, method, amount=FRACTION)  # type: ignore[no-untyped-call]
    return {
        name: getattr(module, f"{attribute}_mask").bool()
        for name, (module, attribute) in zip(names, places, strict=True)
    }


def one(name: str, way: str, threads: int) -> None:
    """One way, timed; says seconds, extra memory and a hash of the masks."""
    if way == "run":
        print(json.dumps({"seconds": in_run(name, threads)}))
        return
    torch.set_num_threads(threads)
    model = model_of(name)
    if way.startswith("torch"):  # which cannot prune a model in channels_last
        model = model.to(memory_format=torch.contiguous_format)
    parameters = prunable_parameters(model, include=(), exclude=(), biases=False)
    distinct(parameters)
    tool, _, criterion = way.partition(" ")
    forget_peak()
    before, start = peak_mib(), time.perf_counter()
    if tool == "torch":
        method = {"l1": prune.L1Unstructured, "random": prune.RandomUnstructured}[criterion]
        masks = by_torch(model, list(parameters), method)
    elif criterion == "filters":
        chosen = groups.filters(model, outputs=[])
        filters = Channels(model, chosen, [], {}, head="", coupled=False)
        masks = by_pruneflow(filters, "l2", "layer")
    else:
        criterion, _, scope = criterion.partition("/")
        masks = by_pruneflow(weights_of(model), criterion, scope or "global")
    seconds, extra = time.perf_counter() - start, peak_mib() - before
    digest = hashlib.sha256()
    for mask in masks.values():
        digest.update(mask.contiguous().numpy().tobytes())
    print(json.dumps({"seconds": seconds, "extra": extra, "masks": digest.hexdigest()}))


def _in_runs(theirs: list[dict[str, object]], ours: list[dict[str, object]]) -> dict[str, str]:
    """Columns of the steps in a run, where there was one."""
    if not ours:
        return {}
    ratios = [t["seconds"] / o["seconds"] for t, o in zip(theirs, ours, strict=True)]  # type: ignore[operator]
    return {
        "in a run s": spread([run["seconds"] for run in ours]),  # type: ignore[misc]
        "times faster in a run": spread(ratios, 1),
    }


def main(threads: int) -> None:
    """Every model by both ways, in turns, and pruneflow's other ways on the largest."""
    rows = []
    for name in MODELS:
        ways = ("torch l1", "pruneflow l1", *(["run"] if name in IN_RUNS else []))
        timed: dict[str, list[dict[str, object]]] = {way: [] for way in ways}
        for _ in range(REPEATS):
            for way, runs in timed.items():
                runs.append(in_process(__file__, name, way, threads))
        theirs, ours, in_runs = timed["torch l1"], timed["pruneflow l1"], timed.get("run", [])
        ratios = [t["seconds"] / o["seconds"] for t, o in zip(theirs, ours, strict=True)]  # type: ignore[operator]
        memory = [t["extra"] / o["extra"] for t, o in zip(theirs, ours, strict=True)]  # type: ignore[operator]
        rows.append(
            {
                "model": name,
                "way": "l1, global",
                "torch s": spread([run["seconds"] for run in theirs]),  # type: ignore[misc]
                "pruneflow s": spread([run["seconds"] for run in ours]),  # type: ignore[misc]
                "times faster": spread(ratios, 1),
                **_in_runs(theirs, in_runs),
                "torch extra MiB": spread([run["extra"] for run in theirs], 0),  # type: ignore[misc]
                "pruneflow extra MiB": spread([run["extra"] for run in ours], 0),  # type: ignore[misc]
                "times less": spread(memory, 1),
                "same masks": len({run["masks"] for run in (*theirs, *ours)}) == 1,
            }
        )
    for way in ("l1/layer", "random", "filters"):
        runs = [in_process(__file__, "vgg16", f"pruneflow {way}", threads) for _ in range(REPEATS)]
        rows.append(
            {
                "model": "vgg16",
                "way": way.replace("/", ", "),
                "pruneflow s": spread([run["seconds"] for run in runs]),
                "pruneflow extra MiB": spread([run["extra"] for run in runs], 0),
            }
        )
    tell(
        "Prune step",
        f"{LEVELS} steps of {FRACTION:g} on weights of distinct magnitudes, {threads} threads, "
        f"each in a process of its own, {REPEATS} times in turns. Extra memory is the most held "
        "beyond the model, masks included. In a run: `score_seconds` of a run that is trained, "
        "measured, saved and logged between its steps.",
        rows,
    )


if __name__ == "__main__":
    if len(sys.argv) > 2:
        one(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    else:
        main(int(sys.argv[1]))
