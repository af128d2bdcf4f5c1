"""Groups: what units own, how they are scored, chosen and numbered anew."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from pruneflow.errors import InputError
from pruneflow.pruning import compaction, groups, tracing
from pruneflow.pruning.channels import Channels
from pruneflow.pruning.criteria import CRITERIA
from pruneflow.pruning.groups import Group, Tie
from pruneflow.pruning.masks import Masks
from pruneflow.pruning.prunable import prunable_groups
from pruneflow.pruning.selection import select
from tests.pruning.networks import Residual, Tied, images, plain

FORWARD = images()


def found(model: nn.Module, head: str) -> list[Group]:
    return tracing.find_groups(model, FORWARD, outputs=[head]).groups


def test_a_pruned_unit_takes_its_rows_its_bias_and_the_columns_that_read_it() -> None:
    model = plain()
    kept = {"2": torch.tensor([True, False, True, True, True, True])}
    masks = groups.expand(model, [g for g in found(model, "8") if g.name == "2"], kept)
    assert list(masks) == ["2.weight", "2.bias", "6.weight"]
    assert masks["2.weight"].flatten(1).all(1).tolist() == kept["2"].tolist()
    assert not masks["2.weight"][1].any()
    assert masks["2.bias"].tolist() == kept["2"].tolist()
    assert masks["6.weight"].all(0).logical_not().nonzero().flatten().tolist() == [4, 5, 6, 7]


def test_members_are_all_weights_that_a_unit_has_a_part_of() -> None:
    model = Residual()
    stream = found(model, "fc")[0]
    members = {m.weight: m for m in groups.members(model, stream)}
    expected = {
        name: dim
        for tie in stream.ties
        for name, dim in groups.entries(model, tie).items()
        if name.endswith("weight")
    }
    assert {name: member.dim for name, member in members.items()} == expected
    assert {0, 1} == set(expected.values())
    for name, member in members.items():
        weight = model.get_parameter(name)
        parts = member.of(weight.detach())
        assert torch.equal(parts[3], weight.select(member.dim, 3).flatten().detach())
        assert member.normalises == (weight.dim() == 1)


def test_relative_scores_have_mean_one() -> None:
    scores = torch.tensor([2.0, 100.0, 4.0, 6.0])
    kept = torch.tensor([True, False, True, True])  # 100 is of a unit that has gone
    scaled = groups.relative(scores, kept)
    assert scaled[[0, 2, 3]].tolist() == [0.5, 1.0, 1.5]
    assert torch.isfinite(scaled[1])
    assert groups.relative(torch.zeros(3), torch.ones(3, dtype=torch.bool)).tolist() == [0, 0, 0]


def channels_of(model: nn.Module, chosen: list[Group], *, coupled: bool) -> Channels:
    return Channels(model, chosen, chosen, {}, head="", coupled=coupled)


def lower(units: Channels, criterion: str, level: int, fraction: float, scope: str) -> Masks:
    """Prune a level; the masks before it."""
    before = Masks(units.masks, {name: mask.clone() for name, mask in units.masks.items()})
    scores = units.scores(CRITERIA[criterion], 0, level)
    least = units.least(0)
    units.apply(select(units.masks, scores, fraction=fraction, scope=scope, least=least))
    return before


@pytest.mark.parametrize("criterion", ["l1", "l2", "random", "lamp", "fpgm"])
@pytest.mark.parametrize("fraction", [0.3, 0.9, 0.999])
def test_no_group_is_ever_emptied(criterion: str, fraction: float) -> None:
    model = plain()
    units = channels_of(model, found(model, "8"), coupled=True)
    for level in range(1, 6):
        before = lower(units, criterion, level, fraction, "global")
        kept = units.masks
        assert all(bool(kept[name].any()) for name in kept)
        wanted = round(fraction * before.kept)
        assert before.kept - kept.kept == min(wanted, before.kept - len(kept))
        assert all(bool((before[name] | ~kept[name]).all()) for name in kept)


@pytest.mark.parametrize(("n", "criterion"), [(1, "l1"), (2, "l2")])
def test_independent_filters_are_those_of_ln_structured(n: int, criterion: str) -> None:
    """The oracle: PyTorch's own structured pruning, Conv2d by Conv2d, over several levels."""
    torch.manual_seed(n)
    model = nn.Sequential(nn.Conv2d(3, 17, 3), nn.ReLU(), nn.Conv2d(17, 30, 3), nn.Linear(5, 5))
    names = ["0", "2"]
    units = channels_of(model, groups.filters(model, outputs=[]), coupled=False)
    assert list(units.groups) == names
    references = {name: nn.Conv2d(1, 1, 1) for name in names}
    for name in names:
        source = model.get_submodule(name)
        references[name].weight = nn.Parameter(source.get_parameter("weight").detach().clone())
    for level, amount in enumerate([0.1, 0.1, 0.25, 0.5, 0.1], start=1):
        lower(units, criterion, level, amount, "layer")
        masks = units.parameter_masks()
        for name in names:
            prune.ln_structured(references[name], "weight", amount=amount, n=n, dim=0)  # type: ignore[no-untyped-call]
            expected = references[name].weight_mask.bool()
            assert torch.equal(masks[f"{name}.weight"], expected), (level, name)
    assert set(masks) == {"0.weight", "2.weight"}  # neither bias nor linear layers


def test_random_scores_are_drawn_anew_at_each_level_and_alike_at_each_call() -> None:
    model = plain()
    units = channels_of(model, found(model, "8"), coupled=False)

    def scores(*seed: int) -> Tensor:
        return units.scores(CRITERIA["random"], *seed)("2")(slice(None))

    assert torch.equal(scores(0, 1), scores(0, 1))
    assert not torch.equal(scores(0, 1), scores(0, 2))
    assert not torch.equal(scores(0, 1), scores(1, 1))


def test_groups_are_numbered_anew_as_the_smaller_model_is() -> None:
    model = Residual().eval()
    before = found(model, "fc")
    kept = {g.name: torch.arange(g.units) % 3 != 1 for g in before}
    smaller = compaction.compact(model, before, kept)
    renumbered = groups.without(before, kept)
    afresh = found(smaller, "fc")
    assert [g.name for g in renumbered] == [g.name for g in afresh]
    for mine, theirs in zip(renumbered, afresh, strict=True):
        assert mine.units == theirs.units
        for a, b in zip(mine.ties, theirs.ties, strict=True):
            assert (a.layer, a.side, a.index.tolist()) == (b.layer, b.side, b.index.tolist())


def test_a_group_that_is_not_named_keeps_its_units() -> None:
    index = torch.arange(3)[:, None]
    one = Group("one", "conv", (Tie("a", "out", index), Tie("b", "in", index)))
    (same,) = groups.without([one], {})
    assert same.ties[1].index.tolist() == [[0], [1], [2]]


def test_keep_all_has_a_mask_a_group() -> None:
    kept = groups.keep_all(found(plain(), "8"))
    assert isinstance(kept, Masks)
    assert {name: mask.numel() for name, mask in kept.items()} == {"0": 4, "2": 6, "6": 5}


def choose(**options: tuple[str, ...]) -> list[str]:
    model = plain()
    defaults: dict[str, tuple[str, ...]] = {"targets": (), "include": (), "exclude": ()}
    return [g.name for g in prunable_groups(model, found(model, "8"), **(defaults | options))]


def test_targets_and_patterns_choose_groups() -> None:
    assert choose() == ["0", "2", "6"]
    assert choose(targets=("conv",)) == ["0", "2"]
    assert choose(targets=("linear",)) == ["6"]
    assert choose(include=("2", "6")) == ["2", "6"]
    assert choose(exclude=("0",)) == ["2", "6"]


def test_a_pattern_that_matches_one_tied_layer_takes_the_whole_group() -> None:
    model = Residual()
    chosen = prunable_groups(
        model, found(model, "fc"), targets=(), include=("outer.1",), exclude=()
    )
    assert [g.name for g in chosen] == ["stem"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"targets": ("heads",)}, "targets=heads is not in this model.* is conv, linear"),
        ({"include": ("conv*",)}, "pattern 'conv.*' matches no prunable layer; there are: 0, 2, 6"),
        ({"exclude": ("*",)}, "leave no channels to prune"),
    ],
)
def test_what_chooses_nothing_is_refused(options: dict[str, tuple[str, ...]], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        choose(**options)


def test_filters_leave_out_a_convolution_that_makes_the_outputs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    assert [g.name for g in groups.filters(model, outputs=["1"])] == ["0"]


def test_layers_that_share_a_weight_are_pruned_as_one() -> None:
    model = Tied()
    filters = groups.filters(model, outputs=["last"])
    assert [group.name for group in filters] == ["first", "shared"]
    kept = groups.keep_all(filters)
    kept["shared"][2:] = False
    groups.expand(model, filters, kept).apply(model)
    for layer in (model.shared, model.again):
        assert layer.weight.detach().flatten(1).any(1).tolist() == [True] * 2 + [False] * 4


def test_groups_that_change_a_shared_weight_are_left_out_with_the_reason() -> None:
    traced = tracing.find_groups(Tied(), FORWARD, outputs=["last"])
    assert traced.groups == []
    assert traced.left_out["first"] == "it would change a weight that two layers share"
    smaller = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), Tied())
    smaller[2].first = nn.Conv2d(4, 6, 1)
    assert [group.name for group in found(smaller, "2.last")] == ["0"]
