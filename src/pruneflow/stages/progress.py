"""What a person at a terminal sees: a bar while a stage works, plain lines where there is none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pruneflow.tracking.latencies import Latency
from pruneflow.tracking.levels import Level, readable


class Reporter(Progress):
    """Tells of a stage's progress on standard output; use it as a context manager."""

    def __init__(self) -> None:
        console = Console(highlight=False, soft_wrap=True)
        if not console.is_terminal:  # a log has no width of its own; the table of levels needs this
            console.width = 120
        note, share = TextColumn("{task.fields[note]}"), TextColumn("{task.percentage:3.0f}%")
        times = TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
        columns = TextColumn("{task.description}"), BarColumn(), share, note, *times
        super().__init__(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._bar = self.add_task("", total=1.0, note="")

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False)

    def plan(self, epochs: int) -> None:
        """What is ahead: so many epochs of training in all."""
        self.reset(self._bar, total=float(max(epochs, 1)), note="", description="")

    def at(self, where: str, epochs_done: float, loss: float | None = None) -> None:
        """Where the work is: `where` in words, how many of the planned epochs are done."""
        note = "" if loss is None else f"loss {loss:.4f}"
        self.update(self._bar, description=where, completed=epochs_done, note=note)


def table(title: str, headings: Iterable[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table of numbers, the columns of which are never cut."""
    made = Table(title=title, title_justify="left")
    for heading in headings:
        made.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    return made


def levels_table(levels: Sequence[Level]) -> Table:
    """The levels of a pruning run, as they are shown at its end."""
    counted = ("params compact", "MACs compact", "budget target", "budget achieved")
    cells = readable(levels, without=counted)
    return table("levels", cells, zip(*cells.values(), strict=True))


def latencies_table(latencies: Sequence[Latency]) -> Table:
    """The times of a benchmark, as they are shown at its end."""
    headings = ("level", "form", "on", "batch", "p50 ms", "p95 ms", "speed-up", "95 % interval")
    return table("latency", (*headings, "MB"), map(_latency_cells, latencies))


def _latency_cells(row: Latency) -> list[str]:
    form = row.form if row.engine == "eager" else f"{row.form}, {row.engine}"
    device = f"{row.device} x{row.threads}" if row.device == "cpu" else row.device
    cells = [str(row.level), form, device, str(row.batch_size)]
    if row.p50_ms is None or row.p95_ms is None or row.speedup is None:
        return [*cells, row.status]
    interval = f"{row.speedup_low:.2f} - {row.speedup_high:.2f}" if row.speedup_low else ""
    cells += [f"{row.p50_ms:.3f}", f"{row.p95_ms:.3f}", f"{row.speedup:.2f}", interval]
    return [*cells, f"{row.weight_bytes / 1e6:.1f}"]
