"""Compaction: what hangs together, what is taken out, and that outputs stay as they were."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruneflow.pruning import compaction
from pruneflow.pruning.groups import expand
from pruneflow.pruning.tracing import find_groups
from pruneflow.workloads import models
from tests.pruning.networks import (
    Grouped,
    Normalised,
    Residual,
    Shuffled,
    images,
    plain,
    trained_looking,
)

FORWARD = images()
HEADS = {"plain": "8", "residual": "fc", "grouped": "last"}


def network(name: str) -> nn.Module:
    made: dict[str, Callable[[], nn.Module]] = {
        "plain": plain,
        "residual": Residual,
        "grouped": Grouped,
    }
    return trained_looking(made[name]())


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest logit."""
    return float(((a - b).abs().max() / a.abs().max()).detach())


def masked(model: nn.Module, kept: dict[str, Tensor], groups: list) -> nn.Module:  # type: ignore[type-arg]
    model = copy.deepcopy(model)
    expand(model, groups, kept).apply(model)
    return model


# ---------------------------------------------------------------------------------- the groups


def test_groups_of_a_plain_network() -> None:
    groups = find_groups(plain(), FORWARD, outputs=["8"]).groups
    assert [(g.name, g.target, g.units) for g in groups] == [
        ("0", "conv", 4),
        ("2", "conv", 6),
        ("6", "linear", 5),
    ]
    reader = next(tie for tie in groups[1].ties if tie.layer == "6")
    assert reader.side == "in"
    assert reader.index[1].tolist() == [4, 5, 6, 7]  # a channel of 2x2 pixels, flattened


def test_a_residual_stream_is_one_group_with_everything_that_writes_and_reads_it() -> None:
    model = Residual()
    stream, *inner = find_groups(model, FORWARD, outputs=["fc"]).groups
    assert list(stream.makers(model)) == ["stem", "outer.0", "outer.1"]
    assert {(tie.layer, tie.side) for tie in stream.ties} == {
        ("stem", "out"), ("norm", "out"), ("outer.0", "out"), ("outer_norm.0", "out"),
        ("outer.1", "out"), ("outer_norm.1", "out"), ("inner.0", "in"), ("inner.1", "in"),
        ("fc", "in"),
    }  # fmt: skip
    assert [g.name for g in inner] == ["inner.0", "inner.1"]


def test_a_group_of_a_grouped_convolution_is_one_unit() -> None:
    first, depthwise = find_groups(Grouped(), FORWARD, outputs=["last"]).groups
    assert (first.units, depthwise.units) == (3, 5)
    index = {(tie.layer, tie.side): tie.index.tolist() for tie in first.ties}
    assert index["first", "out"] == [[0, 1], [2, 3], [4, 5]]
    assert index["grouped", "in"] == [[0, 1], [2, 3], [4, 5]]
    assert index["grouped", "out"] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert {(t.layer, t.side) for t in depthwise.ties} >= {("next", "out"), ("last", "in")}


def test_a_group_that_tracing_gets_wrong_is_found_out_and_left_out() -> None:
    found = find_groups(Shuffled(), FORWARD, outputs=["last"])
    assert [g.name for g in found.groups] == ["second"]
    assert "changed the outputs when it was tried" in found.left_out["first"]


def test_a_head_of_zeros_hides_nothing_from_the_trial() -> None:
    model = Shuffled()
    nn.init.zeros_(model.last.weight)
    nn.init.zeros_(model.last.bias)  # type: ignore[arg-type]
    found = find_groups(model, FORWARD, outputs=["last"])
    assert [g.name for g in found.groups] == ["second"]


class Attention(nn.Module):
    """Rows of a linear layer that a view takes for heads of four: removing five breaks it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.value = nn.Linear(3, 16)
        self.out = nn.Linear(16, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        value = self.value(x.mean((2, 3)))
        heads = value.view(len(x), -1, 4)
        logits: Tensor = self.last(torch.relu(self.out(heads.softmax(-1).flatten(1))))
        return logits


def test_rows_that_belong_together_unseen_are_left_alone() -> None:
    found = find_groups(Attention(), FORWARD, outputs=["last"])
    assert [g.name for g in found.groups] == ["out"]


def test_what_a_group_norm_mixes_and_what_makes_the_outputs_stays() -> None:
    found = find_groups(Normalised(), FORWARD, outputs=["last"])
    assert [g.name for g in found.groups] == ["second"]
    assert found.left_out == {"first": "GroupNorm mixes them", "last": "it makes the outputs"}


class Untraceable(nn.Module):
    """Logits that autograd knows nothing of."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(x.mean((2, 3))).detach()
        return logits


def test_a_model_that_cannot_be_traced_has_no_groups_and_says_why() -> None:
    found = find_groups(Untraceable(), FORWARD, outputs=["last"])
    assert found.groups == []
    assert found.left_out == {"last": "nothing was found that reads its channels"}


def test_an_operation_that_cannot_be_followed_takes_only_its_own_layers_with_it() -> None:
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=3)
    found = find_groups(model, images(32), outputs=["fc"])
    assert len(found.groups) == 18
    stuck = {name for name, reason in found.left_out.items() if "ZeroDivisionError" in reason}
    assert stuck
    assert all(name.startswith("stage") for name in stuck)  # there channels are shuffled


class Windows(nn.Module):
    """Shifted windows, as in Swin: pixels that tracing takes for channels, more at every step."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.first = nn.Conv2d(3, 6, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(6) for _ in range(blocks))
        self.wide = nn.ModuleList(nn.Linear(6, 12) for _ in range(blocks))
        self.narrow = nn.ModuleList(nn.Linear(12, 6) for _ in range(blocks))
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).permute(0, 2, 3, 1)
        for norm, wide, narrow in zip(self.norms, self.wide, self.narrow, strict=True):
            windows = torch.roll(norm(x), (-2, -2), (1, 2)).view(-1, 2, 4, 2, 4, 6)
            windows = windows.permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, 6)
            windows = narrow(torch.relu(wide(windows))).view(-1, 2, 2, 4, 4, 6)
            windows = windows.permute(0, 1, 3, 2, 4, 5).reshape(-1, 8, 8, 6)
            x = x + torch.roll(windows, (2, 2), (1, 2))
        logits: Tensor = self.last(x.mean((1, 2)))
        return logits


def test_tracing_is_bounded_by_work_that_the_model_alone_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_clock() -> float:
        raise AssertionError("tracing looked at a clock")

    for name in ("time", "monotonic", "perf_counter", "process_time"):
        monkeypatch.setattr(time, name, no_clock)
    found = find_groups(Windows(6), FORWARD, outputs=["last"])
    assert [g.name for g in found.groups] == [f"wide.{number}" for number in range(6)]
    assert set(found.left_out) == {"first", "last", *(f"narrow.{n}" for n in range(6))}


def test_tracing_leaves_a_profiler_in_force() -> None:
    def profiler(frame: object, event: str, argument: object) -> None:
        assert sys.getprofile() is profiler

    sys.setprofile(profiler)
    try:
        find_groups(plain(), FORWARD, outputs=["8"])
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)


def test_ties_are_in_model_order_and_not_in_that_of_a_set_of_names() -> None:
    for model, head in ((Grouped(), "last"), (Residual(), "fc")):
        order = [name for name, _ in model.named_modules()]
        for group in find_groups(model, FORWARD, outputs=[head]).groups:
            keys = [(order.index(tie.layer), tie.side) for tie in group.ties]
            assert keys == sorted(keys)


# A model of every family of torchvision's classifiers, how many groups it has, and its images.
FAMILIES = {
    "alexnet": (7, 64),
    "vgg11": (10, 32),
    "squeezenet1_1": (25, 64),
    "resnet18": (12, 32),
    "resnext50_32x4d": (21, 32),
    "wide_resnet50_2": (37, 32),
    "densenet121": (120, 32),
    "googlenet": (57, 32),
    "inception_v3": (94, 96),
    "mobilenet_v2": (25, 32),
    "mobilenet_v3_small": (27, 32),
    "mnasnet0_5": (25, 32),
    "shufflenet_v2_x0_5": (18, 32),
    "efficientnet_b0": (40, 32),
    "efficientnet_v2_s": (75, 32),
    "regnet_y_400mf": (37, 32),
    "regnet_x_400mf": (27, 32),
    "convnext_tiny": (18, 32),
    "vit_b_16": (12, 224),
    "swin_t": (12, 64),
    "swin_v2_t": (12, 64),
    "maxvit_t": (47, 224),
}
QUICK = ("mnasnet0_5", "shufflenet_v2_x0_5", "squeezenet1_1", "regnet_x_400mf")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in FAMILIES]
)
def test_every_family_has_its_groups(name: str) -> None:
    groups, size = FAMILIES[name]
    model = models.build(name, 4)
    found = find_groups(model, images(size), outputs=[models.head_name(model)])
    assert len(found.groups) == groups
    makers = {layer for group in found.groups for layer in group.makers(model)}
    layers = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert layers - makers <= set(found.left_out)  # what is left out, is with a reason


def test_finding_groups_leaves_the_model_as_it_was() -> None:
    model = network("residual").train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    find_groups(model, FORWARD, outputs=["fc"])
    assert model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# ------------------------------------------------------------------------- masked is compact


@settings(max_examples=15, deadline=None)
@given(name=st.sampled_from(sorted(HEADS)), seed=st.integers(0, 2**31), density=st.floats(0, 1))
def test_masked_and_compact_give_the_same_outputs(name: str, seed: int, density: float) -> None:
    model = network(name).double()
    groups = find_groups(model, FORWARD, outputs=[HEADS[name]]).groups
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for group in groups:
        mask = torch.rand(group.units, generator=generator) < density
        mask[int(torch.randint(group.units, (1,), generator=generator))] = True
        kept[group.name] = mask
    zeroed = masked(model, kept, groups)
    smaller = compaction.compact(zeroed, groups, kept)
    assert difference(FORWARD(zeroed), FORWARD(smaller)) < 1e-12
    zeros = sum(int((p == 0).sum()) for p in zeroed.parameters())
    whole = sum(p.numel() for p in model.parameters())
    # nothing but what the masks say is gone; a grouped convolution's rows count as its columns
    assert sum(p.numel() for p in smaller.parameters()) == whole - zeros


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", "fc"),
        ("densenet121", "classifier"),
        ("mobilenet_v3_small", "classifier.3"),
        *(
            pytest.param(name, head, marks=pytest.mark.slow)
            for name, head in {
                "alexnet": "classifier.6",
                "vgg16": "classifier.6",
                "resnet50": "fc",
                "resnext50_32x4d": "fc",
                "mobilenet_v2": "classifier.1",
                "efficientnet_b0": "classifier.1",
                "regnet_y_400mf": "fc",
                "convnext_tiny": "classifier.2",
            }.items()
        ),
    ],
)
def test_real_architectures_lose_half_their_channels_and_keep_their_outputs(
    name: str, head: str
) -> None:
    torch.manual_seed(0)
    model = trained_looking(torchvision.models.get_model(name, num_classes=4)).double()
    forward = images(64)
    groups = find_groups(model, forward, outputs=[head]).groups
    kept = {g.name: torch.arange(g.units) % 2 == 0 for g in groups}
    zeroed = masked(model, kept, groups)
    smaller = compaction.compact(zeroed, groups, kept)
    assert difference(forward(zeroed), forward(smaller)) < 1e-9
    whole, left = (sum(p.numel() for p in m.parameters()) for m in (model, smaller))
    assert left < 0.6 * whole


def test_the_original_is_untouched_and_the_compact_model_trains_on() -> None:
    model = network("residual")
    before = copy.deepcopy(model.state_dict())
    groups = find_groups(model, FORWARD, outputs=["fc"]).groups
    kept = {g.name: torch.arange(g.units) % 2 == 0 for g in groups}
    smaller = compaction.compact(model, groups, kept).train()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    optimizer = torch.optim.SGD(smaller.parameters(), 0.1)
    was = [p.detach().clone() for p in smaller.parameters()]
    FORWARD(smaller).square().mean().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(was, smaller.parameters(), strict=True))


def test_nothing_left_of_a_group_is_refused() -> None:
    model = plain()
    groups = find_groups(model, FORWARD, outputs=["8"]).groups
    with pytest.raises(ValueError, match="nothing would be left of 2"):
        compaction.compact(model, groups, {"2": torch.zeros(6, dtype=torch.bool)})


# ------------------------------------------------------------------------ unstructured, exactly


def test_filters_that_single_weights_emptied_are_dropped_only_when_they_are_silent() -> None:
    model = plain()
    convolution = model[0]
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.bias is not None
    with torch.no_grad():
        convolution.weight[[0, 1, 2]] = 0
        convolution.bias.copy_(torch.tensor([0.0, -1.0, 1.0, 0.0]))
    groups = find_groups(model, FORWARD, outputs=["8"]).groups
    kept = compaction.emptied(model, groups, FORWARD)
    # 0 is zero, 1 is zero after ReLU, 2 is a constant 1 that the next layer reads, 3 is alive
    assert kept["0"].tolist() == [False, False, True, True]
    assert kept["2"].all()
    smaller = compaction.compact(model, groups, kept)
    assert difference(FORWARD(model), FORWARD(smaller)) < 1e-6


def test_what_nobody_reads_is_dropped_and_then_what_only_that_read() -> None:
    model = plain()
    with torch.no_grad():
        model[8].weight[:, 4] = 0  # nobody reads neuron 4 of layer 6
        model[6].weight[:4, 0:4] = 0  # which alone read channel 0 of layer 2
    groups = find_groups(model, FORWARD, outputs=["8"]).groups
    kept = compaction.emptied(model, groups, FORWARD)
    assert kept["6"].tolist() == [True, True, True, True, False]
    assert kept["2"].tolist() == [False, True, True, True, True, True]
    smaller = compaction.compact(model, groups, kept)
    assert difference(FORWARD(model), FORWARD(smaller)) < 1e-6


def test_behind_batch_norm_an_empty_filter_is_a_constant_and_stays_unless_it_is_zero() -> None:
    model = network("residual")
    assert isinstance(model, Residual)
    norm = model.inner_norm[0]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        model.inner[0].weight[[1, 2]] = 0
        norm.bias[1], norm.bias[2] = -9.0, 9.0  # after ReLU 0, and not
    groups = find_groups(model, FORWARD, outputs=["fc"]).groups
    kept = compaction.emptied(model, groups, FORWARD)
    assert kept["inner.0"].tolist() == [True, False, True, True, True, True]
    smaller = compaction.compact(model, groups, kept)
    assert difference(FORWARD(model), FORWARD(smaller)) < 1e-6


def test_a_model_that_is_all_zero_keeps_one_unit_a_group() -> None:
    model = plain()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    groups = find_groups(plain(), FORWARD, outputs=["8"]).groups
    kept = compaction.emptied(model, groups, FORWARD)
    assert [int(kept[g.name].sum()) for g in groups] == [1, 1, 1]
    assert torch.equal(FORWARD(model), FORWARD(compaction.compact(model, groups, kept)))


@settings(max_examples=15, deadline=None)
@given(name=st.sampled_from(sorted(HEADS)), seed=st.integers(0, 2**31), density=st.floats(0, 0.3))
def test_compaction_of_random_single_weights_changes_no_output(
    name: str, seed: int, density: float
) -> None:
    model = network(name).double()
    groups = find_groups(model, FORWARD, outputs=[HEADS[name]]).groups
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= torch.rand(parameter.shape, generator=generator) < density
    before = FORWARD(model).detach()
    smaller = compaction.compact(model, groups, compaction.emptied(model, groups, FORWARD))
    after = FORWARD(smaller).detach()
    assert float((before - after).abs().max()) <= 1e-12 * max(1, float(before.max()))


# -------------------------------------------------------------------------- independent filters


def test_a_tied_unit_goes_if_any_of_its_filters_is_empty() -> None:
    model = network("residual")
    assert isinstance(model, Residual)
    with torch.no_grad():
        model.stem.weight[0] = 0
        model.outer[1].weight[5] = 0
        model.inner[1].weight[2] = 0
    groups = find_groups(model, FORWARD, outputs=["fc"]).groups
    kept = compaction.without_empty_filters(model, groups)
    assert kept["stem"].logical_not().nonzero().flatten().tolist() == [0, 5]
    assert kept["inner.0"].all()
    assert kept["inner.1"].logical_not().nonzero().flatten().tolist() == [2]


def test_a_union_that_covers_a_group_leaves_the_unit_with_the_largest_weights() -> None:
    model = network("residual")
    assert isinstance(model, Residual)
    with torch.no_grad():
        model.stem.weight[:4] = 0
        model.outer[0].weight[4:] = 0
        model.outer[1].weight[6] *= 100
    groups = find_groups(model, FORWARD, outputs=["fc"]).groups
    kept = compaction.without_empty_filters(model, groups)
    assert kept["stem"].nonzero().flatten().tolist() == [6]
    assert FORWARD(compaction.compact(model, groups, kept)).shape == (2, 3)


# ------------------------------------------------------------------------------------ structure


@pytest.mark.parametrize("name", sorted(HEADS))
def test_structure_brings_a_dense_model_to_the_shapes_of_the_compact_one(name: str) -> None:
    model = network(name)
    groups = find_groups(model, FORWARD, outputs=[HEADS[name]]).groups
    kept = {g.name: torch.arange(g.units) % 2 == 1 for g in groups}
    smaller = compaction.compact(model, groups, kept)
    rebuilt = compaction.resize(network(name), compaction.structure(smaller))
    rebuilt.load_state_dict(smaller.state_dict())
    assert torch.equal(FORWARD(rebuilt), FORWARD(smaller))


@pytest.mark.parametrize(
    ("sizes", "problem"),
    [
        ({"nope": {"out_features": 3}}, "no layer nope"),
        ({"8": {"__class__": 3}}, "__class__=3 is not a size"),
        ({"8": {"out_features": -3}}, "out_features=-3 is not a size"),
        ({"8": {"out_features": "3"}}, "'3' is not a size"),
    ],
)
def test_sizes_that_are_none_are_refused(sizes: dict[str, dict[str, int]], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        compaction.resize(plain(), sizes)
