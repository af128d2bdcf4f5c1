"""Learning-rate schedules are PyTorch's, step by step, and go on where they were left."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from pruneflow.workloads.learning_rates import LR_SCHEDULES, scheduler

RATE, STEPS = 0.1, 40
THEIRS: dict[str, Callable[[torch.optim.Optimizer], LRScheduler]] = {
    "constant": lambda o: lr_scheduler.ConstantLR(o, factor=1.0),
    "step": lambda o: lr_scheduler.MultiStepLR(o, [STEPS // 2, 3 * STEPS // 4]),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(
        o, RATE, total_steps=STEPS, cycle_momentum=False
    ),
}


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)


def rates(made: LRScheduler, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """The learning rate of each of so many steps."""
    seen = []
    for _ in range(steps):
        seen.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        made.step()
    return seen


@pytest.mark.parametrize("name", LR_SCHEDULES)
def test_a_schedule_is_pytorchs(name: str) -> None:
    ours, theirs = optimizer(), optimizer()
    expected = rates(THEIRS[name](theirs), theirs, STEPS - 1)
    assert rates(scheduler(ours, name, warmup=0, steps=STEPS), ours, STEPS - 1) == pytest.approx(
        expected, rel=1e-9, abs=1e-12
    )


@pytest.mark.parametrize("name", LR_SCHEDULES)
def test_a_schedule_that_begins_later_is_the_rest_of_it(name: str) -> None:
    whole, rest = optimizer(), optimizer()
    warmup = 0 if name == "one_cycle" else 6
    expected = rates(scheduler(whole, name, warmup=warmup, steps=STEPS), whole, STEPS - 1)
    for begin in (1, 4, 6, 17):
        rest = optimizer()
        later = scheduler(rest, name, warmup=warmup, steps=STEPS, begin=begin)
        assert rates(later, rest, STEPS - 1 - begin) == pytest.approx(expected[begin:], abs=1e-15)


@pytest.mark.parametrize("name", sorted(set(LR_SCHEDULES) - {"one_cycle"}))
def test_warm_up_rises_in_a_line_to_the_schedule(name: str) -> None:
    ours, without = optimizer(), optimizer()
    seen = rates(scheduler(ours, name, warmup=5, steps=STEPS), ours, STEPS)
    assert seen[:5] == pytest.approx([RATE * share / 5 for share in range(1, 6)])
    assert seen[5:] == pytest.approx(
        rates(scheduler(without, name, warmup=0, steps=STEPS - 5), without, STEPS - 5)
    )


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="lr_schedule 'linear' is none of one_cycle, constant"):
        scheduler(optimizer(), "linear", warmup=0, steps=STEPS)
