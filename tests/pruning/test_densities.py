"""Densities spread exactly what is asked for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pruneflow.pruning.criteria import lamp
from pruneflow.pruning.densities import (
    SCOPES,
    Curve,
    by_sensitivity,
    erdos_renyi,
    over_layers,
    over_pools,
    rank_in_row,
    share_of_larger,
)


def masks(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}


def test_a_pool_loses_its_fraction_whoever_it_is_of() -> None:
    layers = masks(a=(10,), b=(4,), c=(6,))
    assert over_pools(layers, [["a", "b"], ["c"]], 0.5) == [(["a", "b"], 7), (["c"], 3)]
    assert over_layers(layers, [["a", "b"], ["c"]], 0.5) == [(["a"], 5), (["b"], 2), (["c"], 3)]


def test_erk_by_hand() -> None:
    """Weights 10x10 and 10x40: sums 20 and 50; of 250 to keep 250 * 2/7 and 250 * 5/7."""
    shares = erdos_renyi(masks(a=(10, 10), b=(10, 40)), [["a", "b"]], 0.5)
    assert shares == [(["a"], 100 - 71), (["b"], 400 - 179)]


def test_erk_leaves_small_layers_dense() -> None:
    """A 2x2 layer's share would be above its size: it is full, and the other gets the rest."""
    shares = erdos_renyi(masks(a=(2, 2), b=(100, 100)), [["a", "b"]], 0.9)
    assert shares == [(["a"], 0), (["b"], 10_004 - round(10_004 * 0.1) - 0 - 0)]


@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6),
    fraction=st.floats(0, 0.99),
    again=st.floats(0, 0.99),
)
def test_erk_takes_exactly_the_fraction_and_never_more_than_there_is(
    shapes: list[tuple[int, int]], fraction: float, again: float
) -> None:
    layers = {str(i): torch.ones(shape, dtype=torch.bool) for i, shape in enumerate(shapes)}
    for part in (fraction, again):
        kept = sum(int(m.sum()) for m in layers.values())
        shares = erdos_renyi(layers, [list(layers)], part)
        assert sum(count for _, count in shares) == round(part * kept)
        for (name,), count in shares:
            assert 0 <= count <= int(layers[name].sum())
            layers[name].view(-1)[layers[name].view(-1).nonzero()[:count]] = False


def test_ranks_compare_within_rows() -> None:
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0, 900.0, 300.0, 100.0, 200.0])
    mask = torch.ones(2, 4, dtype=torch.bool)
    assert rank_in_row(scores, mask).tolist() == [0, 0.25, 0.5, 0.75, 0.75, 0.5, 0, 0.25]


def test_ranks_count_what_is_kept_alone() -> None:
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
    mask = torch.tensor([[False, True, True, False]])
    assert rank_in_row(scores, mask)[1:3].tolist() == [0, 0.5]


def test_a_vector_is_one_row() -> None:
    assert rank_in_row(torch.tensor([3.0, 1.0]), torch.tensor([True, True])).tolist() == [0.5, 0]


def test_layer_adaptive_magnitudes_are_lamp() -> None:
    torch.manual_seed(0)
    values = torch.randn(40)
    adapted = share_of_larger(values.abs(), torch.ones(8, 5, dtype=torch.bool))
    torch.testing.assert_close(adapted, lamp(values[:, None]), check_dtype=False)


def test_what_is_pruned_counts_in_no_layers_sum() -> None:
    mask = torch.tensor([True, False, True])
    assert share_of_larger(torch.tensor([1.0, 5.0, 2.0]), mask)[[0, 2]].tolist() == [0.2, 1.0]


@pytest.mark.parametrize("name", sorted(SCOPES))
def test_a_scope_takes_nothing_where_nothing_is_asked_for(name: str) -> None:
    extra = ({"a": Curve(12, ((0.5, 0.1),))},) if SCOPES[name].of_curves else ()
    assert all(not n for _, n in SCOPES[name].spread(masks(a=(3, 4)), [["a"]], 0.0, *extra))


# ---------------------------------------------------------------------------------- sensitivity

LAYERS = masks(a=(1000,), b=(500,), c=(100,))
DROPS = st.lists(st.floats(-0.1, 0.9), min_size=3, max_size=3)


def curve(units: int, *drops: float) -> Curve:
    return Curve(units, tuple(zip((0.2, 0.5, 0.8), drops, strict=True)))


def gone(fraction: float, curves: dict[str, Curve]) -> dict[str, int]:
    shares = by_sensitivity(LAYERS, [list(LAYERS)], fraction, curves)
    return {name: count for (name,), count in shares}


@given(drops=st.tuples(DROPS, DROPS, DROPS), fraction=st.floats(0, 0.99))
def test_by_sensitivity_a_pool_loses_exactly_its_fraction(
    drops: tuple[list[float], ...], fraction: float
) -> None:
    curves = {n: curve(m.numel(), *d) for (n, m), d in zip(LAYERS.items(), drops, strict=True)}
    counts = gone(fraction, curves)
    assert sum(counts.values()) == round(fraction * 1600)
    assert all(0 <= counts[name] <= mask.numel() for name, mask in LAYERS.items())


@given(drops=DROPS, more=st.floats(0, 0.5), fraction=st.floats(0, 0.99))
def test_a_more_sensitive_layer_keeps_more(
    drops: list[float], more: float, fraction: float
) -> None:
    worse = [drop + more for drop in drops]
    curves = {"a": curve(1000, *drops), "b": curve(500, *worse), "c": curve(100, *drops)}
    counts = gone(fraction, curves)
    assert counts["b"] / 500 <= counts["a"] / 1000 + 0.003
    assert counts["c"] / 100 == pytest.approx(counts["a"] / 1000, abs=0.011)


@given(fraction=st.floats(0, 0.8), drop=st.sampled_from([0.0, -0.05]))
def test_flat_curves_give_equal_shares(fraction: float, drop: float) -> None:
    counts = gone(fraction, {n: curve(m.numel(), drop, drop, drop) for n, m in LAYERS.items()})
    shares = [counts[name] / mask.numel() for name, mask in LAYERS.items()]
    assert shares == pytest.approx([fraction] * 3, abs=0.011)


def test_by_sensitivity_by_hand() -> None:
    """At a drop of 0.1 a and c have lost half and b a fifth: 500, 50 and 100 of 1600."""
    curves = {"a": curve(1000, 0.02, 0.1, 0.5), "b": curve(500, 0.1, 0.4, 0.6)}
    curves["c"] = curve(100, 0.05, 0.1, 0.2)
    counts = gone(650 / 1600, curves)
    assert counts == pytest.approx({"a": 500, "b": 100, "c": 50}, abs=5)


def test_what_has_lost_more_than_it_bears_stays_as_it_is() -> None:
    layers = masks(a=(100,), b=(100,))
    layers["a"][:60] = False
    curves = {"a": curve(100, 0.3, 0.6, 0.9), "b": curve(100, 0.0, 0.0, 0.0)}
    shares = by_sensitivity(layers, [["a", "b"]], 0.4, curves)
    assert shares == [(["a"], 0), (["b"], 56)]
