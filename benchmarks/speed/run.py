"""Runs the benchmarks of speed and writes their tables, `speed.json` and `speed.md`.

    python benchmarks/speed/run.py --data_dir data/cifar10 --output_dir speed

The data is CIFAR-10, read as by `dataset=cifar10`; only `whole_level` and `precision` need it.
"""

from __future__ import annotations

import datetime
import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import click
from measure import in_process

from pruneflow.tracking.environment import cpu

CASES = (
    "prune_step",
    "growth",
    "masked_step",
    "whole_level",
    "throughput",
    "precision",
    "tracking",
)
ON_CIFAR10 = ("whole_level", "precision")


def markdown(found: dict[str, Any]) -> str:
    """The tables as a person reads them."""
    lines = [f"{found['machine']}; {found['versions']}; {found['date']}", ""]
    for case in found["cases"].values():
        names = list(dict.fromkeys(name for row in case["rows"] for name in row))
        lines += [f"## {case['title']}", "", case["about"], ""]
        lines += ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
        lines += [
            "| " + " | ".join(str(row.get(name, "")) for name in names) + " |"
            for row in case["rows"]
        ]
        lines.append("")
    return "\n".join(lines)


@click.command()
@click.option("--only", default=",".join(CASES), show_default=True, help="which benchmarks")
@click.option("--threads", default=os.cpu_count(), show_default=True, help="CPU threads")
@click.option("--data_dir", help="folder of CIFAR-10; from the hub when not given")
@click.option("--output_dir", default=".", show_default=True, help="where the tables are written")
def main(only: str, threads: int, data_dir: str | None, output_dir: str) -> None:
    """Run benchmarks one after the other; what was written before of others is kept."""
    wanted = only.split(",")
    if unknown := set(wanted) - set(CASES):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: valid are {', '.join(CASES)}")
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "speed.json"
    found = json.loads(kept.read_text("utf-8")) if kept.exists() else {"cases": {}}
    names = ("torch", "torchvision", "transformers", "pruneflow")
    found["machine"] = f"{cpu()}, {os.cpu_count()} cores"
    found["versions"] = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    found["date"] = datetime.date.today().isoformat()
    data = [str(Path(data_dir).resolve())] if data_dir else []
    for case in wanted:
        click.echo(f"{case} ...")
        script = str(Path(__file__).with_name(f"{case}.py"))
        own = data if case in ON_CIFAR10 else []
        found["cases"][case] = in_process(script, threads, *own)
        kept.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        (folder / "speed.md").write_text(markdown(found), "utf-8")
    click.echo((folder / "speed.md").read_text("utf-8"))


if __name__ == "__main__":
    main()
