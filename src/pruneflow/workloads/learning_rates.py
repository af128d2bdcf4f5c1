"""Learning-rate schedules: the factor of the learning rate at each step of a training.

To add one, write the function and its row in FACTORS. `one_cycle` is PyTorch's own.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds to import; names and help must not wait for it
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

ONE_CYCLE = "one_cycle"  # up for 30 % of the steps, then down to nearly 0: Smith & Topin 2018
_DROPS = (0.5, 0.75)  # shares of the steps after which `step` is ten times lower


def constant(step: int, steps: int) -> float:
    """The same all through."""
    return 1.0


def stepwise(step: int, steps: int) -> float:
    """Ten times lower after half and after three quarters of the steps (He et al. 2016)."""
    return float(0.1 ** sum(step >= share * steps for share in _DROPS))


def cosine(step: int, steps: int) -> float:
    """Half a cosine down to 0 (Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983)."""
    return (1 + math.cos(math.pi * step / steps)) / 2


# name -> factor of a step, from 0, of so many
FACTORS: dict[str, Callable[[int, int], float]] = {
    "constant": constant,
    "step": stepwise,
    "cosine": cosine,
}
LR_SCHEDULES = (ONE_CYCLE, *FACTORS)


def factor(schedule: str, warmup: int, steps: int, step: int) -> float:
    """Factor at a step: rising in a line to 1 over `warmup` steps, then as the schedule says."""
    if step < warmup:
        return (step + 1) / warmup
    return FACTORS[schedule](min(step, steps) - warmup, max(1, steps - warmup))


def scheduler(
    optimizer: Optimizer, schedule: str, *, warmup: int, steps: int, begin: int = 0
) -> LRScheduler:
    """What sets an optimizer's learning rate at each of so many steps, from step `begin` on.

    Raises:
        ValueError: a schedule that does not exist.
    """
    from torch.optim import lr_scheduler

    if schedule not in LR_SCHEDULES:
        raise ValueError(f"lr_schedule {schedule!r} is none of {', '.join(LR_SCHEDULES)}")
    if schedule == ONE_CYCLE:
        peak = [group["lr"] for group in optimizer.param_groups]
        rates: LRScheduler = lr_scheduler.OneCycleLR(
            optimizer, peak, total_steps=max(steps, 2), cycle_momentum=False
        )
    else:
        by_step = functools.partial(factor, schedule, warmup, steps)
        rates = lr_scheduler.LambdaLR(optimizer, by_step)
    if begin:
        rates.last_epoch = begin - 1
        with warnings.catch_warnings(action="ignore"):  # no step of the optimizer came before
            rates.step()
    return rates
