"""Budgets: what the search meets, and that what masks keep is what the compact form has."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pruneflow.errors import InputError
from pruneflow.pruning import cost
from pruneflow.pruning.budgets import CLOSE, CURRENCIES, Budget, Prices, search
from pruneflow.pruning.prunable import find_units
from pruneflow.pruning.selection import select
from pruneflow.pruning.units import Units
from tests.pruning import networks

# ------------------------------------------------------------------------------------ the search


@given(power=st.floats(0.5, 5), floor=st.floats(0, 0.3), share=st.floats(0.01, 0.99))
def test_a_smooth_cost_is_met(power: float, floor: float, share: float) -> None:
    target = floor + share * (1 - floor)
    masks, achieved = search(
        lambda fraction: fraction, lambda f: floor + (1 - floor) * (1 - f) ** power, target, 0.0
    )
    assert achieved == floor + (1 - floor) * (1 - masks) ** power
    assert abs(achieved - target) <= CLOSE * target


@given(costs=st.lists(st.integers(1, 50), min_size=1, max_size=60), share=st.floats(0.01, 0.99))
def test_of_coarse_units_the_nearest_is_found(costs: list[int], share: float) -> None:
    total, target = sum(costs), share

    def left(gone: int) -> float:
        return sum(costs[gone:]) / total

    gone, achieved = search(lambda f: round(f * (len(costs) - 1)), left, target, 0)
    nearest = min(abs(left(n) - target) for n in range(len(costs)))
    assert abs(achieved - target) <= max(nearest, CLOSE * target) + 1e-12
    assert achieved == left(gone)


def test_what_costs_no_more_than_the_target_is_not_pruned_further() -> None:
    def fails(_: float) -> float:
        raise AssertionError("nothing is to be selected")

    assert search(fails, lambda _: 0.4, 0.5, 0.0) == (0.0, 0.4)


def test_a_nearly_linear_cost_takes_few_steps() -> None:
    seen: list[float] = []

    def at(fraction: float) -> float:
        seen.append(fraction)
        return fraction

    search(at, lambda f: 1 - 0.97 * f, 0.31, 0.0)
    assert 0 < len(seen) <= 4


# -------------------------------------------------------------------------------------- budgets


def test_budgets_are_read_as_they_are_written() -> None:
    assert Budget.parse("macs:0.50") == Budget("macs", 0.5)
    assert str(Budget.parse("macs:.5")) == "macs:0.5"


@pytest.mark.parametrize("text", ["macs", "macs:", "macs:1", "macs:0", "macs:nan", "flops:0.5", ""])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="macs"):
        Budget.parse(text)


# ------------------------------------------------------------------------- what masks keep, costs

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": networks.plain,
    "residual": networks.Residual,
    "grouped": networks.Grouped,
}
IMAGE = torch.zeros(1, 3, 8, 8)


def units_of(network: str, granularity: str) -> tuple[Units, dict[str, float]]:
    model = NETWORKS[network]().eval()
    uses = cost.positions(model, IMAGE)
    head = {"plain": "8", "residual": "fc", "grouped": "last"}[network]
    coupling = "group" if granularity == "channel" else None
    nothing: Mapping[str, tuple[str, ...]] = {"targets": (), "include": (), "exclude": ()}
    units = find_units(
        model, networks.images(), head=head, granularity=granularity, coupling=coupling,
        biases=True, products=uses, **nothing,
    )  # fmt: skip
    return units, uses


@pytest.mark.parametrize("network", NETWORKS)
@given(data=st.data())
def test_the_compact_form_has_as_many_entries_as_masks_keep(
    network: str, data: st.DataObject
) -> None:
    units, uses = units_of(network, "channel")
    masks: dict[str, Tensor] = {}
    for name, mask in units.masks.items():
        kept = data.draw(st.lists(st.booleans(), min_size=len(mask), max_size=len(mask)))
        masks[name] = torch.tensor(kept)
        masks[name][0] = True
    entries, compact = units.kept_entries(masks), units.smaller(masks)
    assert entries == {name: p.numel() for name, p in compact.named_parameters()}
    prices = Prices(uses, lambda _: 0.0)
    counted = {name: CURRENCIES[name].count for name in ("params", "macs")}
    assert counted["params"] is not None
    assert counted["macs"] is not None
    assert counted["params"](entries, prices) == sum(p.numel() for p in compact.parameters())
    assert round(counted["macs"](entries, prices)) == cost.macs(compact, uses)[0]
    units.apply(masks)
    over_parameters = {n: int(m.count_nonzero()) for n, m in units.parameter_masks().items()}
    assert over_parameters == {name: entries[name] for name in over_parameters}


@pytest.mark.parametrize("granularity", ["weight", "channel"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("currency", ["params", "macs"])
def test_costs_fall_as_the_fraction_rises(network: str, granularity: str, currency: str) -> None:
    units, uses = units_of(network, granularity)
    draw = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(m.numel(), generator=draw) for name, m in units.masks.items()}
    count = CURRENCIES[currency].count
    assert count is not None
    costs = []
    for fraction in torch.linspace(0, 0.95, 20).tolist():
        masks = select(
            units.masks,
            lambda name: scores[name].__getitem__,
            fraction=fraction,
            scope="global",
            pools=units.pools(),
            least=units.least(0.0),
        )
        costs.append(count(units.kept_entries(masks), Prices(uses, lambda _: 0.0)))
    assert costs == sorted(costs, reverse=True)
    assert costs[0] == count(units.sizes, Prices(uses, lambda _: 0.0))
    fewest = count(units.kept_entries(units.fewest(0.0)), Prices(uses, lambda _: 0.0))
    assert fewest <= costs[-1] < costs[0]
