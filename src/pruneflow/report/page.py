"""The page: figures, tables and what is concluded from runs, as HTML and as Markdown.

The HTML needs nothing but itself. Every name that comes from a run is escaped in both.
"""

from __future__ import annotations

import html
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from pruneflow.report import svg
from pruneflow.report.checklist import check
from pruneflow.report.curves import Overlay
from pruneflow.report.evidence import Evidence
from pruneflow.report.figures import FIGURES
from pruneflow.report.tables import TABLES

_ROWS = 40  # of a table that the page shows


@dataclass(frozen=True)
class Statement:
    """A statement about the runs, and what they say of it.

    Attributes:
        number: before it; may be empty.
        text: the statement.
        outcome: in a word or two.
        holds: whether it does; None where that is open.
        reason: why, in a sentence.
        command: what would produce what is missing.
        rows: the numbers behind it.
    """

    number: str
    text: str
    outcome: str
    holds: bool | None
    reason: str
    command: str = ""
    rows: pd.DataFrame = field(default_factory=pd.DataFrame)


@dataclass(frozen=True)
class Section:
    """A heading with an id, what it is about, and a table of statements."""

    id: str
    title: str
    about: str
    statements: Sequence[Statement]


@dataclass(frozen=True)
class Addition:
    """What a published study adds to a report of runs like its own.

    Attributes:
        sections: before the checklist.
        overlay: its curves, laid beneath those of the runs.
        note: on how they are drawn and where they are from.
        labels: name of a figure or table -> what it is called there.
    """

    sections: Sequence[Section] = ()
    overlay: Overlay = field(default_factory=Overlay)
    note: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


def write(evidence: Evidence, folder: Path, addition: Addition | None = None) -> list[str]:
    """Write a report: `report.html`, `report.md`, `figures/` (PNG, SVG) and `tables/` (CSV).

    Args:
        evidence: of the runs.
        folder: made if it is not there; files of an earlier report are replaced.
        addition: of a published study that the runs are compared with.

    Returns:
        Names of the figures that had no runs.
    """
    addition = addition or Addition()
    charts = {name: figure.draw(evidence, addition.overlay) for name, figure in FIGURES.items()}
    tables = {name: make(evidence) for name, (_, make) in TABLES.items()}
    sections = [*addition.sections, _checklist(evidence)]
    # all that can go wrong with the runs has, before anything of an earlier report is replaced
    for kind in ("figures", "tables"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for old in (folder / kind).glob("*.*"):
            if old.stem in FIGURES or old.stem in TABLES:
                old.unlink()
    for name, table in tables.items():
        table.to_csv(folder / "tables" / f"{name}.csv", index=False)
    context = {
        "title": f"Pruning report: {evidence.title}",
        "about": _about(evidence),
        "failed": _failed(evidence),
        "sections": sections,
        "note": addition.note,
        "labels": addition.labels,
        "figures": FIGURES,
        "drawn": {
            name: Markup(svg.save(chart, folder / "figures", name))
            for name, chart in charts.items()
            if chart is not None
        },
        "titles": {name: title for name, (title, _) in TABLES.items()},
        "tables": tables,
        "shown": {name: table.head(_ROWS) for name, table in tables.items()},
    }
    for kind, cells in (("html", _to_html), ("md", _to_markdown)):
        template = _templates(escape=kind == "html").get_template(f"page.{kind}.j2")
        text = template.render(context, cells=cells, cell=_cell)
        (folder / f"report.{kind}").write_text(text, "utf-8", errors="replace")
    return [name for name, chart in charts.items() if chart is None]


def _templates(*, escape: bool) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("pruneflow.report"),
        autoescape=escape,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )


def _checklist(evidence: Evidence) -> Section:
    statements = [
        Statement("", item.name, "met" if item.met else "not met", item.met, item.why)
        for item in check(evidence)
    ]
    about = "After Blalock et al., “What is the State of Neural Network Pruning?” (MLSys 2020)."
    return Section("checklist", "Checklist of sound pruning evaluation", about, statements)


def _about(evidence: Evidence) -> str:
    pruning = evidence.pruning
    seeds = pruning["seed"].nunique()
    timed = evidence.latencies["run_id"].nunique()
    samples = pruning["train_eval_samples"].dropna()
    sampled = ""
    if len(samples):
        sampled = (
            f"Accuracy on the training set is of at most {int(samples.max()):,} samples of it, "
            "drawn by the seed. "
        )
    return (
        f"{len(pruning)} finished pruning runs of {len(evidence.configurations)} configurations "
        f"({', '.join(sorted(pruning['model'].unique()))} on "
        f"{', '.join(sorted(pruning['dataset'].unique()))}), {seeds} "
        f"seed{'s' * (seeds != 1)}, {timed} benchmark{'s' * (timed != 1)}. "
        f"{sampled}Made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by pruneflow."
    )


def _failed(evidence: Evidence) -> str:
    """What did not finish or cannot be read, and is in no figure."""
    runs = evidence.runs
    counts = runs["status"].value_counts()
    others = [f"{n} {str(s).lower()}" for s, n in counts.items() if s != "FINISHED"]
    pruned = runs["stage"].str.startswith("prune_").fillna(False) & (runs["status"] == "FINISHED")
    unread = int(pruned.sum()) - len(evidence.pruning)
    others += [f"{unread} finished without readable levels"] if unread else []
    return f"Not in this report: {', '.join(others)} (see the table of all runs)." if others else ""


def _readable(value: object) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, numbers.Integral):
        return f"{int(value)}"
    return f"{float(value):.4g}" if isinstance(value, numbers.Real) else str(value)


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
