"""Six prune steps of 50 %: pruneflow's selection against torch.nn.utils.prune."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Mapping

import torch
from measure import distinct, forget_peak, in_process, model_of, peak_mib, spread, tell
from torch import Tensor, nn
from torch.nn.utils import prune

from pruneflow.pruning import groups
from pruneflow.pruning.criteria import CRITERIA
from pruneflow.pruning.granularity import Channels, Granularity, Weights
from pruneflow.pruning.selection import drop_lowest, prunable_parameters

MODELS = ("alexnet", "resnet50", "bert-base", "vgg16")
LEVELS, FRACTION, REPEATS = 6, 0.5, 3


def by_pruneflow(
    model: nn.Module, granularity: Granularity, criterion: str, scope: str
) -> Mapping[str, Tensor]:
    """Masks after LEVELS steps; the pruned entries are zero."""
    kept = granularity.everything()
    for level in range(LEVELS):

        def scores(name: str, level: int = level) -> object:
            return granularity.scores(name, kept, CRITERIA[criterion], (0, level))

        zero = granularity.laid_out_as_masks
        drop_lowest(kept, scores, fraction=FRACTION, scope=scope, zero=zero)  # type: ignore[arg-type]
        masks = granularity.masks(kept)
        masks.without(zero).keeper(model)()
    return masks


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
        filters = Channels(model, groups.filters(model, outputs=[]), coupled=False)
        masks = by_pruneflow(model, filters, "l2", "layer")
    else:
        criterion, _, scope = criterion.partition("/")
        masks = by_pruneflow(model, Weights(parameters), criterion, scope or "global")
    seconds, extra = time.perf_counter() - start, peak_mib() - before
    digest = hashlib.sha256()
    for mask in masks.values():
        digest.update(mask.contiguous().numpy().tobytes())
    print(json.dumps({"seconds": seconds, "extra": extra, "masks": digest.hexdigest()}))


def main(threads: int) -> None:
    """Every model by both ways, in turns, and pruneflow's other ways on the largest."""
    rows = []
    for name in MODELS:
        found: dict[str, list[dict[str, object]]] = {"torch l1": [], "pruneflow l1": []}
        for _ in range(REPEATS):
            for way, runs in found.items():
                runs.append(in_process(__file__, name, way, threads))
        theirs, ours = found.values()
        ratios = [t["seconds"] / o["seconds"] for t, o in zip(theirs, ours, strict=True)]  # type: ignore[operator]
        memory = [t["extra"] / o["extra"] for t, o in zip(theirs, ours, strict=True)]  # type: ignore[operator]
        rows.append(
            {
                "model": name,
                "way": "l1, global",
                "torch s": spread([run["seconds"] for run in theirs]),  # type: ignore[misc]
                "pruneflow s": spread([run["seconds"] for run in ours]),  # type: ignore[misc]
                "times faster": spread(ratios, 1),
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
        "beyond the model, masks included.",
        rows,
    )


if __name__ == "__main__":
    if len(sys.argv) > 2:
        one(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    else:
        main(int(sys.argv[1]))
