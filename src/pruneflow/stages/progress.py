"""What a person at a terminal sees: a bar while a stage works, plain lines where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pruneflow.tracking.latencies import Latency
from pruneflow.tracking.levels import Level, readable


class Reporter:
    """Tells of a stage's progress on standard output; use it as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or _console()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=1.0, note="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False)

    def plan(self, epochs: int) -> None:
        """What is ahead: so many epochs of training in all."""
        self._bar.reset(self._task, total=float(max(epochs, 1)), note="", description="")

    def at(self, where: str, epochs_done: float, loss: float | None = None) -> None:
        """Where the work is: `where` in words, how many of the planned epochs are done."""
        note = "" if loss is None else f"loss {loss:.4f}"
        self._bar.update(self._task, description=where, completed=epochs_done, note=note)


def _console() -> Console:
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:  # a log has no width of its own; the table of levels needs this
        console.width = 120
    return console


def levels_table(levels: Sequence[Level]) -> Table:
    """The levels of a pruning run, as they are shown at its end."""
    cells = readable(levels, without=("params compact", "MACs compact"))
    table = Table(title="levels", title_justify="left")
    for heading in cells:
        table.add_column(heading, justify="right")
    for row in zip(*cells.values(), strict=True):
        table.add_row(*row)
    return table


def latencies_table(latencies: Sequence[Latency]) -> Table:
    """The times of a benchmark, as they are shown at its end."""
    table = Table(title="latency", title_justify="left")
    headings = ("level", "form", "on", "batch", "p50 ms", "p95 ms", "speed-up", "95 % interval")
    for heading in (*headings, "MB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in latencies:
        form = row.form if row.engine == "eager" else f"{row.form}, {row.engine}"
        on = f"{row.device} x{row.threads}" if row.device == "cpu" else row.device
        where = [str(row.level), form, on, str(row.batch_size)]
        if row.p50_ms is None or row.p95_ms is None or row.speedup is None:
            table.add_row(*where, row.status)
            continue
        has_interval = row.speedup_low is not None
        table.add_row(
            *where,
            f"{row.p50_ms:.3f}",
            f"{row.p95_ms:.3f}",
            f"{row.speedup:.2f}",
            f"{row.speedup_low:.2f} - {row.speedup_high:.2f}" if has_interval else "",
            f"{row.weight_bytes / 1e6:.1f}",
        )
    return table
