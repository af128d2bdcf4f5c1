"""Units only ever lose entries, are zero or gone where they did, and are restored as they were."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch_pruning as tp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruneflow.errors import InputError
from pruneflow.inference import forms
from pruneflow.pruning import groups, tracing
from pruneflow.pruning.channels import Channels
from pruneflow.pruning.criteria import CRITERIA, OF_CHANNELS, needs
from pruneflow.pruning.prunable import find_units
from pruneflow.pruning.selection import select
from pruneflow.pruning.statistics import Batch, collect
from pruneflow.pruning.units import Units, as_text, from_text
from tests.pruning.networks import Residual, images, plain

FORWARD = images()
KINDS = ["weight", "group", "independent"]


def units_of(model: nn.Module, kind: str, head: str, **given: object) -> Units:
    options: dict[str, object] = {"targets": (), "include": (), "exclude": (), "biases": False}
    return find_units(
        model,
        FORWARD,
        head=head,
        granularity="weight" if kind == "weight" else "channel",
        coupling=None if kind == "weight" else kind,
        products=(),
        **options | given,  # type: ignore[arg-type]
    )


def prune(units: Units, level: int, fraction: float) -> None:
    scores = units.scores(CRITERIA["l1"], 0, level)
    selection = {"pools": units.pools(), "least": units.least(0)}
    units.apply(select(units.masks, scores, fraction=fraction, scope="global", **selection))


def train(units: Units) -> None:
    """A few steps that would bring every pruned entry back."""
    optimizer = torch.optim.SGD(units.model.parameters(), 0.05, momentum=0.9, weight_decay=0.1)
    keep = units.keeper()
    for _ in range(2):
        for parameter in units.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        keep(optimizer)


def assert_pruned(units: Units) -> None:
    for name, mask in units.parameter_masks().items():
        assert not bool(units.model.get_parameter(name)[~mask].any()), name


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15)
@given(seeds=st.lists(st.integers(0, 2**31), min_size=1, max_size=5))
def test_whatever_is_applied_in_whatever_order_nothing_comes_back(
    kind: str, seeds: list[int]
) -> None:
    units = units_of(plain().eval(), kind, "8")
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        before = {name: mask.clone() for name, mask in units.masks.items()}
        masks = {n: torch.rand(m.shape, generator=generator) > 0.3 for n, m in before.items()}
        for mask in masks.values():
            mask.view(-1)[0] = True
        units.apply(masks)
        for name, mask in units.masks.items():
            assert torch.equal(mask, before[name] & masks[name])
        train(units)
        assert_pruned(units)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_other_names_or_shapes_are_refused_and_nothing_is_pruned(kind: str) -> None:
    units = units_of(plain(), kind, "8")
    some = next(iter(units.masks))
    for wrong in ({some: units.masks[some]}, {**units.masks, some: torch.ones(1) > 0}):
        with pytest.raises(ValueError, match=r"masks and parameters differ|has shape"):
            units.apply(wrong)
    assert units.masks.sparsity == 0


@pytest.mark.parametrize(
    ("kind", "form"),
    [(k, f) for k in KINDS for f in ("masked", "compact") if (k, f) != ("weight", "compact")],
)
def test_units_restored_from_what_was_saved_go_on_as_those_that_were_never_left(
    kind: str, form: str
) -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    units = units_of(copy.deepcopy(model), kind, "fc")
    for level in (1, 2, 3):
        prune(units, level, 0.3)
        if form == "compact":
            units.remove()
        train(units)
        kept = units.existing if form == "compact" else units.in_compact()
        structure = units.structure(kept)
        packed = {n: m.clone() for n, m in units.parameter_masks().items() if not m.all()}
        state = {n: t.clone() for n, t in units.model.state_dict().items()}

        again = units_of(copy.deepcopy(model), kind, "fc")
        again.restore(structure, state, packed)
        assert_same(again, units)
        assert again.pruned_shares() == units.pruned_shares()
        units = again  # the next level goes on from there
    assert 0.5 < units.pruned_shares()["weights" if kind == "weight" else "conv"] < 1


def assert_same(one: Units, other: Units) -> None:
    assert list(one.masks) == list(other.masks)
    for name, mask in one.masks.items():
        assert torch.equal(mask, other.masks[name]), name
    for name, units in one.existing.items():
        assert torch.equal(units, other.existing[name]), name
    states = one.model.state_dict(), other.model.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
        assert tensor.stride() == states[1][name].stride(), name


def test_units_that_are_gone_are_told_by_their_numbers_in_the_unpruned_model() -> None:
    units = units_of(plain().eval(), "group", "8")
    assert isinstance(units, Channels)
    units.apply({**units.masks, "2": torch.arange(6) != 1})
    units.remove()
    units.apply({**units.masks, "2": torch.arange(5) != 2})  # of the five that exist
    units.remove()
    assert as_text(units.existing)["2"] == "101011"
    assert units.model.get_parameter("2.weight").shape[0] == 4


def test_text_of_units_is_read_back() -> None:
    kept = {"a": torch.tensor([True, False, True]), "b": torch.tensor([False])}
    assert as_text(kept) == {"a": "101", "b": "0"}
    assert all(torch.equal(mask, kept[name]) for name, mask in from_text(as_text(kept)).items())


def test_the_compact_form_of_weights_is_what_they_have_emptied() -> None:
    units = units_of(plain().eval(), "weight", "8")
    model, kept = units.compact()
    assert model is units.model
    assert kept == {}
    masks = {name: mask.clone() for name, mask in units.masks.items()}
    masks["2.weight"][4] = False
    with torch.no_grad():
        units.model.get_parameter("2.bias")[4] = 0
    units.apply(masks)
    model, kept = units.compact()
    assert as_text(kept) == {"2": "111101"}
    assert model.get_parameter("2.weight").shape[0] == 5
    assert units.model.get_parameter("2.weight").shape[0] == 6


@pytest.mark.parametrize(
    ("kind", "given", "problem"),
    [
        ("weight", {"include": ("a*",)}, "pattern 'a.*' matches no prunable layer"),
        ("group", {"targets": ("heads",)}, "targets=heads is not in this model"),
        ("group", {"exclude": ("*",)}, "leave no channels to prune"),
    ],
)
def test_what_leaves_nothing_to_prune_is_refused(
    kind: str, given: dict[str, object], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        units_of(plain(), kind, "8", **given)


def test_a_model_without_channels_to_remove_is_refused_with_the_reason() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
    with pytest.raises(InputError, match="no channels can be removed from this model: "):
        units_of(model, "group", "1")
    with pytest.raises(InputError, match="and this model has none to prune: pass coupling=group"):
        units_of(model, "independent", "1")


def test_the_compact_form_has_the_units_that_were_recorded() -> None:
    model = plain().eval()
    groups = tracing.find_groups(model, FORWARD, outputs=["8"]).groups

    def compact(kept: dict[str, Tensor]) -> nn.Module:
        level = forms.PrunedLevel(model, model, False, groups, kept, False, "cpu")
        return forms.FORMS["compact"](level, lambda model: torch.empty(0), "1")

    assert compact({"2": torch.arange(6) < 2}).get_parameter("2.weight").shape[0] == 2
    with pytest.raises(forms.NoFormError, match="no channel is empty"):
        compact({"2": torch.ones(6, dtype=torch.bool)})
    with pytest.raises(forms.NoFormError, match="older version"):
        compact({"4": torch.arange(6) < 2})


def pictures() -> list[Batch]:
    draws = torch.Generator().manual_seed(3)
    return [
        (torch.randn(6, 3, 8, 8, generator=draws), torch.randint(0, 3, (6,), generator=draws))
        for _ in range(2)
    ]


def scores_of(units: Units, criterion: str) -> dict[str, Tensor]:
    """Scores of all units by a criterion, flat, by name."""
    score = CRITERIA[criterion]
    statistics = collect(units.model, units.prunable, pictures, needs(score))
    of = units.scores(score, 0, 1, statistics=statistics)
    return {name: of(name)(slice(0, mask.numel())) for name, mask in units.masks.items()}


OF_WEIGHTS = sorted(n for n in CRITERIA if not {*needs(CRITERIA[n])} & {*OF_CHANNELS})


@pytest.mark.parametrize("criterion", OF_WEIGHTS)
def test_weights_are_scored_alike_in_pieces_and_whole(criterion: str) -> None:
    units = units_of(Residual().to(memory_format=torch.channels_last), "weight", "fc", biases=True)  # type: ignore[call-overload]
    whole = scores_of(units, criterion)
    score = CRITERIA[criterion]
    statistics = collect(units.model, units.prunable, pictures, needs(score))
    of = units.scores(score, 0, 1, statistics=statistics)
    for name, expected in whole.items():
        assert bool(expected.isfinite().all()), name
        middle = slice(len(expected) // 3, len(expected))
        if criterion != "random":  # which is drawn by the piece
            torch.testing.assert_close(of(name)(middle), expected[middle], check_dtype=False)


def test_first_order_scores_of_weights_are_gradients_times_weights() -> None:
    model = plain()
    units = units_of(model, "weight", "8")
    gradient = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for batch, labels in pictures():
        model.zero_grad()
        nn.functional.cross_entropy(model(batch), labels).backward()  # type: ignore[no-untyped-call]
        for name, p in model.named_parameters():
            assert p.grad is not None
            gradient[name] += p.grad / 2
    for name, scores in scores_of(units, "taylor").items():
        expected = (gradient[name] * model.get_parameter(name)).abs().flatten().detach()
        torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
@pytest.mark.parametrize("make", [plain, Residual])
def test_channels_are_scored_by_every_criterion(
    criterion: str, make: Callable[[], nn.Module]
) -> None:
    if criterion == "bn_scale" and make is plain:
        return
    units = units_of(make(), "group", "8" if make is plain else "fc")
    assert isinstance(units, Channels)
    units.check(criterion)
    for name, scores in scores_of(units, criterion).items():
        assert scores.shape == units.masks[name].shape
        assert bool((scores >= 0).all())
        seen = units._scored(CRITERIA[criterion], units.groups[name])
        assert float(scores.mean()) == pytest.approx(len(seen), rel=1e-4)


IMPORTANCES: dict[str, tuple[tp.importance.Importance, Callable[[Tensor], Tensor]]] = {
    name: (kind(group_reduction=None, normalizer=None, **given), undo)
    for name, kind, given, undo in [
        ("l1", tp.importance.GroupMagnitudeImportance, {"p": 1}, torch.clone),
        ("l2", tp.importance.GroupMagnitudeImportance, {"p": 2}, torch.sqrt),
        ("taylor", tp.importance.GroupTaylorImportance, {"multivariable": True}, torch.clone),
        ("snip", tp.importance.GroupTaylorImportance, {"multivariable": False}, torch.clone),
        ("bn_scale", tp.importance.BNScaleImportance, {}, torch.clone),
    ]
}


@pytest.mark.parametrize("criterion", sorted(IMPORTANCES))
def test_each_layers_part_of_a_units_score_is_torch_prunings(criterion: str) -> None:
    model = Residual().eval()
    units = units_of(model, "group", "fc")
    assert isinstance(units, Channels)
    scores = scores_of(units, criterion)
    inputs, labels = (torch.cat(parts) for parts in zip(*pictures(), strict=True))
    nn.functional.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
    graph = tp.DependencyGraph().build_dependency(model, inputs[:1])
    importance, undo = IMPORTANCES[criterion]
    for name, group in units.groups.items():
        layer = model.get_submodule(name)
        theirs = graph.get_pruning_group(layer, tp.prune_conv_out_channels, range(group.units))
        parts = [undo(part) for part in importance(theirs)]
        if criterion in ("taylor", "snip"):  # theirs looks at no BatchNorm
            norms = [m.weight for m in groups.members(model, group) if m.normalises]
            weights = [model.get_parameter(norm) for norm in norms]
            parts += [(w * w.grad).abs() for w in weights if w.grad is not None]
        expected = sum((part / part.mean() for part in parts), torch.zeros(group.units))
        torch.testing.assert_close(scores[name], expected.detach(), rtol=1e-4, atol=1e-5)


def test_outputs_are_what_the_next_layer_reads() -> None:
    model = plain().eval()
    seen = torch.cat([model[:2](batch) for batch, _ in pictures()]).detach()
    scores = scores_of(units_of(model, "group", "8"), "variance")["0"]
    variance = seen.transpose(0, 1).flatten(1).var(1, correction=0)
    torch.testing.assert_close(scores, variance / variance.mean())


def test_bn_scale_wants_batch_norm() -> None:
    with pytest.raises(InputError, match="criterion=bn_scale needs a BatchNorm, and"):
        units_of(plain(), "group", "8").check("bn_scale")
    model = Residual()
    units = units_of(model, "group", "fc", include=("inner.*",))
    units.check("bn_scale")
    with torch.no_grad():
        model.inner_norm[0].weight.copy_(torch.tensor([1.0, -4, 2, 3, 5, 3]))  # type: ignore[operator]
    assert scores_of(units, "bn_scale")["inner.0"].tolist() == pytest.approx(
        [1 / 3, 4 / 3, 2 / 3, 1, 5 / 3, 1]
    )


@pytest.mark.parametrize("kind", ["weight", "group"])
@pytest.mark.parametrize("scope", ["global", "layer", "lamp"])
def test_no_layer_is_pruned_beyond_what_it_may_and_the_others_are_instead(
    kind: str, scope: str
) -> None:
    units = units_of(plain(), kind, "8")
    total = sum(mask.numel() for mask in units.masks.values())
    scores = units.scores(CRITERIA["l2"])
    masks = select(
        units.masks, scores, fraction=0.6, scope=scope, pools=None, least=units.least(1 - 0.7)
    )
    assert all(int(mask.sum()) >= 0.3 * mask.numel() for mask in masks.values())
    if scope != "layer":  # which rounds in each
        assert sum(int(mask.sum()) for mask in masks.values()) == total - round(0.6 * total)
