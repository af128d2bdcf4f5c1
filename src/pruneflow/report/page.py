"""The page: figures, tables, claims and checklist of a report, as HTML and as Markdown.

The HTML needs nothing but itself. Every name that comes from a run is escaped in both.
"""

from __future__ import annotations

import base64
import html
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import matplotlib
import pandas as pd
from markupsafe import Markup

from pruneflow.report import interactive, static
from pruneflow.report.charts import Chart
from pruneflow.report.checklist import check
from pruneflow.report.claims import judge
from pruneflow.report.evidence import Evidence
from pruneflow.report.study_figures import FIGURES, Figure
from pruneflow.report.tables import TABLES

_ROWS = 40  # of a table that the page shows
_DPI = 110


@dataclass(frozen=True)
class _Drawn:
    """A figure on the page; `drawn` is what shows it."""

    name: str
    number: str
    title: str
    caption: str
    drawn: Markup


@dataclass(frozen=True)
class _Shown:
    """A table on the page."""

    name: str
    title: str
    rows: int
    shown: int
    cells: Markup
    markdown: str


def write(evidence: Evidence, folder: Path, *, reference: bool, with_plotly: bool) -> list[str]:
    """Write a report: `report.html`, `report.md`, `figures/` (PNG, SVG) and `tables/` (CSV).

    Args:
        evidence: of the runs.
        folder: made if it is not there; files of an earlier report are replaced.
        reference: lay the study's own curves beneath.
        with_plotly: figures on the page tell what their points are; without, it is some 5 MB
            smaller.

    Returns:
        Names of the figures that had no runs.
    """
    charts = {name: figure.draw(evidence, reference) for name, figure in FIGURES.items()}
    there = {name: chart for name, chart in charts.items() if chart is not None and chart.panels}
    missing = [name for name in FIGURES if name not in there]
    tables = {name: make(evidence) for name, (_, make) in TABLES.items()}
    verdicts, checklist = judge(evidence), check(evidence)
    # all that can go wrong with the runs has, before anything of an earlier report is replaced
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    (folder / "tables").mkdir(exist_ok=True)
    for old in [*(folder / "figures").glob("*"), *(folder / "tables").glob("*.csv")]:
        if old.stem in FIGURES or old.stem in TABLES:
            old.unlink()
    _save(there, folder / "figures")
    for name, table in tables.items():
        table.to_csv(folder / "tables" / f"{name}.csv", index=False)
    context = {
        "title": f"Pruning report: {evidence.title}",
        "about": _about(evidence),
        "failed": _failed(evidence),
        "verdicts": verdicts,
        "checklist": checklist,
        "overlaid": reference,
        "library": Markup(interactive.library()) if with_plotly else "",
        "figures": [
            _on_page(name, FIGURES[name], chart, folder, with_plotly=with_plotly)
            for name, chart in there.items()
        ],
        "missing": [FIGURES[name] for name in missing],
        "tables": [_shown(name, table) for name, table in tables.items()],
    }
    page = _templates(escape=True).get_template("page.html.j2")
    (folder / "report.html").write_text(page.render(context, small=_cells), "utf-8")
    text = _templates(escape=False).get_template("page.md.j2")
    (folder / "report.md").write_text(text.render(context, cell=_one_cell), "utf-8")
    return missing


def _templates(*, escape: bool) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("pruneflow.report"),
        autoescape=escape,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )


def _save(charts: Mapping[str, Chart], folder: Path) -> None:
    # no date in the file, so that the same runs give the same bytes
    with matplotlib.rc_context({"svg.hashsalt": "pruneflow"}):
        for name, chart in charts.items():
            figure = static.draw(chart)
            figure.savefig(folder / f"{name}.png", dpi=_DPI)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def _on_page(name: str, figure: Figure, chart: Chart, folder: Path, *, with_plotly: bool) -> _Drawn:
    if with_plotly:
        drawn = interactive.fragment(interactive.draw(chart), f"chart-{name}")
    else:
        picture = base64.b64encode((folder / "figures" / f"{name}.png").read_bytes()).decode()
        drawn = f'<img alt="{html.escape(figure.title)}" src="data:image/png;base64,{picture}">'
    return _Drawn(name, figure.number, figure.title, figure.caption, Markup(drawn))


def _about(evidence: Evidence) -> str:
    pruning = evidence.pruning
    seeds = pruning["seed"].nunique()
    timed = evidence.latencies["run_id"].nunique()
    return (
        f"{len(pruning)} finished pruning runs of {len(evidence.configurations)} configurations "
        f"({', '.join(sorted(pruning['model'].unique()))} on "
        f"{', '.join(sorted(pruning['dataset'].unique()))}), {seeds} "
        f"seed{'s' * (seeds != 1)}, {timed} benchmark{'s' * (timed != 1)}. "
        f"Made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by pruneflow."
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


def _shown(name: str, table: pd.DataFrame) -> _Shown:
    first = table.head(_ROWS)
    return _Shown(name, TABLES[name][0], len(table), len(first), _cells(first), _markdown(first))


def _readable(value: object) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, numbers.Integral):
        return f"{int(value)}"
    if isinstance(value, numbers.Real):
        return f"{float(value):.4g}"
    return str(value)


def _cells(table: pd.DataFrame) -> Markup:
    """A table as HTML, every cell escaped."""
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in table)
    body = []
    for row in table.itertuples(index=False):
        cells = []
        for value in row:
            kind = ' class="number"' if isinstance(value, numbers.Real) else ""
            cells.append(f"<td{kind}>{html.escape(_readable(value))}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    return Markup(f"<table><tr>{head}</tr>{''.join(body)}</table>")


def _markdown(table: pd.DataFrame) -> str:
    """A table as Markdown, every cell escaped."""
    lines = ["| " + " | ".join(_one_cell(str(name)) for name in table) + " |"]
    lines.append("|" + "---|" * table.shape[1])
    for row in table.itertuples(index=False):
        lines.append("| " + " | ".join(_one_cell(_readable(value)) for value in row) + " |")
    return "\n".join(lines)


def _one_cell(text: str) -> str:
    """Text that stays in its cell, and is no markup."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")
