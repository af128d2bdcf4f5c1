"""Selection: how many go, which go, and that both are what PyTorch's own pruning does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

from pruneflow.errors import InputError
from pruneflow.pruning import selection
from pruneflow.pruning.criteria import CRITERIA
from pruneflow.pruning.masks import Masks
from pruneflow.pruning.prunable import prunable_parameters
from pruneflow.pruning.selection import Scores, select
from pruneflow.pruning.weights import Weights


def flat(scores: Mapping[str, Tensor]) -> Callable[[str], Scores]:
    return lambda name: scores[name].reshape(-1).__getitem__


def drop(
    scores: Mapping[str, Tensor],
    fraction: float,
    *,
    masks: Mapping[str, Tensor] | None = None,
    scope: str = "global",
) -> Masks:
    parameters = {name: torch.zeros(value.shape) for name, value in scores.items()}
    before = Masks.keep_all(parameters) if masks is None else Masks(parameters, masks)
    copies = {name: mask.clone() for name, mask in before.items()}
    after = select(before, flat(scores), fraction=fraction, scope=scope)
    assert all(torch.equal(before[name], copies[name]) for name in copies)
    return after


def dropped(masks: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: (~mask).flatten().nonzero().flatten().tolist() for name, mask in masks.items()}


# -------------------------------------------------------------------------------- golden arrays


def test_the_lowest_scores_go_by_hand() -> None:
    scores = {"a": torch.tensor([[5.0, 1.0], [4.0, 9.0]]), "b": torch.tensor([3.0, 0.5])}
    masks = drop(scores, 0.5)
    assert masks["a"].tolist() == [[True, False], [True, True]]
    assert masks["b"].tolist() == [False, False]


def test_scope_layer_takes_the_same_fraction_of_each_tensor() -> None:
    scores = {"a": torch.tensor([10.0, 12.0, 11.0, 13.0]), "b": torch.tensor([2.0, 1.0])}
    assert dropped(drop(scores, 0.5, scope="layer")) == {"a": [0, 2], "b": [1]}
    assert dropped(drop(scores, 0.5, scope="global")) == {"a": [0], "b": [0, 1]}


def test_negative_scores_and_infinities_sort_as_numbers_do() -> None:
    scores = torch.tensor([1.0, -1.0, -2.0, 0.0, -1e-38, float("inf"), -float("inf"), -300.0])
    order = [6, 7, 2, 1, 4, 3, 0, 5]
    for count in range(1, 8):
        masks = drop({"a": scores}, count / 8)
        assert dropped(masks) == {"a": sorted(order[:count])}


def test_minus_zero_and_zero_are_equal() -> None:
    masks = drop({"a": torch.tensor([0.0, -0.0, 0.0, -0.0])}, 0.5)
    assert dropped(masks) == {"a": [0, 1]}


def test_subnormal_scores_are_told_apart() -> None:
    masks = drop({"a": torch.tensor([3e-45, 1.5e-45, 0.0, 4.5e-45])}, 0.5)
    assert dropped(masks) == {"a": [1, 2]}


def test_among_equal_scores_the_first_in_model_order_go_first() -> None:
    scores = {"b": torch.ones(2, 2), "a": torch.ones(3), "c": torch.ones(3)}
    assert dropped(drop(scores, 0.5)) == {"b": [0, 1, 2, 3], "a": [0], "c": []}
    again = drop(scores, 0.5, masks=drop(scores, 0.5))
    assert dropped(again) == {"b": [0, 1, 2, 3], "a": [0, 1, 2], "c": []}  # round(2.5) is 2


def test_ties_are_broken_in_the_shapes_order_whatever_the_memory_layout() -> None:
    score = torch.ones(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    masks = drop({"a": score}, 0.25)
    assert dropped(masks) == {"a": [0, 1, 2, 3, 4, 5]}


def test_channels_last_scores_drop_the_same_entries_as_contiguous_ones() -> None:
    score = torch.randperm(120).view(4, 5, 2, 3).float()
    first = drop({"a": score}, 0.3)
    plain = drop({"a": score}, 0.5, masks=first)
    other = drop({"a": score.contiguous(memory_format=torch.channels_last)}, 0.5, masks=first)
    assert torch.equal(plain["a"], other["a"])


def test_a_fraction_that_rounds_to_nothing_prunes_nothing() -> None:
    assert drop({"a": torch.rand(10)}, 0.04).kept == 10


def test_half_entries_round_to_even_as_pytorch_does() -> None:
    assert drop({"a": torch.rand(5)}, 0.5).kept == 3
    assert drop({"a": torch.rand(7)}, 0.5).kept == 3


# ----------------------------------------------------------------------------------- properties

values = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0]),
    st.floats(width=32, allow_nan=False),
)


@pytest.fixture(params=[None, 4], ids=["gathered at once", "bracketed"])
def room(request: pytest.FixtureRequest) -> Iterator[None]:
    """Room for all scores at once, or for so few that a bracket has to be found and halved."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param is not None:
            patch.setattr(selection, "_GATHERED", request.param)
            patch.setattr(selection, "_CHUNK", 5)
        yield


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), scope=st.sampled_from(["global", "layer"]))
def test_selection_is_a_stable_sort_of_what_is_left(
    room: None, data: st.DataObject, scope: str
) -> None:
    sizes = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    names = [f"t{index}" for index in range(len(sizes))]
    scores, kept = {}, {}
    for name, size in zip(names, sizes, strict=True):
        scores[name] = torch.tensor(
            data.draw(st.lists(values, min_size=size, max_size=size)), dtype=torch.float32
        )
        kept[name] = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    fraction = data.draw(st.floats(0.01, 0.99))
    after = drop(scores, fraction, masks=kept, scope=scope)

    groups = [names] if scope == "global" else [[name] for name in names]
    for group in groups:
        score = np.concatenate([scores[name].numpy() for name in group]).astype(np.float64)
        alive = np.concatenate([kept[name].numpy() for name in group])
        left = np.flatnonzero(alive)
        lowest = left[np.argsort(score[left], kind="stable")][: round(fraction * len(left))]
        lowest = lowest[score[lowest] < np.inf]  # infinity stays, whatever is asked
        expected = alive.copy()
        expected[lowest] = False
        assert np.concatenate([after[name].numpy() for name in group]).tolist() == expected.tolist()


@settings(max_examples=50, deadline=None)
@given(fractions=st.lists(st.floats(0.05, 0.9), min_size=2, max_size=5), seed=st.integers(0, 2**31))
def test_pruned_entries_are_never_chosen_again_and_counts_follow_what_is_left(
    fractions: list[float], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks: Mapping[str, Tensor] | None = None
    left = 60 + 7
    for fraction in fractions:
        scores = {
            "a": torch.randint(-3, 3, (3, 20), generator=generator).float(),
            "b": torch.randint(-3, 3, (7,), generator=generator).float(),
        }
        after = drop(scores, fraction, masks=masks)
        left -= round(fraction * left)
        assert after.kept == left
        if masks is not None:
            assert all(not bool((after[name] & ~masks[name]).any()) for name in ("a", "b"))
        masks = after


def test_scores_are_left_as_they_were_and_so_are_masks_that_cannot_be_pruned() -> None:
    scores = {"a": torch.rand(50), "b": torch.rand(50)}
    copies = {name: value.clone() for name, value in scores.items()}
    assert drop(scores, 0.5).kept == 50
    assert all(torch.equal(scores[name], copies[name]) for name in scores)
    scores["b"][7] = torch.nan
    masks = Masks.keep_all(scores)
    with pytest.raises(ValueError, match="NaN"):
        select(masks, flat(scores), fraction=0.5, scope="layer")
    assert masks.kept == 100


def test_scores_whose_upper_bits_are_all_equal_are_still_told_apart() -> None:
    scores = torch.full((1000,), 1.0).view(torch.int32) + torch.randperm(1000, dtype=torch.int32)
    score = scores.view(torch.float32)
    masks = drop({"a": score}, 0.317)
    assert masks.kept == 683
    assert float(score[~masks["a"]].max()) < float(score[masks["a"]].min())


def test_tensors_beyond_one_chunk_are_sorted_as_a_whole() -> None:
    size = (1 << 21) + 4321
    score = torch.randperm(size, generator=torch.Generator().manual_seed(0)).float()
    masks = drop({"small": torch.tensor([-1.0, 1e9]), "big": score}, 0.6)
    pruned = round(0.6 * (size + 2))
    assert masks.kept == size + 2 - pruned
    assert masks["small"].tolist() == [False, True]
    assert torch.equal(masks["big"], score >= pruned - 1)


@pytest.mark.parametrize("fraction", [1e-6, 0.1, 0.5, 0.999, 1 - 1e-7])
def test_millions_of_scores_are_cut_where_a_sort_cuts_them(fraction: float) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = {
        "normal": torch.randn(3_000_000, generator=generator).abs(),
        "sorted": torch.linspace(0, 1e-3, 2_000_000),
        "few": torch.randint(0, 3, (1_000_000,), generator=generator).float(),
    }
    kept = {name: torch.rand(len(s), generator=generator) > 0.3 for name, s in scores.items()}
    after = drop(scores, fraction, masks=kept)
    alive = torch.cat(list(kept.values())).nonzero().flatten()
    order = torch.cat(list(scores.values()))[alive].sort(stable=True).indices
    expected = torch.cat(list(kept.values()))
    expected[alive[order[: round(fraction * len(alive))]]] = False
    assert torch.equal(torch.cat(list(after.values())), expected)


def test_ties_beyond_one_chunk_go_in_order() -> None:
    size = (1 << 20) + 10
    masks = drop({"a": torch.ones(size), "b": torch.ones(10)}, (size + 4) / (size + 10))
    pruned = round((size + 4) / (size + 10) * (size + 10))
    assert pruned == size + 4
    assert not bool(masks["a"].any())
    assert dropped({"b": masks["b"]}) == {"b": [0, 1, 2, 3]}


def test_random_scores_select_the_same_entries_for_the_same_generator_seed() -> None:
    def chosen(seed: int) -> Tensor:
        values = torch.ones(40 * 50, 1)
        score = CRITERIA["random"](values, torch.Generator().manual_seed(seed))
        return drop({"a": score.view(40, 50)}, 0.3)["a"]

    assert torch.equal(chosen(1), chosen(1))
    assert not torch.equal(chosen(1), chosen(2))
    assert int(chosen(1).sum()) == 1400


def test_what_has_an_infinite_score_stays_even_when_nothing_else_is_left() -> None:
    scores = {"a": torch.tensor([1.0, torch.inf, 2.0]), "b": torch.tensor([torch.inf, 3.0])}
    assert dropped(drop(scores, 0.4)) == {"a": [0, 2], "b": []}
    assert dropped(drop(scores, 0.9)) == {"a": [0, 2], "b": [1]}


# ------------------------------------------------------------------------------ what is refused


def test_scores_that_are_nan_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"scores of b .*NaN"):
        drop({"a": torch.rand(3), "b": torch.tensor([1.0, float("nan")])}, 0.5)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_scores_that_are_not_as_many_as_entries_are_refused(count: int) -> None:
    masks = Masks.keep_all({"a": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match="scores of a are not as many"):
        select(masks, flat({"a": torch.rand(count)}), fraction=0.5, scope="global")


def test_a_scope_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="scope 'tensor'"):
        drop({"a": torch.rand(4)}, 0.5, scope="tensor")


# ----------------------------------------------------------------------- torch.nn.utils.prune


def make_distinct(parameters: Mapping[str, Tensor]) -> None:
    """Fill parameters with numbers of which no two have the same magnitude, in random order."""
    start = 0
    for parameter in parameters.values():
        index = torch.arange(start, start + parameter.numel())
        start += parameter.numel()
        # An odd factor permutes the numbers below 2^28; as bits, they are floats in [2^-31, 2).
        bits = (index * 0x9E3779B1 & 0xFFFFFFF) + 0x30000000
        sign = (index * 0x85EBCA6B >> 9 & 1) << 31
        value = (bits - sign).to(torch.int32).view(torch.float32)
        with torch.no_grad():
            parameter.copy_(value.view(parameter.shape))


def modules_of(model: nn.Module, parameters: Mapping[str, Tensor]) -> list[tuple[nn.Module, str]]:
    split = [name.rpartition(".") for name in parameters]
    return [(model.get_submodule(layer), attribute) for layer, _, attribute in split]


def pytorch_global(model: nn.Module, names: list[tuple[nn.Module, str]], amount: float) -> None:
    prune.global_unstructured(names, prune.L1Unstructured, amount=amount)


def pytorch_layer(model: nn.Module, names: list[tuple[nn.Module, str]], amount: float) -> None:
    for module, name in names:
        prune.l1_unstructured(module, name, amount)


def weights_of(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Weights:
    return Weights(model, parameters, list, lambda model: torch.empty(0))


def assert_same_as_pytorch(
    build: Callable[[], nn.Module], scope: str, amounts: list[float], *, biases: bool
) -> None:
    # PyTorch's own cannot prune a model in channels_last, as the runs have it
    reference, mine = build(), build().to(memory_format=torch.channels_last)
    parameters = prunable_parameters(reference, include=(), exclude=(), biases=biases)
    own = prunable_parameters(mine, include=(), exclude=(), biases=biases)
    make_distinct(parameters)
    make_distinct(own)
    units = weights_of(mine, own)
    names = modules_of(reference, parameters)
    pruned = pytorch_global if scope == "global" else pytorch_layer
    kept = units.masks.kept
    for amount in amounts:
        pruned(reference, names, amount)
        scores = units.scores(CRITERIA["l1"])
        units.apply(select(units.masks, scores, fraction=amount, scope=scope))
        assert units.masks.kept < kept
        kept = units.masks.kept
        for (module, attribute), name in zip(names, own, strict=True):
            expected = getattr(module, f"{attribute}_mask").bool()
            assert torch.equal(units.masks[name], expected), name
            assert torch.equal(own[name] != 0, expected), name


def small_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Sequential(nn.Conv2d(8, 6, 3), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(54, 20),
        nn.Linear(20, 3),
    )


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("amounts", [[0.3], [0.5] * 5, [0.2, 0.7, 0.01, 0.4]])
def test_positions_are_pytorchs_after_repeated_amounts(
    amounts: list[float], scope: str, biases: bool
) -> None:
    assert_same_as_pytorch(small_net, scope, amounts, biases=biases)


@settings(max_examples=25, deadline=None)
@given(
    amounts=st.lists(st.floats(0.1, 0.8), min_size=1, max_size=3),
    scope=st.sampled_from(["global", "layer"]),
)
def test_positions_are_pytorchs_for_any_amounts(amounts: list[float], scope: str) -> None:
    model = lambda: nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 35))  # noqa: E731
    assert_same_as_pytorch(model, scope, amounts, biases=False)


def test_positions_are_pytorchs_on_a_torchvision_model() -> None:
    model = lambda: torchvision.models.squeezenet1_1(num_classes=10)  # noqa: E731
    assert_same_as_pytorch(model, "global", [0.5, 0.5, 0.5], biases=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "vgg16"])
def test_positions_are_pytorchs_after_six_levels_on_the_studys_big_models(name: str) -> None:
    model = lambda: torchvision.models.get_model(name, num_classes=10)  # noqa: E731
    assert_same_as_pytorch(model, "global", [0.5] * 6, biases=False)


# -------------------------------------------------------------------------- prunable_parameters


def names(
    *, include: tuple[str, ...] = (), exclude: tuple[str, ...] = (), biases: bool = False
) -> list[str]:
    return list(prunable_parameters(small_net(), include=include, exclude=exclude, biases=biases))


def test_weights_of_convolutions_and_linear_layers_are_prunable_in_model_order() -> None:
    assert names() == ["0.weight", "2.0.weight", "4.weight", "5.weight"]


def test_biases_join_when_asked_for_and_batchnorm_never_does() -> None:
    assert names(biases=True) == [
        "0.weight", "0.bias", "2.0.weight", "2.0.bias",
        "4.weight", "4.bias", "5.weight", "5.bias",
    ]  # fmt: skip


def test_a_batchnorm_cannot_be_included_by_name() -> None:
    with pytest.raises(InputError, match="pattern '1' matches no prunable layer"):
        names(include=("1",), biases=True)


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (("4", "5"), (), ["4.weight", "5.weight"]),
        (("5", "4"), (), ["4.weight", "5.weight"]),
        (("2.*",), (), ["2.0.weight"]),
        (("4.weight",), (), ["4.weight"]),
        ((), ("0", "2.0"), ["4.weight", "5.weight"]),
        (("[245]*",), ("5",), ["2.0.weight", "4.weight"]),
    ],
)
def test_patterns_choose_layers(
    include: tuple[str, ...], exclude: tuple[str, ...], expected: list[str]
) -> None:
    assert names(include=include, exclude=exclude) == expected


def test_a_pattern_can_name_biases_alone() -> None:
    assert names(include=("*.bias",), biases=True) == ["0.bias", "2.0.bias", "4.bias", "5.bias"]


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_refused_with_the_layers_there_are(option: str) -> None:
    with pytest.raises(InputError) as error:
        names(**{option: ("classifier.*",)})  # type: ignore[arg-type]
    text = str(error.value)
    assert "'classifier.*'" in text
    assert text.endswith("there are: 0, 2.0, 4, 5")
    assert "\n" not in text


def test_many_layers_are_listed_in_part() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(11)))
    with pytest.raises(InputError, match=r"there are: 0, 1, 2, 3, 4, 5, 6, 7 and 3 more$"):
        prunable_parameters(model, include=("head",), exclude=(), biases=False)


def test_patterns_that_leave_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="leave nothing to prune"):
        names(include=("4",), exclude=("4",))


def test_a_model_that_is_itself_one_layer_has_prunable_parameters() -> None:
    found = prunable_parameters(nn.Linear(3, 2), include=(), exclude=(), biases=True)
    assert list(found) == ["weight", "bias"]


def test_prunable_parameters_are_the_models_own_tensors() -> None:
    model = small_net()
    found = prunable_parameters(model, include=(), exclude=(), biases=False)
    assert found["2.0.weight"] is model.get_parameter("2.0.weight")


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_extra_memory_is_masks_old_and_new_and_at_most_64_mb() -> None:
    code = r"""
import re, torch
from pruneflow.pruning.masks import Masks
from pruneflow.pruning.selection import select
def peak():
    # not getrusage, whose peak starts at that of the process that this one was forked from
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
torch.set_num_threads(1)
warm = {"w": torch.randn(1000)}
def prune(weights, masks):
    flat = lambda name: lambda entries: weights[name][entries].abs()
    return select(masks, flat, fraction=0.5, scope="global")
prune(warm, Masks.keep_all(warm))
weights = {"large": torch.randn(40_000_000), "small": torch.randn(10_000_000)}
before = peak()
masks = Masks.keep_all(weights)
for _ in range(3):
    masks = prune(weights, masks)
print(peak() - before - 2 * 50_000_000)
"""
    root = Path(__file__).resolve().parents[2]

    def peak() -> float:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": str(root / "src")},
            capture_output=True,
            text=True,
            check=True,
        )
        return float(done.stdout)

    # the system's huge pages come and go: of three processes the leanest tells
    assert min(peak() for _ in range(3)) < 64_000_000


def test_pools_do_not_compete_with_each_other() -> None:
    scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 4.0]), "c": torch.rand(4) + 9}
    masks = Masks.keep_all(scores)
    pools = [["a", "b"], ["c"]]
    after = select(masks, flat(scores), fraction=0.5, scope="global", pools=pools)
    assert dropped(after)["a"] == [0, 1]
    assert dropped(after)["b"] == []
    assert len(dropped(after)["c"]) == 2
