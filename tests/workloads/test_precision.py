"""Precision is measured on the model at hand, remembered, and leaves no trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pruneflow.workloads import precision
from pruneflow.workloads.precision import Measured, measure
from pruneflow.workloads.training import Machine

CPU = Machine("cpu", "fp32", 1)


class Slow(nn.Module):
    """Takes a time of its own in each precision: so many products of a matrix."""

    def __init__(self, products: dict[torch.dtype, int]) -> None:
        super().__init__()
        self.products = products
        self.layer = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(4)
        self.seen: list[torch.dtype] = []

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(self.norm(images))
        self.seen.append(logits.dtype)
        matrix = torch.ones(200, 200)
        for _ in range(self.products[logits.dtype]):
            matrix = (matrix.mul(0.5)).add(0.5)
        return logits


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEFLOW_CACHE", str(tmp_path))


def timed(fp32: int = 1, bf16: int = 1) -> tuple[nn.Module, Tensor]:
    return Slow({torch.float32: fp32, torch.bfloat16: bf16}), torch.randn(8, 4)


@pytest.mark.parametrize(("fp32", "bf16", "choice"), [(300, 1, "bf16"), (1, 300, "fp32")])
def test_the_faster_precision_is_chosen(fp32: int, bf16: int, choice: str) -> None:
    assert measure("m", lambda: timed(fp32, bf16), CPU).choice == choice


def test_what_is_hardly_faster_is_not_chosen() -> None:
    assert Measured(fp32_ms=11.4, bf16_ms=10.0).choice == "fp32"
    assert Measured(fp32_ms=11.6, bf16_ms=10.0).choice == "bf16"
    assert str(Measured(20.0, 10.0)) == "bf16: a step takes 10.0 ms in bf16, 20.0 in fp32"


def test_it_is_measured_once_for_each_model_and_number_of_threads() -> None:
    asked: list[str] = []

    def build() -> tuple[nn.Module, Tensor]:
        asked.append("again")
        return timed()

    first = measure("m", build, CPU)
    assert measure("m", build, CPU) == first
    assert len(asked) == 1
    measure("other", build, CPU)
    assert len(asked) == 2
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        measure("m", build, CPU)
    finally:
        torch.set_num_threads(threads)
    assert len(asked) == 3


@pytest.mark.parametrize(
    "known", [1, {}, {"fp32_ms": "a", "bf16_ms": 1.0}, {"fp32_ms": -1.0, "bf16_ms": 1.0}]
)
def test_what_is_remembered_wrongly_is_measured_again(tmp_path: Path, known: object) -> None:
    measure("m", timed, CPU)
    path = tmp_path / "precision.json"
    (key,) = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({key: known}), "utf-8")
    again = measure("m", timed, CPU)
    assert again.fp32_ms > 0
    assert json.loads(path.read_text("utf-8"))[key] == {
        "fp32_ms": again.fp32_ms,
        "bf16_ms": again.bf16_ms,
    }


def test_nothing_is_changed_by_it() -> None:
    model, inputs = timed()
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    measure("m", lambda: (model, inputs), CPU)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_both_precisions_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision.copy, "deepcopy", lambda model: model)
    model, inputs = timed()
    measure("m", lambda: (model, inputs), CPU)
    seen = model.seen
    assert len(seen) >= 8
    assert set(seen[::2]) == {torch.float32}
    assert set(seen[1::2]) == {torch.bfloat16}
