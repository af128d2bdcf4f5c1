"""Runs the benchmarks of speed and writes their tables, `speed.json` and `speed.md`.

    python benchmarks/speed/run.py --data_dir data/cifar10 --output_dir speed

`whole_level`, `precision` and `tracking` read CIFAR-10, as `dataset=cifar10` does; `precision`
reads SST-2 and a pretrained encoder as well.
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
@click.option("--text_dir", help="folder of SST-2; from the hub when not given")
@click.option("--encoder", default="pretrained", show_default=True, help="`weights` of `bert`")
@click.option("--output_dir", default=".", show_default=True, help="where the tables are written")
def main(
    only: str,
    threads: int,
    data_dir: str | None,
    text_dir: str | None,
    encoder: str,
    output_dir: str,
) -> None:
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
    images, texts = (str(Path(one).resolve()) if one else "" for one in (data_dir, text_dir))
    if Path(encoder).exists():
        encoder = str(Path(encoder).resolve())
    reads = {"whole_level": [images], "precision": [images, texts, encoder], "tracking": [images]}
    for case in wanted:
        click.echo(f"{case} ...")
        script = str(Path(__file__).with_name(f"{case}.py"))
        found["cases"][case] = in_process(script, threads, *reads.get(case, []))
        kept.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        (folder / "speed.md").write_text(markdown(found), "utf-8")
    click.echo((folder / "speed.md").read_text("utf-8"))


if __name__ == "__main__":
    main()
