"""Budgets: pruning to a share of the unpruned model's cost, in a currency other than sparsity.

To add a currency that is counted, write its row in CURRENCIES. What needs a model, a file format or
a clock is handed in: nothing here knows any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from pruneflow.errors import InputError, unknown

Entries: TypeAlias = Mapping[str, int]  # parameter -> how many of its entries are kept

CLOSE = 0.001  # of the target: nearer is not looked for
MET = 0.01  # of the target: further off than that, the budget is not met
_STEPS = 40

M = TypeVar("M")


@dataclass(frozen=True)
class Prices:
    """What a count costs: output positions of each weight (`cost.positions`), and bytes stored."""

    uses: Mapping[str, float]
    stored_bytes: Callable[[Entries], float]


@dataclass(frozen=True)
class Currency:
    """What a budget is counted in; without a `count` it is measured."""

    of: str  # what it is, in a few words
    count: Callable[[Entries, Prices], float] | None = None


def _macs(entries: Entries, prices: Prices) -> float:
    return sum(entries[name] * uses for name, uses in prices.uses.items())


CURRENCIES: dict[str, Currency] = {
    "params": Currency("parameters", lambda entries, _: sum(entries.values())),
    "macs": Currency("multiplications of a sample", _macs),
    "bytes": Currency(
        "bytes of the checkpoint", lambda entries, prices: prices.stored_bytes(entries)
    ),
    "latency": Currency("time of a forward pass"),
}


@dataclass(frozen=True)
class Budget:
    """What the last level may cost: a share, in (0, 1), of the unpruned model's cost."""

    currency: str
    share: float

    def __str__(self) -> str:
        return f"{self.currency}:{self.share!r}"

    @property
    def measured(self) -> bool:
        """Whether its cost hangs on a clock, and is not counted."""
        return CURRENCIES[self.currency].count is None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """A budget as parameters have it, `macs:0.5`.

        Raises:
            InputError: an unknown currency, or no share in (0, 1).
        """
        currency, colon, number = text.partition(":")
        if currency not in CURRENCIES and colon:
            raise unknown("currency of a budget", currency, CURRENCIES)
        try:
            share = float(number)
        except ValueError:
            share = 0.0
        if not 0 < share < 1:
            raise InputError(
                f"budget={text!r} is not valid: it should be a currency ({', '.join(CURRENCIES)}) "
                "and a share of the unpruned model's cost in (0, 1), as in macs:0.5"
            )
        return cls(currency, share)


def search(
    select: Callable[[float], M],
    cost: Callable[[M], float],
    target: float,
    now: M,
    *,
    close: float = CLOSE,
    steps: int = _STEPS,
) -> tuple[M, float]:
    """The masks whose cost is nearest to a target, and that cost.

    Interpolation and bisection by turns: a cost that is nearly linear is met in a few steps, one
    that falls in jumps in twice as many as by bisection alone.

    Args:
        select: fraction in (0, 1) of what is kept that goes -> masks; those of a larger fraction
            keep nothing more.
        cost: of masks, a share of the unpruned model's; more is never cheaper.
        target: what they should cost.
        now: masks without which nothing more is pruned; they stay if they cost no more than that.
        close: share of the target that a cost may be off to be taken at once.
        steps: costs that are looked at, at the most.
    """
    low, high = 0.0, 1.0
    at_low, at_high = cost(now), 0.0  # with all gone: a guess that is never tried
    nearest, achieved = now, at_low
    for step in range(steps):
        if at_low <= target or abs(achieved - target) <= close * target:
            break
        part = 0.5 if step % 2 else (at_low - target) / (at_low - at_high)
        fraction = low + part * (high - low)
        masks = select(fraction)
        at = cost(masks)
        if abs(at - target) < abs(achieved - target):
            nearest, achieved = masks, at
        if at > target:
            low, at_low = fraction, at
        else:
            high, at_high = fraction, at
    return nearest, achieved
