"""Masks are exactly their parameters' shapes; what they prune stays zero through training."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruneflow.pruning.keeper import Keeper
from pruneflow.pruning.masks import Masks

PARAMETERS = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5)
    )


def random_masks(model: nn.Module, *names: str) -> Masks:
    generator = torch.Generator().manual_seed(4)
    parameters = {name: model.get_parameter(name) for name in names}
    kept = {n: torch.rand(p.shape, generator=generator) > 0.5 for n, p in parameters.items()}
    return Masks(parameters, kept)


# ------------------------------------------------------------------------------ what is refused


def test_a_mask_of_another_shape_is_refused_with_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"mask of a has shape \(3, 2\), its parameter \(2, 3\)"):
        Masks(PARAMETERS, {"a": ones(3, 2), "b": ones(4)})


@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (3,), (1, 2, 3), ()])
def test_a_mask_that_would_broadcast_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="mask of a has shape"):
        Masks(PARAMETERS, {"a": ones(*shape), "b": ones(4)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64])
def test_a_mask_that_is_not_boolean_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"mask of b is {dtype}"):
        Masks(PARAMETERS, {"a": ones(2, 3), "b": torch.ones(4, dtype=dtype)})


def test_a_missing_mask_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"differ in b$"):
        Masks(PARAMETERS, {"a": ones(2, 3)})


def test_a_mask_of_no_parameter_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"differ in c$"):
        Masks(PARAMETERS, {"a": ones(2, 3), "b": ones(4), "c": ones(4)})


# --------------------------------------------------------------------------------------- counts


def test_counts_by_hand() -> None:
    masks = Masks(
        PARAMETERS,
        {
            "a": torch.tensor([[True, False, False], [True, True, False]]),
            "b": torch.tensor([False, True, True, True]),
        },
    )
    assert (masks.total, masks.kept) == (10, 6)
    assert masks.sparsity == pytest.approx(0.4)
    assert list(masks) == ["a", "b"]
    assert len(masks) == 2


def test_keep_all_prunes_nothing() -> None:
    masks = Masks.keep_all(PARAMETERS)
    assert (masks.total, masks.kept, masks.sparsity) == (10, 10, 0.0)
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == {"a": (2, 3), "b": (4,)}


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_sparsity_is_the_share_of_false(kept: list[bool]) -> None:
    masks = Masks({"w": torch.zeros(len(kept))}, {"w": torch.tensor(kept)})
    assert masks.kept == sum(kept)
    assert masks.sparsity == pytest.approx(kept.count(False) / len(kept))


# --------------------------------------------------------------------------------------- keeper


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.1)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("optimizer_of", [sgd, adamw])
def test_pruned_entries_are_exactly_zero_after_every_step_and_kept_ones_move(
    optimizer_of: Callable[[nn.Module], torch.optim.Optimizer], layout: torch.memory_format
) -> None:
    model = small_net().to(memory_format=layout)
    names = ("0.weight", "0.bias", "4.weight")
    optimizer = optimizer_of(model)
    inputs, labels = torch.randn(16, 3, 6, 6), torch.arange(16) % 5

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    for _ in range(3):  # momentum and moments of every entry before the first is pruned
        step()
    masks = random_masks(model, *names)
    keep = Keeper(model, masks)
    keep()
    start = {name: model.get_parameter(name).detach().clone() for name in names}
    for _ in range(25):
        step()
        keep(optimizer)
        for name in names:
            weight = model.get_parameter(name)
            assert int(weight[~masks[name]].count_nonzero()) == 0
    for name in names:
        moved = model.get_parameter(name).detach() != start[name]
        assert torch.equal(moved, masks[name])


@pytest.mark.parametrize("fused", [True, False])
def test_adamw_told_once_moves_what_is_kept_as_it_would_be_moved_with_masks(fused: bool) -> None:
    """The second moment of infinity does what a mask after every step does, to the last bit."""
    models = [small_net(), small_net()]
    models[1].load_state_dict(models[0].state_dict())
    masks = random_masks(models[0], "0.weight", "0.bias", "4.weight")
    inputs, labels = torch.randn(16, 3, 6, 6), torch.arange(16) % 5
    keepers = [Keeper(model, masks) for model in models]
    optimizers = [
        torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1, fused=fused)
        for model in models
    ]
    for _ in range(20):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        keepers[0](optimizers[0])
        keepers[1]()
        for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert torch.equal(one, other)
    state = optimizers[0].state[models[0].get_parameter("4.weight")]
    assert torch.equal(state["exp_avg_sq"].isinf(), ~masks["4.weight"])


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.1, nesterov=True),
    "sgd loop": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, foreach=False),
    "adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
    "adam fused": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, foreach=False),
    "adamw foreach": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, fused=True),
    "adamw amsgrad": lambda p: torch.optim.AdamW(p, 0.01, fused=True, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, weight_decay=0.1),
}


@settings(max_examples=120)
@given(
    name=st.sampled_from(sorted(OPTIMIZERS)),
    seed=st.integers(0, 2**31),
    events=st.lists(
        st.sampled_from(
            ["step", "step", "freeze", "thaw", "save", "load", "infinite", "nan", "weights"]
        ),
        min_size=4,
        max_size=16,
    ),
)
def test_pruned_entries_stay_zero_whatever_happens_between_the_steps(
    name: str, seed: int, events: list[str]
) -> None:
    """Frozen and thawed layers, state and weights loaded, gradients that are not finite."""
    generator = torch.Generator().manual_seed(seed)
    weights = [nn.Parameter(torch.randn(5, 3, generator=generator)) for _ in range(3)]
    model = nn.Module()
    for number, weight in enumerate(weights):
        model.register_parameter(f"w{number}", weight)
    masks = {n: torch.rand(5, 3, generator=generator) > 0.5 for n, _ in model.named_parameters()}
    optimizer = OPTIMIZERS[name](weights)
    dense = {n: torch.randn(5, 3, generator=generator) for n in masks}
    keep = Keeper(model, Masks(masks, masks))
    keep()
    unused: set[int] = {0}
    saved = copy.deepcopy(optimizer.state_dict())

    for event in events:
        which = int(torch.randint(3, (1,), generator=generator))
        if event in ("freeze", "thaw"):
            (unused.add if event == "freeze" else unused.discard)(which)
        elif event == "save":
            saved = copy.deepcopy(optimizer.state_dict())
        elif event == "load":
            optimizer.load_state_dict(copy.deepcopy(saved))
        elif event == "weights":
            model.load_state_dict(dense)
        for number, weight in enumerate(weights):
            weight.grad = None
            if number not in unused:
                weight.grad = torch.randn(5, 3, generator=generator)
        gradient = weights[which].grad
        if event in ("infinite", "nan") and gradient is not None:
            gradient[~masks[f"w{which}"]] = torch.inf if event == "infinite" else torch.nan
        optimizer.step()
        keep(optimizer)
        for number, weight in enumerate(weights):
            mask = masks[f"w{number}"]
            assert weight.detach()[~mask].tolist() == [0.0] * int((~mask).sum()), event
            assert bool(weight.isfinite().all()), event


def test_infinities_and_not_a_number_are_pruned_to_plain_zero() -> None:
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[torch.nan, torch.inf, -3.0, -5.0]]))
    mask = torch.tensor([[False, False, False, True]])
    Masks({"weight": model.weight}, {"weight": mask}).apply(model)
    assert model.weight.tolist() == [[0.0, 0.0, 0.0, -5.0]]
    assert not bool(model.weight[:, :3].signbit().any())


def test_without_the_keeper_the_same_steps_bring_pruned_entries_back() -> None:
    model = small_net()
    masks = random_masks(model, "0.weight")
    masks.apply(model)
    optimizer = sgd(model)
    nn.functional.cross_entropy(model(torch.randn(16, 3, 6, 6)), torch.arange(16) % 5).backward()
    optimizer.step()
    assert int(model.get_parameter("0.weight")[~masks["0.weight"]].count_nonzero()) > 0


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
@pytest.mark.parametrize("mask_layout", [torch.contiguous_format, torch.channels_last])
def test_positions_are_right_in_every_memory_layout(
    order: tuple[int, ...], mask_layout: torch.memory_format
) -> None:
    model = nn.Conv2d(3, 4, (2, 5))
    shape = tuple(model.weight.shape)
    stored = torch.arange(1.0, 121.0).view([shape[axis] for axis in order])
    back = [order.index(axis) for axis in range(4)]
    model.weight = nn.Parameter(stored.permute(back))  # the shape of old, memory in another order
    assert tuple(model.weight.shape) == shape
    expected = model.weight.detach().clone()
    mask = (torch.arange(120) % 7 < 3).view(shape)
    masks = Masks({"weight": model.weight}, {"weight": mask.contiguous(memory_format=mask_layout)})
    masks.apply(model)
    assert torch.equal(model.weight, torch.where(mask, expected, 0.0))


def test_positions_are_right_beyond_one_chunk() -> None:
    model = nn.Linear(1031, 2050, bias=False)  # over 2 x 2^20 entries, of no round size
    with torch.no_grad():
        model.weight.fill_(1.0)
    mask = (torch.arange(model.weight.numel()) % 11 != 3).view(model.weight.shape)
    Masks({"weight": model.weight}, {"weight": mask}).apply(model)
    assert torch.equal(model.weight, mask.float())


def test_tensors_without_pruned_entries_and_without_masks_are_left_alone() -> None:
    model = small_net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept = Masks.keep_all({"0.weight": model.get_parameter("0.weight")})
    kept.apply(model)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_mask_made_for_a_model_of_other_shapes_is_refused() -> None:
    masks = random_masks(small_net(), "0.weight")
    other = nn.Sequential(nn.Conv2d(3, 9, 3))
    with pytest.raises(ValueError, match=r"mask of 0\.weight has shape \(8, 3, 3, 3\)"):
        masks.apply(other)


def test_a_mask_made_for_a_model_of_other_names_is_refused() -> None:
    masks = random_masks(small_net(), "4.weight")
    with pytest.raises((AttributeError, ValueError), match="4"):
        masks.apply(nn.Sequential(nn.Linear(128, 5)))
