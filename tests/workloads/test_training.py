"""Training: exact accuracy, reproducible bit for bit, and it learns."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pruneflow.errors import ExperimentError, InputError
from pruneflow.workloads import training
from pruneflow.workloads.datasets import load
from pruneflow.workloads.machine import Machine, callers_state_kept
from pruneflow.workloads.splits import MEAN, STD, Split
from pruneflow.workloads.training import Epoch, Recipe, accuracy, distillation, fit

CPU = Machine("cpu", "fp32", 1)
RECIPE = Recipe(
    epochs=1,
    batch_size=8,
    learning_rate=1e-3,
    lr_schedule="constant",
    optimizer="adamw",
    weight_decay=0.01,
    image_size=4,
    seed=0,
)


def samples(count: int, *, classes: int = 3, side: int = 4) -> Split:
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return Split(images, rng.integers(0, classes, count))


def shades(values: list[int], labels: list[int]) -> Split:
    """Images of one pixel each, whose every channel has the given value."""
    images = np.array(values, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    return Split(images, np.array(labels, dtype=np.int64))


class Reader(nn.Module):
    """Predicts the class whose number is the red value of the first pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        self.modes.append(self.training)
        red = ((images[:, 0, 0, 0] * STD[0] + MEAN[0]) * 255).round().long()
        return nn.functional.one_hot(red, 256).float()


class Recorder(nn.Module):
    """A linear classifier that keeps every batch it is shown."""

    def __init__(self, *, side: int = 4, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3 * side * side, classes)
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach().clone())
        return self.layer(images.flatten(1))  # type: ignore[no-any-return]


def net(*, side: int = 4, classes: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(16 * (side // 2) ** 2, classes),
    )


def train(
    model: nn.Module,
    data: Split,
    recipe: Recipe = RECIPE,
    *,
    after_step: Callable[[torch.optim.Optimizer], None] | None = None,
    on_progress: Callable[[int, float, float], None] | None = None,
) -> list[Epoch]:
    return list(fit(model, data, recipe, CPU, after_step=after_step, on_progress=on_progress))


# -------------------------------------------------------------------------------------- accuracy


def test_accuracy_is_correct_samples_over_samples_with_a_short_last_batch() -> None:
    # Two whole batches of 512 that are all wrong and a last one of 6 that is all right:
    # 6 / 1030, where the mean of the three batches would be 1 / 3.
    values = [index % 5 for index in range(1030)]
    labels = [value + 1 for value in values[:1024]] + values[1024:]
    model = Reader()
    found = accuracy(model, shades(values, labels), CPU, image_size=1, batch_size=2)
    assert model.batches == [512, 512, 6]
    assert found == 6 / 1030


@pytest.mark.parametrize(("right", "count"), [(0, 7), (1, 7), (7, 7), (3, 4)])
def test_accuracy_by_hand(right: int, count: int) -> None:
    labels = [index if index < right else index + 1 for index in range(count)]
    found = accuracy(Reader(), shades(list(range(count)), labels), CPU, image_size=1, batch_size=4)
    assert found == right / count


def test_accuracy_of_some_samples_is_theirs_alone() -> None:
    data = shades(list(range(6)), [0, 1, 2, 9, 9, 9])
    of = np.array([1, 2, 5])
    found = accuracy(Reader(), data, CPU, image_size=1, batch_size=2, subset=of)
    assert found == 2 / 3


def test_accuracy_does_not_depend_on_the_batch_size() -> None:
    model, data = net(), samples(1300)
    found = {accuracy(model, data, CPU, image_size=4, batch_size=size) for size in (1, 700, 5000)}
    assert len(found) == 1


@pytest.mark.parametrize("mode", [True, False])
def test_accuracy_is_measured_in_eval_mode_and_restores_the_mode(mode: bool) -> None:
    model = Reader().train(mode)
    accuracy(model, shades([1, 2], [1, 2]), CPU, image_size=1, batch_size=2)
    assert model.modes == [False]
    assert model.training is mode


@pytest.mark.parametrize("mode", [True, False])
def test_accuracy_restores_the_mode_when_the_model_fails(mode: bool) -> None:
    model = nn.Linear(1000, 2).train(mode)
    with pytest.raises(RuntimeError):
        accuracy(model, samples(4), CPU, image_size=4, batch_size=2)
    assert model.training is mode


def test_accuracy_leaves_weights_and_batchnorms_statistics_as_they_were() -> None:
    model = net().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    accuracy(model, samples(20), CPU, image_size=4, batch_size=8)
    changed = [n for n, value in model.state_dict().items() if not torch.equal(before[n], value)]
    assert changed == []


# ------------------------------------------------------------------------------ what models see


def test_models_see_normalised_float_images_with_channels_first() -> None:
    data, model = samples(3), Recorder()
    accuracy(model, data, CPU, image_size=4, batch_size=3)
    (seen,) = model.seen
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = ((data.samples / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert seen.dtype == torch.float32
    assert seen.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(seen.numpy(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("side", [2, 4, 9, 64])
def test_images_are_brought_to_the_image_size_and_one_colour_stays_one_colour(side: int) -> None:
    data = Split(np.full((2, 9, 9, 3), 100, dtype=np.uint8), np.array([0, 1]))
    model = Recorder(side=side)
    accuracy(model, data, CPU, image_size=side, batch_size=2)
    (seen,) = model.seen
    assert tuple(seen.shape) == (2, 3, side, side)
    expected = torch.tensor([(100 / 255 - m) / s for m, s in zip(MEAN, STD, strict=True)])
    torch.testing.assert_close(seen, expected.view(1, 3, 1, 1).expand(seen.shape))


def test_shrinking_takes_every_pixel_into_account() -> None:
    images = np.zeros((1, 16, 16, 3), dtype=np.uint8)
    images[0, ::4] = 255  # one row in four: without antialiasing, two pixels would miss it
    model = Recorder(side=2)
    accuracy(model, Split(images, np.array([0])), CPU, image_size=2, batch_size=1)
    red = (model.seen[0][0, 0] * STD[0] + MEAN[0]) * 255
    assert torch.all((red - 255 / 4).abs() < 12)


# ------------------------------------------------------------------------------------------- fit


def test_the_same_seed_gives_the_same_weights_bit_for_bit() -> None:
    data, recipe = samples(50), replace(RECIPE, epochs=2, lr_schedule="one_cycle")
    first, second = net(), net()
    torch.manual_seed(123)
    epochs = train(first, data, recipe)
    torch.manual_seed(456)  # dropout has to follow the recipe's seed, not what came before
    torch.rand(7)
    again = train(second, data, recipe)
    state = second.state_dict()
    assert [n for n, v in first.state_dict().items() if not torch.equal(v, state[n])] == []
    assert [(e.loss, e.accuracy) for e in epochs] == [(e.loss, e.accuracy) for e in again]


def test_another_seed_gives_other_weights() -> None:
    first, second = net(), net()
    train(first, samples(50))
    train(second, samples(50), replace(RECIPE, seed=1))
    assert not torch.equal(first[0].weight, second[0].weight)


def test_no_epochs_do_nothing() -> None:
    model, called = net().eval(), []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    generator = torch.get_rng_state()
    none = replace(RECIPE, epochs=0)
    assert train(model, samples(20), none, after_step=called.append) == []
    assert called == []
    assert torch.equal(torch.get_rng_state(), generator)
    assert not model.training
    changed = [n for n, value in model.state_dict().items() if not torch.equal(before[n], value)]
    assert changed == []


@pytest.mark.parametrize(
    ("count", "size", "batches"),
    [
        (16, 8, [8, 8]),
        (20, 8, [8, 8, 4]),
        (18, 8, [8, 8, 2]),
        (17, 8, [8, 9]),
        (9, 8, [9]),
        (5, 8, [5]),
        (1, 8, [1]),
    ],
)
def test_each_sample_is_seen_once_an_epoch_and_a_last_one_alone_joins_the_batch_before(
    count: int, size: int, batches: list[int]
) -> None:
    model, data, steps = Recorder(), samples(count), []
    recipe = replace(RECIPE, batch_size=size, epochs=2)
    train(model, data, recipe, after_step=lambda _: steps.append(len(model.seen)))
    assert [len(batch) for batch in model.seen] == batches * 2
    assert steps == list(range(1, 2 * len(batches) + 1))  # once a step, after its forward pass
    whole = Recorder()
    accuracy(whole, data, CPU, image_size=4, batch_size=count)
    expected = sorted(image.tolist() for image in whole.seen[0])
    for epoch in (model.seen[: len(batches)], model.seen[len(batches) :]):
        assert sorted(image.tolist() for image in torch.cat(epoch)) == expected


def test_the_order_changes_from_epoch_to_epoch() -> None:
    model = Recorder()
    train(model, samples(30), replace(RECIPE, batch_size=30, epochs=2))
    assert not torch.equal(model.seen[0], model.seen[1])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_after_step_is_called_with_the_weights_updated_and_what_it_sets_stays(
    optimizer: str,
) -> None:
    model, found = Recorder(), []
    start = model.layer.weight.detach().clone()

    def after(_: torch.optim.Optimizer) -> None:
        found.append(model.layer.weight.detach().clone())
        with torch.no_grad():
            model.layer.weight[:, :5] = 0

    train(model, samples(32), replace(RECIPE, optimizer=optimizer), after_step=after)
    assert len(found) == 4
    assert not torch.equal(found[0], start)
    assert int(found[1][:, :5].count_nonzero()) > 0  # the optimizer did bring them back
    assert int(model.layer.weight[:, :5].count_nonzero()) == 0


def test_epochs_report_the_mean_loss_and_accuracy_over_samples() -> None:
    # With a learning rate of zero the model is the same for every batch, also the short one.
    model, data = Recorder(), samples(21)
    epochs = train(model, data, replace(RECIPE, learning_rate=0.0, epochs=2))
    whole = Recorder()
    exact = accuracy(whole, data, CPU, image_size=4, batch_size=21)
    logits = whole.layer(whole.seen[0].flatten(1))
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(data.labels)).item()
    assert [epoch.number for epoch in epochs] == [1, 2]
    for epoch in epochs:
        assert epoch.accuracy == exact
        assert epoch.loss == pytest.approx(loss, rel=1e-5)
        assert epoch.seconds > 0
        assert epoch.samples_per_second == pytest.approx(21 / epoch.seconds)


def test_fit_leaves_the_model_in_training_mode_and_trains_in_it() -> None:
    model = net().eval()
    before = model[1].running_mean.clone()
    train(model, samples(20))
    assert all(module.training for module in model.modules())
    assert not torch.equal(model[1].running_mean, before)


def test_frozen_parameters_are_left_alone() -> None:
    model = net()
    model[0].weight.requires_grad_(False)
    frozen, free = model[0].weight.clone(), model[6].weight.detach().clone()
    train(model, samples(20))
    assert torch.equal(model[0].weight, frozen)
    assert not torch.equal(model[6].weight, free)


def test_progress_reaches_the_end_of_each_epoch_with_its_loss() -> None:
    told: list[tuple[int, float, float]] = []
    recipe = replace(RECIPE, epochs=2)
    epochs = train(net(), samples(20), recipe, on_progress=lambda *args: told.append(args))
    ends = [(number, loss) for number, share, loss in told if share == 1]
    assert ends == [(epoch.number, pytest.approx(epoch.loss, rel=1e-6)) for epoch in epochs]


def moves(recipe: Recipe) -> list[float]:
    """The largest move of a weight at each step; about the learning rate, for AdamW."""
    model = Recorder()
    weights = [model.layer.weight.detach().clone()]
    after = lambda _: weights.append(model.layer.weight.detach().clone())  # noqa: E731
    train(model, samples(160), recipe, after_step=after)
    return [float((b - a).abs().max()) for a, b in itertools.pairwise(weights)]


def test_one_cycle_rises_to_the_learning_rate_and_falls_to_nothing() -> None:
    recipe = replace(RECIPE, lr_schedule="one_cycle", epochs=5, weight_decay=0.0)
    found = moves(recipe)
    assert len(found) == 100
    peak = found.index(max(found))
    assert 20 <= peak <= 45  # after 30 % of the steps
    assert max(found) == pytest.approx(1e-3, rel=0.5)
    assert found[0] < max(found) / 10
    assert found[-1] < max(found) / 1000


def test_a_constant_learning_rate_does_not_fall() -> None:
    found = moves(replace(RECIPE, epochs=5, weight_decay=0.0))
    assert found[0] == pytest.approx(1e-3, rel=0.1)
    assert found[-1] > 1e-4


def test_one_cycle_of_a_single_step_trains() -> None:
    model = Recorder()
    before = model.layer.weight.detach().clone()
    train(model, samples(8), replace(RECIPE, lr_schedule="one_cycle"))
    assert not torch.equal(model.layer.weight, before)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "nesterov"])
def test_steps_are_those_of_pytorchs_own_optimizer(optimizer: str, smoothing: float) -> None:
    data = samples(24)
    recipe = replace(RECIPE, optimizer=optimizer, learning_rate=0.01, weight_decay=0.1, epochs=2)
    recipe = replace(recipe, label_smoothing=smoothing)
    model, other = Recorder(), Recorder()
    train(model, data, recipe)
    kind = (
        torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.1)
        if optimizer == "adamw"
        else torch.optim.SGD(
            other.parameters(),
            lr=0.01,
            momentum=0.9,
            weight_decay=0.1,
            nesterov=optimizer == "nesterov",
        )
    )
    whole = Recorder()
    accuracy(whole, data, CPU, image_size=4, batch_size=24)
    label_of = {
        tuple(x.flatten().tolist()): int(k) for x, k in zip(whole.seen[0], data.labels, strict=True)
    }
    for batch in model.seen:
        labels = torch.tensor([label_of[tuple(image.flatten().tolist())] for image in batch])
        kind.zero_grad()
        logarithms = nn.functional.log_softmax(other(batch), dim=1)
        right = logarithms.gather(1, labels[:, None])[:, 0]
        (-(1 - smoothing) * right - smoothing * logarithms.mean(1)).mean().backward()
        kind.step()
    torch.testing.assert_close(model.layer.weight, other.layer.weight)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_experiment_in_one_line(bad: float) -> None:
    model = Recorder()
    with torch.no_grad():
        model.layer.bias[0] = bad
    with pytest.raises(ExperimentError) as error:
        train(model, samples(20), replace(RECIPE, epochs=3))
    text = str(error.value)
    assert "epoch 1" in text
    assert "learning_rate=0.001" in text
    assert "\n" not in text
    assert len(model.seen) == 3  # it stopped with the first epoch


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match="optimizer 'adam' is none of adamw, sgd, nesterov"):
        train(net(), samples(8), replace(RECIPE, optimizer="adam"))


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="lr_schedule 'linear' is none of"):
        train(net(), samples(8), replace(RECIPE, lr_schedule="linear"))


def test_distillation_is_the_divergence_of_softened_outputs() -> None:
    student, teacher = np.random.default_rng(0).normal(size=(2, 7, 3))
    for temperature in (0.5, 1.0, 4.0):

        def soft(logits: np.ndarray, t: float = temperature) -> np.ndarray:  # type: ignore[type-arg]
            powers = np.exp(logits / t)
            return np.asarray(powers / powers.sum(1, keepdims=True))

        p, q = soft(teacher), soft(student)
        expected = temperature**2 * (p * np.log(p / q)).sum(1).mean()
        found = distillation(torch.tensor(student), torch.tensor(teacher), temperature)
        assert float(found) == pytest.approx(expected)
        assert float(distillation(torch.tensor(student), torch.tensor(student), temperature)) == 0


def test_a_teacher_is_only_looked_at_and_draws_nothing_of_the_students() -> None:
    """A student that is its own teacher is trained as alone, at a share of its loss."""
    models = []
    for share in (0.0, 0.5):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Dropout(0.5), nn.Linear(16, 3))
        teacher = None if share == 0 else copy.deepcopy(model)
        before = None if teacher is None else copy.deepcopy(teacher.state_dict())
        drawn: list[Tensor] = []
        model[2].register_forward_hook(lambda m, i, o, d=drawn: d.append(o.detach() == 0))
        recipe = replace(RECIPE, epochs=2, distill=share, learning_rate=1e-6)
        for _ in fit(model, samples(24), recipe, CPU, teacher=teacher):
            pass
        models.append(drawn)
        if teacher is not None and before is not None:
            assert all(torch.equal(before[n], t) for n, t in teacher.state_dict().items())
            assert teacher.training
    assert all(torch.equal(a, b) for a, b in zip(*models, strict=True))
    with pytest.raises(ValueError, match="go together"):
        train(net(), samples(8), replace(RECIPE, distill=0.5))


def test_a_small_network_learns_the_digits() -> None:
    data = load("digits", data_dir=None, image_size=8, train_limit=None, seed=0).train
    model = CPU.move(net(side=8, classes=10))
    recipe = replace(
        RECIPE, epochs=4, batch_size=32, learning_rate=1e-2, lr_schedule="one_cycle", image_size=8
    )
    before = accuracy(model, data, CPU, image_size=8, batch_size=512)
    epochs = train(model, data, recipe)
    after = accuracy(model, data, CPU, image_size=8, batch_size=512)
    assert before < 0.4
    assert after > 0.9
    assert epochs[-1].accuracy > 0.8
    assert epochs[-1].loss < epochs[0].loss


# --------------------------------------------------------------------------------------- machine


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_cuda_is_refused_where_there_is_none() -> None:
    with pytest.raises(InputError, match=r"device='cuda' is not available.*valid: auto, cpu"):
        Machine.choose("cuda", 1, cores=1)


def test_a_gpu_is_taken_by_its_number_and_refused_if_there_are_not_as_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Machine.choose("auto", 1, cores=1).device == "cuda"
    assert Machine.choose("cuda:1", 1, cores=1).device == "cuda:1"
    there = r"PyTorch sees 2 CUDA GPUs here \(valid: auto, cpu, cuda, cuda:0, cuda:1\)"
    with pytest.raises(InputError, match=f"device='cuda:2' is not available: {there}"):
        Machine.choose("cuda:2", 1, cores=1)


@pytest.mark.parametrize("name", ["allow_tf32", "fp32_precision"])
def test_a_stage_has_no_tf32_and_takes_no_convolution_by_its_time(name: str) -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if not hasattr(matmul, name):
        pytest.skip("PyTorch has it since 2.9")
    value = True if name == "allow_tf32" else "tf32"
    before = getattr(matmul, name), cudnn.benchmark
    try:
        setattr(matmul, name, value)
        cudnn.benchmark = True
        with callers_state_kept():
            assert not matmul.allow_tf32
            assert not cudnn.allow_tf32
            assert (cudnn.benchmark, cudnn.deterministic) == (False, True)
        assert getattr(matmul, name) == value
        assert (cudnn.benchmark, cudnn.deterministic) == (True, False)
    finally:
        matmul.allow_tf32 = False
        setattr(matmul, name, before[0])
        cudnn.benchmark = before[1]


@pytest.mark.usefixtures("no_gpu")
def test_auto_is_the_cpu_where_there_is_no_gpu() -> None:
    machine = Machine.choose("auto", 1, cores=4)
    assert machine == Machine("cpu", "fp32", 1)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(("threads", "cores", "expected"), [(None, 2, 2), (2, 2, 2), (1, 2, 1)])
def test_threads_are_those_asked_for_or_all_cores_and_pytorch_is_told(
    threads: int | None, cores: int, expected: int
) -> None:
    before = torch.get_num_threads()
    try:
        assert Machine.choose("cpu", threads, cores).threads == expected
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_bf16_computes_in_bf16_and_keeps_weights_and_optimizer_in_float32() -> None:
    kinds: list[torch.dtype] = []

    class Probe(Recorder):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            kinds.append(logits.dtype)
            return logits

    model = Probe()
    list(fit(model, samples(8), RECIPE, Machine("cpu", "bf16", 1)))
    list(fit(model, samples(8), RECIPE, CPU))
    assert kinds == [torch.bfloat16, torch.float32]
    assert model.layer.weight.dtype == torch.float32


def test_bf16_within_an_autocast_of_the_caller_sees_each_steps_weights() -> None:
    """As all stages run: what autocast remembers of weights is not forgotten within another."""
    recipe, machine = replace(RECIPE, epochs=3, learning_rate=0.1), Machine("cpu", "bf16", 1)
    trained, within = Recorder(), Recorder()
    list(fit(trained, samples(24), recipe, machine))
    with callers_state_kept(), torch.autocast("cpu", torch.bfloat16):
        list(fit(within, samples(24), recipe, machine))
    assert torch.equal(trained.layer.weight, within.layer.weight)


# ------------------------------------------------------------------------------ recalibration


def test_recalibrated_statistics_are_those_of_the_samples() -> None:
    """The oracle: one whole batch's own mean and variance, in float64."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3)
    model = nn.Sequential(convolution, nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.eval()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    data = Split(pixels, np.zeros(40, dtype=np.int64))
    recipe = Recipe(0, 40, 1e-3, "constant", "sgd", 0.0, 8, 0)
    training.recalibrate(model, data, recipe, Machine("cpu", "fp32", 1))
    scaled = (pixels / 255 - np.array(MEAN)) / np.array(STD)
    images = torch.from_numpy(scaled).permute(0, 3, 1, 2)
    with torch.no_grad():
        seen = convolution.double()(images)
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    torch.testing.assert_close(
        norm.running_mean.double(), seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(norm.running_var.double(), seen.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert not model.training
    assert norm.momentum == 0.1


def test_recalibration_leaves_weights_and_models_without_batch_norm_alone() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    data = Split(pixels, np.zeros(10, dtype=np.int64))
    recipe = Recipe(0, 5, 1e-3, "constant", "sgd", 0.0, 8, 0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    training.recalibrate(model, data, recipe, Machine("cpu", "fp32", 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
