"""The page: figures, tables and what is concluded from runs, as HTML and as Markdown.

The HTML needs nothing but itself. Every name that comes from a run is escaped in both.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from pruneflow.report import charts
from pruneflow.report.checklist import check
from pruneflow.report.evidence import Evidence
from pruneflow.report.figures import FIGURES
from pruneflow.report.tables import TABLES

_ROWS = 40  # of a table that the page shows
_CHECKLIST = "After Blalock et al., “What is the State of Neural Network Pruning?” (MLSys 2020)."


@dataclass(frozen=True)
class Statement:
    """A statement about the runs, and what they say of it."""

    outcome: str  # in a word or two
    reason: str
    text: str = ""
    number: str = ""
    command: str = ""  # what would produce what is missing
    rows: pd.DataFrame = field(default_factory=pd.DataFrame)  # the numbers behind it


@dataclass(frozen=True)
class Section:
    """A heading with an id, what it is about, and a table of statements."""

    id: str
    title: str
    about: str
    statements: Sequence[Statement]


@dataclass(frozen=True)
class Addition:
    """What a published study adds to a report of runs like its own."""

    sections: Sequence[Section] = ()  # before the checklist
    overlay: charts.Overlay = field(default_factory=charts.Overlay)
    note: str = ""  # on how its curves are drawn and where they are from
    labels: Mapping[str, str] = field(default_factory=dict)  # name of a figure or table -> its own


def write(evidence: Evidence, folder: Path, addition: Addition | None = None) -> list[str]:
    """Write a report: `report.html`, `report.md`, `figures/` (PNG, SVG) and `tables/` (CSV).

    Files of an earlier report are replaced. Returns the names of the figures that had no runs.
    """
    addition = addition or Addition()
    drawn = {name: figure.draw(evidence, addition.overlay) for name, figure in FIGURES.items()}
    tables = {name: make(evidence) for name, (_, make) in TABLES.items()}
    statements = [
        Statement("met" if item.met else "not met", item.why, item.name) for item in check(evidence)
    ]
    checklist = "checklist", "Checklist of sound pruning evaluation", _CHECKLIST, statements
    # all that can go wrong with the runs has, before anything of an earlier report is replaced
    for kind, names in (("figures", FIGURES), ("tables", TABLES)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for old in (folder / kind).glob("*.*"):
            if old.stem in names:
                old.unlink()
    for name, table in tables.items():
        table.to_csv(folder / "tables" / f"{name}.csv", index=False)
    context = {
        "title": f"Pruning report: {evidence.title}",
        "about": _about(evidence),
        "failed": _failed(evidence),
        "sections": [*addition.sections, Section(*checklist)],
        "note": addition.note,
        "labels": addition.labels,
        "figures": FIGURES,
        "drawn": {
            name: Markup(charts.save(chart, folder / "figures", name))
            for name, chart in drawn.items()
            if chart is not None
        },
        "titles": {name: title for name, (title, _) in TABLES.items()},
        "tables": tables,
        "shown": {name: table.head(_ROWS) for name, table in tables.items()},
    }
    for kind, cells in (("html", _to_html), ("md", _to_markdown)):
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("pruneflow.report"),
            autoescape=kind == "html",
            undefined=jinja2.StrictUndefined,
            keep_trailing_newline=True,
        )
        page = environment.get_template(f"page.{kind}.j2")
        text = page.render(context, cells=cells, cell=_cell)
        (folder / f"report.{kind}").write_text(text, "utf-8", errors="replace")
    return [name for name, chart in drawn.items() if chart is None]


def _about(evidence: Evidence) -> str:
    pruning = evidence.pruning
    seeds, timed = pruning["seed"].nunique(), evidence.latencies["run_id"].nunique()
    models, datasets = (", ".join(sorted(pruning[n].unique())) for n in ("model", "dataset"))
    samples = pruning["train_eval_samples"].max()
    sampled = "" if pd.isna(samples) else (
        f"Accuracy on the training set is of at most {int(samples):,} samples of it, drawn by the "
        "seed. "
    )  # fmt: skip
    return (
        f"{len(pruning)} finished pruning runs of {len(evidence.configurations)} configurations "
        f"({models} on {datasets}), {seeds} seed{'s' * (seeds != 1)}, "
        f"{timed} benchmark{'s' * (timed != 1)}. {sampled}"
        f"Made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by pruneflow."
    )


def _failed(evidence: Evidence) -> str:
    """What did not finish or cannot be read, and is in no figure."""
    counts = evidence.runs["status"].value_counts()
    others = [f"{n} {str(s).lower()}" for s, n in counts.items() if s != "FINISHED"]
    pruned = evidence.runs["stage"].str.startswith("prune_").fillna(False)
    unread = sum(pruned & (evidence.runs["status"] == "FINISHED")) - len(evidence.pruning)
    others += [f"{unread} finished without readable levels"] if unread else []
    return f"Not in this report: {', '.join(others)} (see the table of all runs)." if others else ""


def _readable(value: Any) -> str:
    if pd.isna(value):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _to_html(table: pd.DataFrame) -> Markup:
    """A table as HTML, every cell escaped."""
    with pd.option_context("display.max_colwidth", None):
        return Markup(table.astype(object).map(_readable).to_html(index=False, border=0))


def _to_markdown(table: pd.DataFrame) -> str:
    """A table as Markdown, every cell escaped."""
    cells = table.astype(object).map(lambda value: _cell(_readable(value)))
    return str(cells.to_markdown(index=False, tablefmt="pipe", disable_numparse=True))


def _cell(text: str) -> str:
    """Text that stays in its cell, and is no markup."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")
