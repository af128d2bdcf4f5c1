"""Statistics are those of a plain loop over the samples, and looking changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
import transformers
from torch import Tensor, nn
from torch.nn import functional

from pruneflow.pruning.criteria import FLOW_GRADIENT, GRADIENT, INPUT_NORM, SQUARED_GRADIENT
from pruneflow.pruning.statistics import Batch, Statistics, collect, collect_flow, over_entries

ALL = (GRADIENT, SQUARED_GRADIENT, INPUT_NORM)


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 5),
    )


def batches(*sizes: int) -> list[Batch]:
    torch.manual_seed(1)
    return [(torch.randn(n, 3, 6, 6), torch.randint(0, 5, (n,))) for n in sizes]


def collected(model: nn.Module, given: list[Batch], needs: tuple[str, ...] = ALL) -> Statistics:
    return collect(model, [n for n, _ in model.named_parameters()], lambda: given, needs)


def test_gradients_are_means_over_samples_and_their_squares_over_batches() -> None:
    model, given = small_net(), batches(4, 4, 3)
    statistics = collected(model, given)
    model.eval()
    mean = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    squares = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for images, labels in given:
        model.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        for name, p in model.named_parameters():
            assert p.grad is not None
            mean[name] += p.grad * len(labels) / 11
            squares[name] += p.grad.square() / 3
    for name in mean:
        torch.testing.assert_close(statistics.gradient[name], mean[name])
        torch.testing.assert_close(statistics.squared_gradient[name], squares[name])


def test_columns_are_what_a_layers_inputs_are() -> None:
    model, given = small_net(), batches(4, 4, 3)
    statistics = collected(model, given, (INPUT_NORM,))
    model.eval()
    seen = torch.cat([model[:3](images) for images, _ in given]).detach().transpose(0, 1).flatten(1)
    columns = statistics.columns["3.weight"]
    assert columns.count == seen.shape[1]
    torch.testing.assert_close(columns.norm.float(), seen.norm(dim=1))
    torch.testing.assert_close(columns.mean.float(), seen.mean(1))
    torch.testing.assert_close(columns.variance.float(), seen.var(1, correction=0))
    torch.testing.assert_close(columns.zero_share.float(), (seen == 0).float().mean(1))
    assert statistics.columns.keys() == {"0.weight", "3.weight", "6.weight"}


def test_a_column_of_a_grouped_convolution_is_the_channel_that_it_reads() -> None:
    weight = torch.zeros(4, 2, 3, 3)  # two groups: outputs 0, 1 read channels 0, 1; 2, 3 read 2, 3
    entries = over_entries(torch.tensor([10.0, 11, 12, 13]), weight, 1)
    assert entries.shape == weight.shape
    assert entries[:, :, 1, 2].tolist() == [[10, 11], [10, 11], [12, 13], [12, 13]]


class Recurrent(nn.Module):
    """What reads its inputs along another axis, or within one operation of a library."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 8, 3)
        self.grouped = nn.ConvTranspose2d(8, 4, 2, groups=2)
        self.rnn = getattr(nn, kind)(4, 6, batch_first=True, num_layers=2, bidirectional=True)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = self.grouped(self.up(x)).flatten(2).transpose(1, 2)
        return self.head(self.rnn(features)[0].mean(1))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_transposed_convolutions_and_recurrent_layers_are_seen(kind: str) -> None:
    torch.manual_seed(0)
    model, given = Recurrent(kind), batches(4, 3)
    statistics = collected(model, given)
    weights = {name for name, p in model.named_parameters() if p.dim() > 1}
    assert statistics.columns.keys() == weights
    assert statistics.columns["up.weight"].axis == statistics.columns["grouped.weight"].axis == 0
    with torch.no_grad():
        images = torch.cat([images for images, _ in given])
        up = model.up(images)
        features = model.grouped(up).flatten(2).transpose(1, 2)
    read = {
        "up.weight": images.transpose(0, 1).flatten(1),
        "grouped.weight": up.transpose(0, 1).flatten(1),
        "rnn.weight_ih_l0": features.flatten(0, 1).T,
        "rnn.weight_ih_l0_reverse": features.flatten(0, 1).T,
    }
    for name, values in read.items():
        norm = statistics.columns[name].norm.float()
        torch.testing.assert_close(norm, values.norm(dim=1))
        if name == "grouped.weight":  # (inputs, outputs of a group, ...)
            entries = over_entries(norm, model.grouped.weight, 0)
            torch.testing.assert_close(entries[:, 1, 0, 1], norm)


@pytest.mark.parametrize("training", [True, False])
def test_collecting_leaves_a_model_as_it_was(training: bool) -> None:
    model = small_net().train(training)
    model[6].weight.requires_grad_(False)
    functional.cross_entropy(model(batches(4)[0][0]), batches(4)[0][1]).backward()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    given = batches(4, 2)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    collected(model, given, (*ALL, FLOW_GRADIENT))
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert all(p.grad is gradients[n] for n, p in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training == training
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["6.weight"]


def test_signs_survive_the_flow_to_the_last_bit() -> None:
    model = small_net()
    with torch.no_grad():
        model[0].weight[0].fill_(-0.0)
    before = model[0].weight.detach().clone()
    collected(model, batches(2), (FLOW_GRADIENT,))
    assert torch.equal(before.view(torch.int32), model[0].weight.view(torch.int32))


def test_the_flow_is_the_product_of_absolute_weights() -> None:
    """Two linear layers: R = 1' |B| |A| 1, so dR/dA = (|B|' 1) 1'."""
    torch.manual_seed(0)
    first, second = nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)
    flow = collect_flow(nn.Sequential(first, second), ["0.weight", "1.weight"], torch.zeros(5, 3))
    expected = second.weight.abs().sum(0)[:, None].expand(4, 3)
    torch.testing.assert_close(flow["0.weight"], expected)
    torch.testing.assert_close(flow["1.weight"], first.weight.abs().sum(1).expand(2, 4))


def test_a_flow_that_overflows_float32_is_taken_in_float64() -> None:
    model = nn.Sequential(*[nn.Linear(4, 4, bias=False) for _ in range(30)])
    with torch.no_grad():
        for layer in model:
            layer.weight.fill_(-10.0)
    names = [n for n, _ in model.named_parameters()]
    flow = collect_flow(model, names, torch.zeros(1, 4))
    assert flow["0.weight"].dtype == torch.float64
    assert float(flow["0.weight"][0, 0]) == pytest.approx(40.0**29 * 4 / 4, rel=1e-9)
    with torch.no_grad():
        for layer in model:
            layer.weight.fill_(1e12)
    with pytest.raises(ValueError, match="not finite"):
        collect_flow(model, names, torch.zeros(1, 4))


def encoder(kind: str) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "gpt2":
        config = transformers.GPT2Config(
            n_embd=16, n_layer=2, n_head=2, vocab_size=50, pad_token_id=0, num_labels=3
        )
        return transformers.GPT2ForSequenceClassification(config)
    config = transformers.BertConfig(**sizes, intermediate_size=24, vocab_size=50, num_labels=3)
    return transformers.BertForSequenceClassification(config)


def texts() -> list[Batch]:
    ids = torch.tensor([[4, 5, 6, 7], [8, 9, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    return [(inputs, torch.tensor([0, 2]))]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_padding_flows_into_nothing(kind: str) -> None:
    model = encoder(kind)
    needs = (*ALL, FLOW_GRADIENT)
    statistics = collect(model, [n for n, _ in model.named_parameters()], texts, needs)
    matrices = [n for n in statistics.columns if "layer.1" in n or "h.1" in n]
    assert len(matrices) == (6 if kind == "bert" else 4)
    for name in matrices:
        columns = statistics.columns[name]
        assert columns.count == 6, name
        weight = model.get_parameter(name)
        assert over_entries(columns.norm, weight, columns.axis).shape == weight.shape
        assert bool(statistics.flow_gradient[name].isfinite().all())


def test_attention_uses_weights_that_it_does_not_call() -> None:
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(
        image_size=8, patch_size=4, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=12,
        num_classes=5,
    )  # fmt: skip
    given: list[Batch] = [(torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))]
    columns = collected(model, given, (INPUT_NORM,)).columns
    attention = "encoder.layers.encoder_layer_0.self_attention"
    assert f"{attention}.in_proj_weight" in columns
    assert f"{attention}.out_proj.weight" in columns


def test_one_pass_collects_everything() -> None:
    passes = []

    def given() -> list[Batch]:
        passes.append(1)
        return batches(2)

    model = small_net()
    calls: list[Tensor] = []
    model[0].register_forward_hook(lambda m, i, output: calls.append(output))
    collect(model, [n for n, _ in model.named_parameters()], given, ALL)
    assert len(passes) == len(calls) == 1
