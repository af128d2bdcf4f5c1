"""Verdicts: what a 95 % interval over seeds says of a statement with an edge."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from pruneflow.report.evidence import CONFIDENCE

Outcome = Literal["confirmed", "refuted", "undecided", "not enough data"]
LEAST_SEEDS = 3
_MOST_SEEDS = 1_000  # beyond, "more than" is said
_SHOWN = 4  # comparisons that a verdict's reason lists


@dataclass(frozen=True)
class Comparison:
    """A mean over seeds beside the edge that it has to be above, or below.

    Attributes:
        what: is compared, in words.
        mean, sd: over seeds; the sd is NaN of one seed.
        n: seeds; of two samples those of the smaller one.
        freedom: degrees of freedom of the interval.
        edge: what the mean has to be above, or below.
        above: which of the two.
        points: whether these are accuracies, to be shown in points of a hundred.
    """

    what: str
    mean: float
    sd: float
    n: int
    freedom: float
    edge: float
    above: bool
    points: bool = True

    @classmethod
    def of(
        cls, what: str, values: Iterable[float], edge: float, *, above: bool, points: bool = True
    ) -> Comparison:
        """Of a value a seed, with Student's interval of their mean.

        Raises:
            ValueError: no values.
        """
        known = np.asarray(list(values), dtype=float)
        if not len(known):
            raise ValueError(f"{what}: there are no values to compare")
        n = len(known)
        sd = float(known.std(ddof=1)) if n > 1 else math.nan
        return cls(what, float(known.mean()), sd, n, n - 1, edge, above, points)

    @classmethod
    def between(
        cls, what: str, values: Iterable[float], others: Iterable[float], *, above: bool
    ) -> Comparison:
        """Of the difference of two samples that share nothing, by Welch's interval; edge 0.

        Raises:
            ValueError: a sample without values.
        """
        samples = [np.asarray(list(sample), dtype=float) for sample in (values, others)]
        n = min(len(sample) for sample in samples)
        if not n:
            raise ValueError(f"{what}: there are no values to compare")
        mean = float(samples[0].mean() - samples[1].mean())
        if n < 2:
            return cls(what, mean, math.nan, n, 0, 0.0, above)
        shares = [float(sample.var(ddof=1)) / len(sample) for sample in samples]
        spread = sum(s**2 / (len(x) - 1) for s, x in zip(shares, samples, strict=True))
        freedom = sum(shares) ** 2 / spread if spread else n - 1
        return cls(what, mean, math.sqrt(sum(shares) * n), n, freedom, 0.0, above)

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval; NaN of one seed."""
        return self.mean - _half_interval(self.sd, self.n, self.freedom)

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval; NaN of one seed."""
        return self.mean + _half_interval(self.sd, self.n, self.freedom)

    @property
    def outcome(self) -> Outcome:
        """`confirmed` or `refuted` by the whole interval of LEAST_SEEDS seeds, else `undecided`."""
        if self.n < LEAST_SEEDS or math.isnan(self.low):
            return "undecided"
        low, high = self._beyond(self.low), self._beyond(self.high)
        if min(low, high) > 0:
            return "confirmed"
        return "refuted" if max(low, high) <= 0 else "undecided"

    @property
    def margin(self) -> float:
        """How far the mean is on the statement's side of the edge."""
        return self._beyond(self.mean)

    def _beyond(self, value: float) -> float:
        return (value - self.edge) * (1 if self.above else -1)

    @property
    def seeds_to_decide(self) -> str:
        """How many seeds of this spread and mean would decide it, in words."""
        if math.isnan(self.sd):
            return f"{LEAST_SEEDS} seeds at least"
        distance = abs(self.margin)
        for n in range(max(LEAST_SEEDS, self.n + 1), _MOST_SEEDS + 1):
            if _half_interval(self.sd, n, n - 1) < distance:
                return f"some {n} seeds at this spread"
        return f"more than {_MOST_SEEDS:,} seeds at this spread"

    def __str__(self) -> str:
        scale, sign, unit = (100, "+.1f", " points") if self.points else (1, ".3g", "")
        mean = f"{scale * self.mean:{sign}}"
        interval = ""
        if not math.isnan(self.low):
            interval = f" [{scale * self.low:{sign}}, {scale * self.high:{sign}}]"
        side = "above" if self.above else "below"
        seeds = f"n = {self.n} seed{'s' * (self.n != 1)}"
        edge = f"{scale * self.edge:{'+g' if self.points else 'g'}}"
        text = f"{self.what} {mean}{interval}{unit} (claimed: {side} {edge}; {seeds})"
        if self.outcome == "undecided":
            text += f", to be decided by {self.seeds_to_decide}"
        return text


def _half_interval(sd: float, n: int, freedom: float) -> float:
    """Half the width of Student's 95 % interval of a mean; NaN of one value."""
    if math.isnan(sd):
        return math.nan
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom)) * sd / math.sqrt(n)


def above(
    what: str, values: Iterable[float], edge: float = 0.0, *, points: bool = True
) -> Comparison:
    """The statement that the mean of a value a seed is above an edge."""
    return Comparison.of(what, values, edge, above=True, points=points)


def below(
    what: str, values: Iterable[float], edge: float = 0.0, *, points: bool = True
) -> Comparison:
    """The statement that the mean of a value a seed is below an edge."""
    return Comparison.of(what, values, edge, above=False, points=points)


def joint(comparisons: Sequence[Comparison]) -> Outcome:
    """The outcome of a statement that says all of these: one that is refuted refutes it.

    Raises:
        ValueError: no comparisons.
    """
    if not comparisons:
        raise ValueError("there are no comparisons to decide by")
    outcomes = {comparison.outcome for comparison in comparisons}
    if "refuted" in outcomes:
        return "refuted"
    return "undecided" if "undecided" in outcomes else "confirmed"


def reason(comparisons: Sequence[Comparison]) -> str:
    """What a joint outcome hangs on, in words: the comparisons nearest to failing first."""
    order = {"refuted": 0, "undecided": 1, "confirmed": 2}
    ranked = sorted(comparisons, key=lambda c: (order[c.outcome], c.margin))
    more = len(ranked) - _SHOWN
    rest = f"; and {more} more" if more > 0 else ""
    return "; ".join(map(str, ranked[:_SHOWN])) + rest


def table(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """A row a comparison, with its outcome."""
    names = ("what", "mean", "sd", "low", "high", "n", "edge", "above", "outcome")
    return pd.DataFrame([{name: getattr(c, name) for name in names} for c in comparisons])


@dataclass(frozen=True)
class Answer:
    """What runs say of a claim.

    Attributes:
        reason: the numbers behind the outcome in a sentence or two, or what is missing.
        rows: a row a comparison behind it.
        command: what would produce what is missing.
    """

    outcome: Outcome
    reason: str
    rows: pd.DataFrame
    command: str = ""


def missing(what: str, command: str, comparisons: Sequence[Comparison] = ()) -> Answer:
    """The answer of too few runs: what is missing, and what would produce it."""
    text = f"missing: {what}" + (f"; so far: {reason(comparisons)}" if comparisons else "")
    return Answer("not enough data", text, table(comparisons), command)


def decided(comparisons: Sequence[Comparison], note: str = "") -> Answer:
    """The answer that all of these comparisons give together."""
    text = reason(comparisons) + (f". {note}" if note else "")
    return Answer(joint(comparisons), text, table(comparisons))
