"""The study's own curves, beneath those of the runs that they can be compared with."""

from __future__ import annotations

import pytest
from frames import Frames
from records import latency

from pruneflow.paper.curves import OVERLAY, reference


def test_the_studys_numbers_are_carried() -> None:
    assert len(reference("accuracy")) > 80
    models = {"alexnet", "vgg16", "resnet18", "resnet50"}
    assert set(reference("latency")["model"]) == models
    assert reference("alexnet_layer_sparsity").shape == (16, 8)


@pytest.mark.parametrize(
    ("run", "last"),
    [
        ({"model": "alexnet", "dataset": "cifar10"}, 0.74),
        ({"model": "alexnet", "dataset": "cifar10", "criterion": "random"}, 0.1),
        ({"model": "alexnet", "dataset": "cifar10", "stage": "prune_direct"}, 0.8683),
        ({"model": "alexnet", "dataset": "cifar10", "fraction": 0.3}, None),
        ({"model": "alexnet", "dataset": "digits"}, None),
        ({"model": "mobilenet_v2", "dataset": "cifar10"}, None),
    ],
)
def test_accuracy_is_that_of_the_same_comparison(run: dict[str, object], last: float) -> None:
    runs = Frames()
    runs.prune(**run)  # type: ignore[arg-type]
    lines = OVERLAY.accuracy(runs.evidence().levels, "test")
    assert [line.y[-1] for line in lines] == [last] * (last is not None)
    assert all(line.reference and line.label == "test (the paper's)" for line in lines)


def test_times_are_of_the_same_model_at_the_nearest_size_or_the_same_batch() -> None:
    runs = Frames()
    rows = [latency(1, "dense", batch, 5.0, params_left=0.6) for batch in (4, 16)]
    runs.benchmark(runs.prune(model="resnet18"), rows)
    times = runs.evidence().latencies
    by_batch, compact = OVERLAY.times(times, "batch_size")
    assert list(by_batch.x) == [1, 4, 16, 64, 256]
    assert compact.y[-1] == 42.0959  # of 59.05 % left
    by_left, _ = OVERLAY.times(times[times["batch_size"] == 4], "params_left")
    assert 0.5905 in by_left.x
    assert max(by_left.y) < 4  # of a batch of 4
    other = Frames()
    other.benchmark(other.prune(model="mobilenet_v2"), rows)
    assert OVERLAY.times(other.evidence().latencies, "batch_size") == []
