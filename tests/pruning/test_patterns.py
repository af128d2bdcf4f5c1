"""N:M patterns, and which axis of a weight its inputs lie along."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from pruneflow.pruning import selection
from pruneflow.pruning.criteria import CRITERIA
from pruneflow.pruning.masks import Masks
from pruneflow.pruning.prunable import find_units
from pruneflow.pruning.selection import select, select_pattern
from pruneflow.pruning.units import Units
from tests.test_every_model import encoder


def by_hand(score: Tensor, mask: Tensor, axis: int, keep: int, block: int) -> Tensor:
    """Every block of every output by itself, in plain Python."""
    after, size = mask.clone(), mask.shape[axis]
    others = [range(n) for d, n in enumerate(mask.shape) if d != axis]
    for other in itertools.product(*others):
        for start in range(0, size - size % block, block):
            places = [(*other[:axis], i, *other[axis:]) for i in range(start, start + block)]
            alive = sorted((p for p in places if mask[p]), key=lambda p: float(score[p]))
            for place in alive[: max(0, len(alive) - keep)]:
                after[place] = False
    return after


SHAPES: dict[str, tuple[int, ...]] = {
    "linear": (3, 10),
    "conv": (2, 9, 3, 2),
    "depthwise": (6, 1, 3, 3),
    "conv1d": (3, 8, 2),
    "inputs first": (8, 3),
}


@pytest.mark.parametrize("room", [1 << 18, 7])
@given(
    name=st.sampled_from(sorted(SHAPES)),
    pattern=st.sampled_from([(1, 4), (2, 4), (4, 8), (1, 3), (2, 3)]),
    seed=st.integers(0, 2**31),
)
def test_the_lowest_of_each_block_go(
    room: int, name: str, pattern: tuple[int, int], seed: int
) -> None:
    chance = torch.Generator().manual_seed(seed)
    score = torch.randint(-3, 4, SHAPES[name], generator=chance).float()  # many are equal
    masks = {"w": torch.rand(score.shape, generator=chance) > 0.3, "bias": torch.ones(5) > 0}
    axis, (keep, block) = (0 if name == "inputs first" else 1), pattern
    flat = {"w": score.flatten(), "bias": torch.zeros(5)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_CHUNK", room)
        after = select_pattern(
            masks, lambda n: flat[n].__getitem__, keep=keep, block=block, inputs={"w": axis}
        )
    assert torch.equal(after["w"], by_hand(score, masks["w"], axis, keep, block))
    assert after["bias"].all()


def test_scores_that_are_not_numbers_are_refused() -> None:
    masks = Masks.keep_all({"w": torch.ones(2, 4)})
    score = torch.full((8,), torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        select_pattern(masks, lambda _: score.__getitem__, keep=2, block=4, inputs={"w": 1})


class Mixed(nn.Module):
    """Layers of both libraries, one of them square, beside what multiplies nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 8)
        self.first, self.square = Conv1D(12, 8), Conv1D(12, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.square(self.first(self.embed(x))).mean(1))


def found(model: nn.Module, inputs: Any, head: str, products: list[str]) -> Units:
    return find_units(
        model,
        lambda m: m(**inputs).logits if isinstance(inputs, dict) else m(inputs),
        head=head,
        granularity="weight",
        coupling=None,
        targets=(),
        include=(),
        exclude=(),
        biases=True,
        products=products,
    )


def test_axes_are_of_what_multiplies_whatever_library_it_is_of() -> None:
    units = found(
        Mixed(), torch.zeros(2, 4, dtype=torch.int64), "head", ["first.weight", "square.weight"]
    )
    assert units.input_axes == {"first.weight": 0, "square.weight": 0, "head.weight": 1}


@pytest.fixture(scope="module")
def gpt2() -> Units:
    model = encoder("gpt2").eval()  # type: ignore[operator]
    inputs = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 3).long()}
    products = [n for n, p in model.named_parameters() if p.dim() == 2 and ".w" not in n[:16]]
    return found(model, inputs, "score", products)


def test_rows_of_gpt2_are_its_outputs(gpt2: Units) -> None:
    layers = {n: m for n, m in gpt2.model.named_modules() if isinstance(m, Conv1D)}
    assert layers
    assert {gpt2.input_axes[f"{name}.weight"] for name in layers} == {0}
    after = select(
        gpt2.masks,
        gpt2.scores(CRITERIA["l1"]),
        fraction=0.5,
        scope="row",
        inputs=gpt2.input_axes,
    )
    for name in layers:
        weight, mask = gpt2.model.get_parameter(f"{name}.weight"), after[f"{name}.weight"]
        assert set(mask.sum(0).tolist()) == {len(mask) // 2}  # of each output half of its inputs
        for output, kept in zip(weight.detach().abs().T, mask.T, strict=True):
            assert output[~kept].max() < output[kept].min()


def test_blocks_of_gpt2_are_of_inputs(gpt2: Units) -> None:
    after = select_pattern(
        gpt2.masks, gpt2.scores(CRITERIA["l1"]), keep=2, block=4, inputs=gpt2.input_axes
    )
    for name, axis in gpt2.input_axes.items():
        mask = after[name].movedim(axis, -1)
        whole = mask.shape[-1] // 4 * 4
        assert (mask[..., :whole].unflatten(-1, (-1, 4)).sum(-1) == 2).all()
        assert mask[..., whole:].all()
    rest = [name for name in after if name not in gpt2.input_axes]
    assert rest
    assert all(after[name].all() for name in rest)
