"""Prune step from a million to a thousand million parameters."""

from __future__ import annotations

import json
import sys
import time

import torch
from measure import forget_peak, in_process, peak_mib, spread, tell, weights_of
from torch import nn

from pruneflow.pruning.criteria import CRITERIA
from pruneflow.pruning.selection import select

SIDES = {1_000_000: (1, 1_000), 10_000_000: (10, 1_000), 100_000_000: (4, 5_000)} | {
    1_000_000_000: (10, 10_000)
}
REPEATS = 3


def one(layers: int, side: int, threads: int) -> None:
    """Two steps of 50 % on square layers; the second is timed."""
    torch.set_num_threads(threads)
    model = nn.Sequential(*(nn.Linear(side, side, bias=False) for _ in range(layers)))
    forget_peak()
    before = peak_mib()
    units = weights_of(model)
    for level in range(2):
        start = time.perf_counter()
        scores = units.scores(CRITERIA["l1"], 0, level)
        units.apply(select(units.masks, scores, fraction=0.5, scope="global"))
        seconds = time.perf_counter() - start
    masks = 2 * units.masks.total / 2**20  # before a step and after it
    print(json.dumps({"seconds": seconds, "beyond": peak_mib() - before - masks}))


def main(threads: int) -> None:
    """Every size."""
    rows = []
    for count, (layers, side) in SIDES.items():
        runs = [in_process(__file__, layers, side, threads) for _ in range(REPEATS)]
        seconds = [run["seconds"] for run in runs]
        rows.append(
            {
                "parameters": f"{count:,}",
                "seconds": spread(seconds, 3),
                "ns a parameter": spread([1e9 * s / count for s in seconds], 2),
                "MiB beyond the masks": spread([run["beyond"] for run in runs], 0),
            }
        )
    tell(
        "Growth of a prune step",
        f"The second of two steps of 50 % on square linear layers, {threads} threads, each in a "
        f"process of its own, {REPEATS} times.",
        rows,
    )


if __name__ == "__main__":
    if len(sys.argv) > 2:
        one(*map(int, sys.argv[1:]))
    else:
        main(int(sys.argv[1]))
