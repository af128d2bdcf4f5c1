"""What tracking costs of a run's wall time, and how long an entry point takes to begin."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from measure import in_process, spread, tell

CASES = (("alexnet", 64), ("resnet18", 32))
REPEATS = 3
START = "import sys; from pruneflow import cli; cli.run_entrypoint('finetune')"


def one(model: str, size: int, threads: int) -> None:
    """A quick pruning run; says its seconds, and those it spent in its tracking."""
    from pruneflow.stages import run
    from pruneflow.tracking.run import Run

    spent, depth = [0.0], [0]

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def wrapper(*args: Any, **named: Any) -> Any:
            depth[0] += 1
            start = time.perf_counter()
            try:
                return method(*args, **named)
            finally:
                depth[0] -= 1
                if not depth[0]:  # a method that another one called is counted there
                    spent[0] += time.perf_counter() - start

        return wrapper

    names = [name for name, value in vars(Run).items() if callable(value)]
    for name in names:
        setattr(Run, name, timed(getattr(Run, name)))
    start = time.perf_counter()
    run("prune_iterative", {"model": model, "image_size": size, "threads": threads})
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "tracking": spent[0]}))


def start_seconds() -> float:
    """From the start of a process to its refusal of a model: imports, store and model's name."""
    start = time.perf_counter()
    command = [sys.executable, "-c", START, "--model=none_of_them"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "unknown model" in done.stderr, done.stderr
    return time.perf_counter() - start


def main(threads: int) -> None:
    """Quick runs with their base runs on a SQLite store, each in a process of its own."""
    rows: list[dict[str, object]] = []
    for model, size in CASES:
        found = []
        for _ in range(REPEATS):
            with tempfile.TemporaryDirectory() as folder:
                os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
                os.environ["PRUNEFLOW_STATE"] = f"{folder}/state"
                found.append(in_process(__file__, model, size, threads))
                starts = [start_seconds() for _ in range(3)]
        rows.append(
            {
                "run": f"prune_iterative, {model} {size}x{size}, preset quick",
                "seconds": spread([one["seconds"] for one in found], 1),
                "in tracking": spread([one["tracking"] for one in found], 2),
                "share": spread([100 * one["tracking"] / one["seconds"] for one in found], 2)
                + " %",
            }
        )
    rows.append({"run": "an entry point, until it looks at its model", "seconds": spread(starts)})
    tell(
        "Tracking",
        f"{threads} threads, SQLite, {REPEATS} times. Counted is what the run itself spends on "
        "journal, checkpoints, tables, figures and its end; a thread sends them to MLflow.",
        rows,
    )


if __name__ == "__main__":
    if len(sys.argv) > 2:
        one(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    else:
        main(int(sys.argv[1]))
