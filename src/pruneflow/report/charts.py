"""Charts: what a figure shows, before anything is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# form -> number of its colour and marker, the same in every figure
FORMS = {"dense": 7, "masked": 0, "compact": 1, "sparse": 2}


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        label: with its unit.
        scale: `linear`, `log`, `log2` (batch sizes), or `shrinking`: a log axis of fractions that
            runs from the whole model on the left to the smallest on the right.
        percent: whether values are fractions that are shown as percent.
        limits: lowest and highest value shown; None for what the data need.
    """

    label: str
    scale: Literal["linear", "log", "log2", "shrinking"] = "linear"
    percent: bool = False
    limits: tuple[float | None, float | None] = (None, None)

    def text(self, value: float, digits: int = 4) -> str:
        """A value with so many significant digits, in percent where the axis is."""
        return f"{100 * value:.{digits}g} %" if self.percent else f"{value:.{digits}g}"


PARAMS_LEFT = Axis("parameters left (log scale)", "shrinking", percent=True)
CHANNELS_LEFT = Axis("channels left (log scale)", "shrinking", percent=True)
ACCURACY = Axis("accuracy", percent=True, limits=(0.0, 1.02))
SPARSITY = Axis("sparsity", percent=True, limits=(0.0, 1.0))
BATCH_SIZE = Axis("batch size (log scale)", "log2")
BATCH_MS = Axis("milliseconds a batch", limits=(0.0, None))
BATCH_LOG_MS = Axis("milliseconds a batch (log scale)", "log")


@dataclass(frozen=True)
class Line:
    """A line with markers, all of one length.

    Attributes:
        label: in the legend.
        x, y: of its points; NaN in `y` is a gap.
        low, high: ends of an interval around each point; None or NaN where there is none.
        n: number of seeds behind each point: what most points of the panel have is written once,
            what differs beside its point.
        style: number of its colour and marker; lines that belong together share one.
        dash: how points are joined: `solid`, `dotted`, `dashed`, `steps` (a front of cost in `x`:
            between two points what the cheaper one reaches), or `none` (points alone). Markers of
            `dotted` and `none` are hollow.
        notes: shown when a point is pointed at, one a point, or none.
        reference: whether it was measured by others: drawn grey, thin and behind.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    n: Sequence[int] | None = None
    style: int = 0
    dash: Literal["solid", "dotted", "dashed", "steps", "none"] = "solid"
    notes: Sequence[str] | None = None
    reference: bool = False


@dataclass(frozen=True)
class Panel:
    """Lines on one pair of axes."""

    title: str
    x: Axis
    y: Axis
    lines: Sequence[Line]


@dataclass(frozen=True)
class HeatMap:
    """A table of fractions as colours, numbers in percent within the cells where they fit.

    Attributes:
        rows, columns: their names; rows are drawn from top to bottom.
        values: a row a name in `rows`, fractions in [0, 1]; NaN is left white.
        column_label, value_label: what the columns are, and the colour.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]
    column_label: str
    value_label: str


@dataclass(frozen=True)
class Chart:
    """A figure: panels side by side, wrapped into rows; one legend where they share lines."""

    title: str
    panels: Sequence[Panel | HeatMap]
