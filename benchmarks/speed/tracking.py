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

ALEXNET: dict[str, object] = {"model": "alexnet", "image_size": 64}
RESNET18: dict[str, object] = {"model": "resnet18", "image_size": 32}
CIFAR10 = {"dataset": "cifar10", "train_limit": 20_000, "base_epochs": 1, "finetune_epochs": 1}
CASES = (  # what is run, its parameters, how often
    ("alexnet 64x64, preset quick", ALEXNET, 3),
    ("resnet18 32x32, preset quick", RESNET18, 3),
    ("alexnet 64x64, 20,000 samples of CIFAR-10, an epoch a level", ALEXNET | CIFAR10, 1),
)
START = "import sys; from pruneflow import cli; cli.run_entrypoint('finetune')"


def one(settings: dict[str, object]) -> None:
    """A pruning run with its base run; says its seconds, and what of them was its tracking's."""
    from pruneflow.stages import run
    from pruneflow.tracking.publish import Publisher
    from pruneflow.tracking.run import Run

    spent, depth = 0.0, 0

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def wrapper(*args: Any, **named: Any) -> Any:
            nonlocal spent, depth
            depth += 1
            start = time.perf_counter()
            try:
                return method(*args, **named)
            finally:
                depth -= 1
                if not depth:  # a method that another one called is counted there
                    spent += time.perf_counter() - start

        return wrapper

    for name in [name for name, value in vars(Run).items() if callable(value)]:
        setattr(Run, name, timed(getattr(Run, name)))
    Publisher.end = timed(Publisher.end)  # type: ignore[method-assign]
    start = time.perf_counter()
    run("prune_iterative", settings)
    print(json.dumps({"seconds": time.perf_counter() - start, "waiting": spent}))


def start_seconds() -> float:
    """From the start of a process to its refusal of a model: imports, store and model's name."""
    start = time.perf_counter()
    command = [sys.executable, "-c", START, "--model=none_of_them"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "unknown model" in done.stderr, done.stderr
    return time.perf_counter() - start


def main(threads: int, data_dir: str) -> None:
    """Runs on a SQLite store, each in a process of its own."""
    rows: list[dict[str, object]] = []
    for name, given, repeats in CASES:
        settings = given | {"threads": threads}
        if "dataset" in given:
            settings["data_dir"] = data_dir or None
        found = []
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as folder:
                os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
                os.environ["PRUNEFLOW_STATE"] = f"{folder}/state"
                found.append(in_process(__file__, json.dumps(settings)))
                starts = [start_seconds() for _ in range(3)]
        rows.append(
            {
                "run": f"prune_iterative, {name}",
                "seconds": spread([one["seconds"] for one in found], 1),
                "waits for tracking, s": spread([one["waiting"] for one in found], 2),
                "share": spread([100 * one["waiting"] / one["seconds"] for one in found], 2) + " %",
            }
        )
    rows.append({"run": "an entry point, until it looks at its model", "seconds": spread(starts)})
    tell(
        "Tracking",
        f"{threads} threads, SQLite, three times on preset quick. The run waits for its folder, "
        "checkpoints, figures, and for MLflow at the ends of epochs and levels.",
        rows,
    )


if __name__ == "__main__":
    if sys.argv[1].startswith("{"):
        one(json.loads(sys.argv[1]))
    else:
        main(int(sys.argv[1]), sys.argv[2])
