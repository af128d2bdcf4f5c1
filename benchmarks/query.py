"""Times queries and a report's data step on stores of several sizes, each in a fresh process.

    python benchmarks/query.py --runs 1000,10000

prints a Markdown table of seconds and peak memory.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import click

from pruneflow.tracking.environment import cpu

_STEPS = {
    "query.runs()": "query.runs()",
    "query.levels()": "query.levels()",
    "report's data step": "evidence.read('all')",
}
_CODE = """
import json, resource, time
from pruneflow import query
from pruneflow.report import evidence
start = time.perf_counter()
found = {step}
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([seconds, peak]))
"""


@click.command()
@click.option("--runs", default="1000,10000", show_default=True, help="sizes of stores")
def main(runs: str) -> None:
    """Time every step on every size."""
    print(
        f"{cpu()}, {os.cpu_count()} cores; MLflow {metadata.version('mlflow')}, pandas "
        f"{metadata.version('pandas')}, Python {platform.python_version()}, SQLite\n"
    )
    print("| step | runs | seconds | peak MiB |\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for size in map(int, runs.split(",")):
            store = f"sqlite:///{folder}/{size}.db"
            maker = [sys.executable, str(Path(__file__).parent / "store.py")]
            subprocess.run(
                [*maker, "--runs", str(size), "--store", store],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            for name, step in _STEPS.items():
                done = subprocess.run(
                    [sys.executable, "-c", _CODE.format(step=step)],
                    check=True,
                    capture_output=True,
                    text=True,
                    cwd=folder,
                    env={**os.environ, "MLFLOW_TRACKING_URI": store},
                )
                seconds, peak = json.loads(done.stdout.splitlines()[-1])
                print(f"| {name} | {size:,} | {seconds:.1f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
