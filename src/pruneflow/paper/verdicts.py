"""Verdicts: what a 95 % interval over seeds says of a statement with an edge."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, Self

import numpy as np
import pandas as pd
from scipy import stats

from pruneflow.report.evidence import CONFIDENCE, Evidence
from pruneflow.report.page import Statement

Outcome = Literal["refuted", "undecided", "confirmed"]  # one that is refuted refutes all together
LEAST_SEEDS = 3
_MOST_SEEDS = 1_000  # beyond, "more than" is said
_SHOWN = 4  # comparisons that a verdict's reason lists
_STRENGTH: dict[Outcome, int] = {"refuted": 0, "undecided": 1, "confirmed": 2}


@dataclass(frozen=True)
class Comparison:
    """A mean over seeds beside the edge that it has to be above, or below."""

    what: str
    mean: float
    sd: float  # NaN of one seed
    n: int  # seeds; of two samples those of the smaller
    freedom: float  # degrees of it, of Student's interval
    edge: float
    above: bool
    points: bool = True  # accuracies, to be shown in points of a hundred

    @classmethod
    def of(cls, what: str, values: Iterable[float], edge: float = 0.0, **side: bool) -> Self:
        """Of a value a seed, `above` or not the edge; raises ValueError for no values."""
        known = np.asarray(list(values), dtype=float)
        n = len(known)
        if not n:
            raise ValueError(f"{what}: there are no values to compare")
        sd = float(known.std(ddof=1)) if n > 1 else math.nan
        return cls(what, float(known.mean()), sd, n, n - 1, edge, **side)

    @classmethod
    def between(
        cls, what: str, values: Iterable[float], others: Iterable[float], *, above: bool
    ) -> Self:
        """Of the difference of two samples that share nothing, by Welch's interval; edge 0."""
        first, second = (cls.of(what, sample, above=above) for sample in (values, others))
        n = min(first.n, second.n)
        variances = first.sd**2 / first.n, second.sd**2 / second.n
        spread = variances[0] ** 2 / max(1, first.n - 1) + variances[1] ** 2 / max(1, second.n - 1)
        freedom = sum(variances) ** 2 / spread if spread else n - 1
        sd = math.sqrt(sum(variances) * n)
        return cls(what, first.mean - second.mean, sd, n, freedom, 0.0, above)

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval; NaN of one seed."""
        return self.mean - _half_interval(self.sd, self.n, self.freedom)

    @property
    def high(self) -> float:
        return self.mean + _half_interval(self.sd, self.n, self.freedom)

    def _beyond(self, value: float) -> float:
        """How far a value is on the statement's side of the edge."""
        return (value - self.edge) * (1 if self.above else -1)

    @property
    def margin(self) -> float:
        return self._beyond(self.mean)

    @property
    def outcome(self) -> Outcome:
        """Decided by the whole interval, of LEAST_SEEDS seeds."""
        if self.n < LEAST_SEEDS:
            return "undecided"
        ends = self._beyond(self.low), self._beyond(self.high)
        if min(ends) > 0:
            return "confirmed"
        return "refuted" if max(ends) <= 0 else "undecided"

    @property
    def seeds_to_decide(self) -> str:
        """How many seeds of this spread and mean would decide it, in words."""
        if math.isnan(self.sd):
            return f"{LEAST_SEEDS} seeds at least"
        for n in range(max(LEAST_SEEDS, self.n + 1), _MOST_SEEDS + 1):
            if _half_interval(self.sd, n, n - 1) < abs(self.margin):
                return f"some {n} seeds at this spread"
        return f"more than {_MOST_SEEDS:,} seeds at this spread"

    def __str__(self) -> str:
        scale, sign, unit = (100, "+.1f", " points") if self.points else (1, ".3g", "")
        interval = f" [{scale * self.low:{sign}}, {scale * self.high:{sign}}]"
        interval = "" if math.isnan(self.low) else interval
        edge = f"{scale * self.edge:{'+g' if self.points else 'g'}}"
        claimed = f"claimed: {'above' if self.above else 'below'} {edge}"
        seeds = f"n = {self.n} seed{'s' * (self.n != 1)}"
        text = f"{self.what} {scale * self.mean:{sign}}{interval}{unit} ({claimed}; {seeds})"
        undecided = f", to be decided by {self.seeds_to_decide}"
        return text + undecided * (self.outcome == "undecided")


def _half_interval(sd: float, n: int, freedom: float) -> float:
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom)) * sd / math.sqrt(n)


above = partial(Comparison.of, above=True)
below = partial(Comparison.of, above=False)


def joint(comparisons: Sequence[Comparison]) -> Outcome:
    """The outcome of a statement that says all of these: the weakest; ValueError for none."""
    if not comparisons:
        raise ValueError("there are no comparisons to decide by")
    return min((comparison.outcome for comparison in comparisons), key=_STRENGTH.__getitem__)


def reason(comparisons: Sequence[Comparison]) -> str:
    """What a joint outcome hangs on, in words: the comparisons nearest to failing first."""
    ranked = sorted(comparisons, key=lambda c: (_STRENGTH[c.outcome], c.margin))
    more = len(ranked) - _SHOWN
    rest = f"; and {more} more" if more > 0 else ""
    return "; ".join(map(str, ranked[:_SHOWN])) + rest


def table(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """A row a comparison, with its outcome."""
    names = ("what", "mean", "sd", "low", "high", "n", "edge", "above", "outcome")
    return pd.DataFrame([{name: getattr(c, name) for name in names} for c in comparisons])


class Tested(NamedTuple):
    """What a claim's test says: comparisons, a remark, and what is lacking beside them."""

    comparisons: list[Comparison]
    note: str = ""
    lacking: str = ""


@dataclass(frozen=True)
class Claim:
    """A claim, its test, the runs that it needs and the commands that make them."""

    text: str
    test: Callable[[Evidence], Tested]
    needs: str
    command: str

    def judge(self, evidence: Evidence, number: str) -> Statement:
        """What the runs say of it: what is refuted is, whatever else is lacking."""
        comparisons, note, lacking = self.test(evidence)
        why, rows = reason(comparisons), table(comparisons)
        if not comparisons or (lacking and joint(comparisons) != "refuted"):
            why = f"missing: {lacking}; so far: {why}" if why else f"missing: {self.needs}"
            return Statement("not enough data", why, self.text, number, self.command, rows)
        why += f". {note}" if note else ""
        return Statement(joint(comparisons), why, self.text, number, rows=rows)
