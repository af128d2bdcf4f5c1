"""Gradual pruning: when it prunes, and what it leaves at zero from then on."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pruneflow.pruning.criteria import CRITERIA
from pruneflow.pruning.gradual import Gradual, pruned_after
from pruneflow.pruning.prunable import find_units
from pruneflow.pruning.schedule import SCHEDULES, Step, iterative
from pruneflow.pruning.selection import select
from pruneflow.pruning.units import Units

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, fused=True),
}
X = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))


def network() -> Units:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4))
    how: dict[str, Any] = {"granularity": "weight", "coupling": None, "targets": ()}
    how |= {"include": (), "exclude": (), "biases": False, "products": []}
    return find_units(model, lambda m: m(X), head="2", **how)


def train(units: Units, after: dict[int, Step], name: str, steps: int) -> list[dict[str, Tensor]]:
    """Weights after each update."""

    def prune(step: Step) -> None:
        pruned.append(step)
        scores = units.scores(CRITERIA["l1"])
        units.apply(select(units.masks, scores, fraction=step.fraction, scope="global"))

    pruned: list[Step] = []
    optimizer = OPTIMIZERS[name](units.model.parameters())
    gradual = Gradual(units, after, prune)
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        units.model(X).square().sum().backward()
        optimizer.step()
        gradual(optimizer)
        seen.append({n: p.detach().clone() for n, p in units.model.named_parameters()})
    assert pruned == list(after.values())
    return seen


def test_three_prunings_of_sixteen_steps_by_hand() -> None:
    one, two, three = iterative(0.5, 3)
    assert pruned_after([one, two, three], 16) == {4: one, 8: two, 12: three}


@given(steps=st.integers(0, 400), prunings=st.integers(1, 99))
def test_prunings_are_spread_evenly_over_the_first_three_quarters(
    steps: int, prunings: int
) -> None:
    levels = iterative(0.1, prunings)
    if prunings > 3 * steps // 4:
        with pytest.raises(ValueError, match=f"{prunings} prunings do not fit into"):
            pruned_after(levels, steps)
        return
    after = pruned_after(levels, steps)
    assert list(after.values()) == levels  # each after a training step of its own
    at = [0, *after]
    assert at[-1] == 3 * steps // 4
    gaps = [b - a for a, b in itertools.pairwise(at)]
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_is_pruned_stays_pruned_and_the_rest_is_trained(optimizer: str, schedule: str) -> None:
    units = network()
    after = pruned_after(iterative(0.3, 3, schedule), 12)
    seen = train(units, after, optimizer, 12)
    total = sum(units.masks[name].numel() for name in units.masks)
    gone = {name: torch.zeros_like(mask) for name, mask in units.masks.items()}
    target = 0.0
    for number, weights in enumerate(seen, start=1):
        target = after[number].target_sparsity if number in after else target
        for name in gone:
            assert not weights[name][gone[name]].any()
            gone[name] = weights[name] == 0
        assert sum(int(zero.sum()) for zero in gone.values()) == pytest.approx(
            target * total, abs=2
        )
    for name, mask in units.masks.items():
        assert torch.equal(mask, ~gone[name])
        assert not torch.equal(seen[-1][name], seen[-2][name])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_pruning_takes_what_direct_pruning_takes_at_that_step(schedule: str) -> None:
    units, other = network(), network()
    seen = train(units, pruned_after(iterative(0.6, 1, schedule), 8), "adamw", 8)
    dense = train(other, {}, "adamw", 6)[-1]
    assert torch.equal(seen[4]["0.weight"], train(network(), {}, "adamw", 5)[-1]["0.weight"])
    direct = select(
        other.masks,
        lambda name: dense[name].abs().flatten().__getitem__,
        fraction=0.6,
        scope="global",
    )
    for name, mask in direct.items():
        assert torch.equal(units.masks[name], mask)
        assert torch.equal(seen[5][name], dense[name] * mask)


def test_masks_of_other_units_are_refused() -> None:
    gradual = Gradual(network(), {}, lambda step: None)
    with pytest.raises(ValueError, match="masks and parameters differ"):
        gradual.go_on(3, {"0.weight": torch.ones(10, 6, dtype=torch.bool)})
