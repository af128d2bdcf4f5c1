"""On a CUDA GPU: what the CPU's tests state of training, masks, resuming and timing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.tracking import MlflowClient
from torch import Tensor, nn

import pruneflow
from pruneflow.errors import InputError
from pruneflow.pruning.densities import SCOPES
from pruneflow.pruning.keeper import Keeper
from pruneflow.pruning.masks import Masks
from pruneflow.pruning.selection import select, select_pattern
from pruneflow.stages import experiment
from pruneflow.tracking import reader
from pruneflow.tracking.finished import load_checkpoint
from pruneflow.tracking.run import Run
from pruneflow.workloads import batches, training
from pruneflow.workloads.machine import Machine, callers_state_kept
from pruneflow.workloads.splits import Split
from pruneflow.workloads.training import Recipe, Snapshot

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA GPU here"),
]
GPU, CPU = Machine("cuda", "fp32", 1), Machine("cpu", "fp32", 1)
SMALL: dict[str, Any] = {
    "model": "mobilenet_v3_small",  # BatchNorm and dropout
    "image_size": 32,
    "train_limit": 100,
    "batch_size": 50,
    "threads": 1,
    "device": "cuda",
}
TIMES = ["score_seconds", "finetune_seconds", "evaluate_seconds"]


class Stop(KeyboardInterrupt):
    """What a test interrupts a run with."""


@pytest.fixture(autouse=True)
def modes() -> Iterator[None]:
    """Those that stages run in."""
    with callers_state_kept():
        yield


def samples(number: int) -> Split:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 255, (number, 16, 16, 3), dtype=np.uint8)
    return Split(images, generator.integers(0, 4, number))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 25, 4),
    )


def recipe(optimizer: str, **changes: Any) -> Recipe:
    given: dict[str, Any] = {"epochs": 3, "batch_size": 32, "learning_rate": 1e-2}
    given |= {"lr_schedule": "one_cycle", "weight_decay": 0.1, "image_size": 16, "seed": 1}
    return Recipe(**given | changes, optimizer=optimizer)


def flat(scores: Mapping[str, Tensor]) -> Any:
    return lambda name: scores[name].reshape(-1).__getitem__


def on_gpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cuda() for name, tensor in tensors.items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value.cpu(), other[name].cpu()) for name, value in one.items())


# --------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("size", [16, 12, 24])
def test_a_batch_is_the_cpus(size: int) -> None:
    data, index = samples(6), np.array([5, 0, 3])
    (images, labels), (expected, classes) = (
        batches.to_model(data, index, size, machine) for machine in (GPU, CPU)
    )
    assert isinstance(images, Tensor)
    assert isinstance(expected, Tensor)
    assert images.is_cuda
    assert images.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(images.cpu(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(labels.cpu(), classes)


def test_a_batch_is_whole_however_long_the_gpu_is_busy() -> None:
    data = samples(512)
    index = np.arange(512)
    busy = torch.randn(4096, 4096, device="cuda")
    expected, _ = batches.to_model(data, index, 16, CPU)
    assert isinstance(expected, Tensor)
    copies = []
    for _ in range(8):  # pinned memory is taken again only when its copy is through
        busy = busy @ busy / busy.norm()
        copies.append(batches.to_model(data, index, 16, GPU)[0])
    for copy in copies:
        torch.testing.assert_close(copy.cpu(), expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------ training and masks


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "nesterov"])
def test_pruned_stays_pruned_in_fused_steps(optimizer: str) -> None:
    model = GPU.move(network())
    parameters = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(4)
    kept = {n: torch.rand(p.shape, generator=generator) > 0.5 for n, p in parameters.items()}
    masks = Masks(parameters, on_gpu(kept))
    masks.apply(model)
    before = {name: value.detach().clone() for name, value in parameters.items()}
    keeper = Keeper(model, masks)
    for _ in training.fit(model, samples(96), recipe(optimizer), GPU, after_step=keeper):
        for name, value in model.named_parameters():
            assert not value[~masks[name]].any(), name
    moved = {
        name: value[masks[name]] != before[name][masks[name]] for name, value in parameters.items()
    }
    assert all(bool(entries.any()) for entries in moved.values())


def test_a_training_learns_and_is_the_cpus_but_for_rounding() -> None:
    def trained(machine: Machine) -> tuple[list[float], nn.Module]:
        model = machine.move(network())
        changes = {"epochs": 2, "learning_rate": 1e-3}
        losses = [
            e.loss for e in training.fit(model, samples(96), recipe("sgd", **changes), machine)
        ]
        return losses, model

    (losses, model), (expected, of_cpu) = trained(GPU), trained(CPU)
    np.testing.assert_allclose(losses, expected, rtol=1e-3)
    for value, other in zip(model.parameters(), of_cpu.parameters(), strict=True):
        torch.testing.assert_close(value.cpu(), other, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("given", [{}, {"precision": "bf16"}, {"optimizer": "sgd"}])
def test_a_run_is_the_same_to_the_last_bit(folder: Path, given: dict[str, Any]) -> None:
    states = []
    for _ in range(2):
        done = pruneflow.finetune(**SMALL | given, epochs=2, resume="never")
        states.append(load_checkpoint(done.run_id, 0).state)
    assert same(*states)
    described = json.loads(reader.text_of(done.run_id, "environment.json"))
    assert described["gpu"] == torch.cuda.get_device_name()
    assert (described["tf32"], described["deterministic"]) == (False, True)
    assert "pruneflow.nondeterministic" not in MlflowClient().get_run(done.run_id).data.tags


def test_texts_are_the_same_to_the_last_bit(folder: Path) -> None:
    given = {"model": "bert", "dataset": "reviews", "train_limit": 60, "batch_size": 20}
    given |= {"device": "cuda", "epochs": 1, "resume": "never"}
    done = [pruneflow.finetune(**given) for _ in range(2)]
    assert same(*(load_checkpoint(one.run_id, 0).state for one in done))
    tags = MlflowClient().get_run(done[0].run_id).data.tags
    assert "pruneflow.nondeterministic" not in tags


def test_an_operation_that_has_no_fixed_order_is_recorded(folder: Path) -> None:
    given = SMALL | {"model": "alexnet", "image_size": 64, "train_limit": 40, "batch_size": 20}
    done = pruneflow.finetune(**given, epochs=1)
    tags = MlflowClient().get_run(done.run_id).data.tags
    assert tags["pruneflow.nondeterministic"] == "adaptive_avg_pool2d_backward_cuda"
    described = json.loads(reader.text_of(done.run_id, "environment.json"))
    assert described["deterministic"] is False


def test_float32_is_not_rounded_to_tf32_whatever_the_caller_allows() -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    a, b = (torch.randn(512, 512, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    image, kernel = a.view(1, 64, 64, 64), b.view(64, 64, 8, 8)
    exact = (a.double() @ b.double(), nn.functional.conv2d(image.double(), kernel.double()))
    matmul.allow_tf32 = cudnn.allow_tf32 = True
    try:
        with callers_state_kept():
            found = (a.cuda() @ b.cuda(), nn.functional.conv2d(image.cuda(), kernel.cuda()))
        assert matmul.allow_tf32
        assert cudnn.allow_tf32
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
    for one, other in zip(found, exact, strict=True):  # TF32 is off by some 3e-4
        assert float((one.cpu() - other).abs().max() / other.abs().max()) < 2e-5


# ------------------------------------------------------------------------- selection and compaction


@pytest.mark.parametrize("scope", [name for name, scope in SCOPES.items() if not scope.of_curves])
@pytest.mark.parametrize("entries", [1_000, 3_000_000])  # looked at exactly, and by a sample first
def test_masks_are_the_cpus(scope: str, entries: int) -> None:
    generator = torch.Generator().manual_seed(3)
    shapes = {"a": (entries // 50, 10, 5), "b": (100, entries // 200), "c": (64,)}
    scores = {n: torch.randn(s, generator=generator).abs() for n, s in shapes.items()}
    scores["a"][3] = 0.25  # equal ones
    if SCOPES[scope].rescale is None:
        scores["b"][:, 1] = torch.inf  # stays
    masks = Masks.keep_all(scores)
    of_gpu = Masks.keep_all(on_gpu(scores))
    for fraction in (0.3, 0.6):
        masks = select(masks, flat(scores), fraction=fraction, scope=scope)
        of_gpu = select(of_gpu, flat(on_gpu(scores)), fraction=fraction, scope=scope)
        assert same(masks, of_gpu)
    assert masks.kept < 0.5 * masks.total


def test_patterns_are_the_cpus() -> None:
    generator = torch.Generator().manual_seed(3)
    scores = {"a": torch.randint(0, 9, (60, 34, 3, 3), generator=generator).float()}
    given: dict[str, Any] = {"keep": 2, "block": 4, "inputs": {"a": 1}}
    masks = select_pattern(Masks.keep_all(scores), flat(scores), **given)
    scores = on_gpu(scores)
    assert same(masks, select_pattern(Masks.keep_all(scores), flat(scores), **given))


@pytest.mark.parametrize(
    "given",
    [
        {"scope": "lamp"},
        {"granularity": "channel", "target_sparsity": 0.5},
        {"granularity": "channel", "target_sparsity": 0.5, "form": "compact"},
    ],
)
def test_a_level_of_the_same_base_is_the_cpus(folder: Path, given: dict[str, Any]) -> None:
    base = pruneflow.finetune(**SMALL | {"device": "cpu"}, epochs=1)
    given = SMALL | {"target_sparsity": 0.8, "finetune_epochs": 0, "recalibrate_bn": False} | given
    on_cpu, done = (
        pruneflow.prune_direct(**given | {"device": device, "base_run": base.run_id})
        for device in ("cpu", "cuda")
    )
    levels = [load_checkpoint(one.run_id, 1) for one in (on_cpu, done)]
    assert same(levels[0].masks, levels[1].masks)
    assert same(levels[0].state, levels[1].state)
    accuracies = [one.levels["test_after"] for one in (on_cpu, done)]
    np.testing.assert_allclose(*accuracies, atol=0.02)


# ----------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize(
    "given",
    [
        {"optimizer": "adamw"},
        {"optimizer": "sgd", "precision": "bf16"},
        {"granularity": "channel", "form": "compact"},
    ],
)
def test_a_run_that_goes_on_has_the_levels_of_one_that_never_stopped(
    folder: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    monkeypatch.setattr(experiment, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(experiment, "_SAVE_SHARE", 1e9)
    given = SMALL | {"base_epochs": 1, "iterations": 2, "finetune_epochs": 2} | given
    whole = pruneflow.prune_iterative(**given, resume="never")
    MlflowClient().delete_run(whole.run_id)
    save = Run.save_training

    def saving(run: Run, level: int, snapshot: Snapshot) -> None:
        save(run, level, snapshot)
        if level == 2:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save_training", saving)
        with pytest.raises(Stop):
            pruneflow.prune_iterative(**given)
    torch.cuda.manual_seed_all(99)  # as another process would begin
    done = pruneflow.prune_iterative(**given)
    assert MlflowClient().get_run(done.run_id).data.tags["pruneflow.resumed_from"] == "level 1"
    pd.testing.assert_frame_equal(
        done.levels.drop(columns=TIMES), whole.levels.drop(columns=TIMES), check_exact=True
    )
    assert same(*(load_checkpoint(one.run_id, 2).state for one in (whole, done)))


# ---------------------------------------------------------------------------------------- latency


@pytest.fixture(scope="module")
def pruned(folder: Path) -> pruneflow.stages.FinishedRun:
    """Half of the channels of a network with tied layers, trained on after in bf16."""
    given = SMALL | {"model": "resnet18", "precision": "bf16", "granularity": "channel"}
    return pruneflow.prune_direct(**given, base_epochs=1, finetune_epochs=1, target_sparsity=0.5)


def test_bf16_trains_float32_weights_that_stay_pruned(pruned: Any) -> None:
    level = load_checkpoint(pruned.run_id, 1)
    assert pruned.levels["sparsity"].iloc[1] > 0.3
    for name, mask in level.masks.items():
        assert level.state[name].dtype == torch.float32
        assert not level.state[name][~mask].any()


def test_forms_are_timed_on_both_devices_and_compact_is_masked(pruned: Any) -> None:
    done = pruneflow.benchmark_latency(
        run=pruned.run_id, device="cpu,cuda", threads=1, batch_sizes="1,8", rounds=3, seconds=2.0
    )
    rows = done.latencies[(done.latencies["level"] == 1) & (done.latencies["form"] != "sparse")]
    assert set(rows["device"]) == {"cpu", "cuda"}
    for device, of_device in rows.groupby("device"):
        assert set(of_device["form"]) == {"dense", "masked", "compact"}
        assert set(of_device["status"]) == {"ok"}
        assert (of_device["p50_ms"] > 0).all()
        assert (of_device["peak_memory_bytes"] > of_device["weight_bytes"]).all()
        named = of_device["machine"].str.startswith(torch.cuda.get_device_name())
        assert named.all() if device == "cuda" else not named.any()
        compact = of_device[of_device["form"] == "compact"]
        assert (compact["difference"] < 1e-4).all()
    described = json.loads(reader.text_of(done.run_id, "environment.json"))
    assert (described["tf32"], described["deterministic"]) == (False, False)


# ---------------------------------------------------------------------------------------- devices


def test_a_gpu_by_its_number_is_the_same_experiment(folder: Path) -> None:
    done = pruneflow.finetune(**SMALL, epochs=1, seed=5)
    again = pruneflow.finetune(**SMALL | {"device": "cuda:0"}, epochs=1, seed=5)
    assert again.run_id == done.run_id
    other = pruneflow.finetune(**SMALL | {"device": "cuda:0"}, epochs=1, seed=6)
    assert json.loads(reader.text_of(other.run_id, "config.json"))["device"] == "cuda:0"


def test_a_gpu_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"device='cuda:99' is not available.*valid: .*cuda:0"):
        pruneflow.finetune(**SMALL | {"device": "cuda:99"}, epochs=1)
    with pytest.raises(InputError, match=r"device='cuda:99' is not available.*valid: cpu.*cuda:0"):
        pruneflow.benchmark_latency(device="cuda:99")


def test_runs_on_the_cpu_leave_the_gpu_alone(folder: Path) -> None:
    """Not even a context, which takes hundreds of megabytes of its memory."""
    script = """
        import torch, pruneflow
        from pruneflow.stages import experiment
        experiment.SAVE_SECONDS = 0.0
        given = {"model": "squeezenet1_1", "image_size": 32, "train_limit": 40, "batch_size": 20}
        given |= {"base_epochs": 2, "finetune_epochs": 2, "device": "cpu", "threads": 1}
        done = pruneflow.prune_direct(target_sparsity=0.5, **given)
        pruneflow.benchmark_latency(
            run=done.run_id, device="cpu", threads=1, batch_sizes=1, rounds=3, seconds=0.2
        )
        assert not torch.cuda.is_initialized(), "PyTorch has initialised CUDA"
        assert not torch._C._cuda_hasPrimaryContext(0), "there is a context"
    """
    lines = "\n".join(line[8:] for line in script.splitlines())
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
