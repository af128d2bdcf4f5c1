"""The sparse form: the same outputs, whatever stores the weights, and what it chooses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruneflow.inference import sparse as kernels
from pruneflow.inference.load import Load
from pruneflow.inference.sparse import REPRESENTATIONS, Csr, Dropped, sparse


def masked(layer: nn.Linear | nn.Conv2d, seed: int, sparsity: float, empty: bool) -> None:
    """Zero a share of a layer's weights, and a row and a column of them as a whole."""
    keep = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(seed)) >= sparsity
    with torch.no_grad():
        layer.weight.mul_(keep)
        if empty:
            layer.weight[0] = 0
            layer.weight[:, -1] = 0


@given(
    seed=st.integers(0, 100),
    sparsity=st.sampled_from([0.0, 0.4, 0.9, 0.99]),
    bias=st.booleans(),
    shape=st.sampled_from([(1, 7), (5, 7), (2, 3, 7)]),
    way=st.sampled_from(sorted(REPRESENTATIONS)),
)
@settings(max_examples=60, deadline=None)
def test_a_linear_layer_gives_the_same_outputs_however_it_is_stored(
    seed: int, sparsity: float, bias: bool, shape: tuple[int, ...], way: str
) -> None:
    torch.manual_seed(seed)
    layer = nn.Linear(7, 9, bias=bias)
    masked(layer, seed, sparsity, empty=True)
    made = REPRESENTATIONS[way](layer)
    if made is None:
        assert (way == "csr" and sparsity == 0.0) or not layer.weight.any()
        return
    x = torch.randn(shape)
    torch.testing.assert_close(made(x), layer(x))


@given(
    seed=st.integers(0, 100),
    kernel=st.sampled_from([1, 2, 3]),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    batch=st.integers(1, 3),
    way=st.sampled_from(sorted(REPRESENTATIONS)),
    last=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_a_convolution_gives_the_same_outputs_however_it_is_stored(
    seed: int,
    kernel: int,
    stride: int,
    padding: int,
    dilation: int,
    batch: int,
    way: str,
    last: bool,
) -> None:
    torch.manual_seed(seed)
    layer = nn.Conv2d(4, 6, kernel, stride, padding, dilation)
    masked(layer, seed, 0.6, empty=True)
    made = REPRESENTATIONS[way](layer)
    assert made is not None or not layer.weight.any()
    if made is not None:
        x = torch.randn(batch, 4, 8, 7)
        if last:
            x = x.to(memory_format=torch.channels_last)
        torch.testing.assert_close(made(x), layer(x))


def test_what_has_nothing_to_leave_out_and_what_is_grouped_stays_dense() -> None:
    assert REPRESENTATIONS["dropped"](nn.Linear(3, 4)) is None
    assert REPRESENTATIONS["csr"](nn.Linear(3, 4)) is None
    grouped = nn.Conv2d(4, 4, 3, groups=2)
    masked(grouped, 0, 0.9, empty=True)
    assert sparse(grouped.eval(), lambda model: model(torch.ones(1, 4, 5, 5)), batch="1")[1] == {}


def test_dropped_stores_only_rows_and_columns_that_are_used() -> None:
    layer = nn.Linear(6, 5)
    with torch.no_grad():
        layer.weight[[1, 3]] = 0
        layer.weight[:, 2] = 0
    made = Dropped(layer)
    assert made.weight.shape == (3, 5)
    assert made.rows is not None
    assert made.rows.tolist() == [0, 2, 4]


def network(sparsity: float) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 1500), nn.Linear(1500, 10)
    )
    layer = model[3]
    assert isinstance(layer, nn.Linear)
    masked(layer, 0, sparsity, empty=False)
    return model.eval()


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds that every layer takes by how it is stored, and `form`, the model as chosen."""
    seconds = {"dense": 1.0, "csr": 0.2, "dropped": 0.5, "form": 0.4}

    def of_forms(forms: Any, names: Any, *rest: object) -> Any:
        return {form: {name: [seconds[form]] for name in names} for form in forms}

    monkeypatch.setattr(kernels, "_seconds", of_forms)
    return seconds


def run(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(torch.ones(2, 3, 8, 8))
    return logits


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ({}, "csr"),
        ({"csr": 0.96, "dropped": 0.97}, "dense"),  # within what noise is worth
        ({"csr": 0.9}, "dropped"),
        ({"csr": 4.0}, "dropped"),  # hopeless at first sight
        ({"csr": 4.0, "dropped": 2.0}, "dense"),
        ({"form": 1.1}, "dense"),  # what a layer gains, another loses
    ],
)
def test_a_layer_is_stored_in_what_takes_least_and_dense_ones_are_shared(
    timed: dict[str, float], given: dict[str, float], chosen: str
) -> None:
    timed.update(given)
    model = network(0.995)
    form, ways = sparse(model, run, batch="2")
    assert ways == {"3": chosen}
    kind = {"csr": Csr, "dropped": Dropped, "dense": nn.Linear}[chosen]
    assert isinstance(form[3], kind)  # type: ignore[index]
    assert form[0].weight is model[0].weight  # type: ignore[index]
    assert isinstance(model[3], nn.Linear)
    torch.testing.assert_close(run(form), run(model))


def test_layers_are_timed_by_how_they_are_stored() -> None:
    model = network(0.995)
    made = REPRESENTATIONS["csr"](model[3])  # type: ignore[arg-type]
    assert made is not None
    forms = {"dense": model, "csr": nn.Sequential(*model[:3], made, model[4])}
    seconds = kernels._seconds(forms, ["3", ""], run, 2)
    assert seconds.keys() == forms.keys()
    for of_form in seconds.values():
        assert len(of_form["3"]) == len(of_form[""]) == 2
        assert 0 < min(of_form["3"]) < max(of_form[""])


@pytest.mark.parametrize("quiet", [True, False])
def test_what_was_measured_beside_other_work_is_not_remembered(
    quiet: bool, timed: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watched(Load):
        def others(self) -> float:
            return 0.0 if quiet else 0.5

    monkeypatch.setattr(kernels, "Load", Watched)
    sparse(network(0.995), run, batch="2", cache=tmp_path / "kernels.json")
    assert (tmp_path / "kernels.json").exists() is quiet


def test_measurements_are_remembered_and_a_spoilt_cache_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timed: dict[str, float]
) -> None:
    cache = tmp_path / "deep" / "kernels.json"
    model = network(0.995)
    _, chosen = sparse(model, run, batch="2", cache=cache)
    known = json.loads(cache.read_text())
    assert list(known.values()) == [chosen["3"]]
    assert "in_features=288, out_features=1500" in next(iter(known))

    def refuse(*arguments: object) -> dict[str, str]:
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(kernels, "_measure", refuse)
        assert sparse(model, run, batch="2", cache=cache)[1] == chosen
        with pytest.raises(AssertionError, match="measured again"):
            sparse(model, run, batch="3", cache=cache)
    cache.write_text(json.dumps(dict.fromkeys(known, "dense")))
    form, chosen = sparse(model, run, batch="2", cache=cache)
    assert chosen == {"3": "dense"}
    assert isinstance(form[3], nn.Linear)  # type: ignore[index]
    cache.write_text("{")
    assert sparse(model, run, batch="2", cache=cache)[1]["3"] in ("csr", "dropped")


def test_a_weight_that_is_used_without_its_layer_being_called_is_left_alone() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    masked(attention.out_proj, 0, 0.99, empty=False)

    def attend(model: nn.Module) -> object:
        with torch.inference_mode():
            return model(torch.ones(1, 4, 8), torch.ones(1, 4, 8), torch.ones(1, 4, 8))

    _, chosen = sparse(attention.eval(), attend, batch="1")
    assert chosen == {}


def test_csr_has_the_zeros_of_the_layer() -> None:
    layer = nn.Linear(50, 40)
    masked(layer, 3, 0.8, empty=False)
    assert torch.equal(Csr(layer).weight.to_dense(), layer.weight)
