"""Fingerprints tell results apart, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pruneflow.config import BenchmarkConfig, FinetuneConfig, resolve
from pruneflow.tracking import environment, fingerprints


def test_fingerprint_follows_what_decides_the_result_and_nothing_else() -> None:
    def fingerprint(**given: object) -> str:
        return fingerprints.fingerprint("finetune", resolve(FinetuneConfig, given), "data", None)

    same = fingerprint()
    assert fingerprint(preset="quick") == same
    assert fingerprint(data_dir="elsewhere") == same
    assert fingerprint(resume="never") == same
    assert fingerprint(seed=1) != same
    assert fingerprint(learning_rate=0.1) != same
    config = resolve(FinetuneConfig, {})
    assert fingerprints.fingerprint("finetune", config, "other data", None) != same
    assert fingerprints.fingerprint("finetune", config, "data", "base") != same
    assert fingerprints.fingerprint("prune_direct", config, "data", None) != same


def test_a_benchmarks_fingerprint_is_of_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def both() -> list[str]:
        configs = (resolve(BenchmarkConfig, {"device": device}) for device in ("cpu", "cuda"))
        return [fingerprints.benchmark_fingerprint(config, "pruned") for config in configs]

    monkeypatch.setattr(environment, "cpu", lambda: "a processor")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    cpu, cuda = both()
    assert both() == [cpu, cuda]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "another")
    assert both()[0] == cpu
    assert both()[1] != cuda
    monkeypatch.setattr(environment, "cpu", lambda: "another")
    assert both()[0] != cpu


def test_fingerprints_follow_the_content_of_a_weights_file(tmp_path: Path) -> None:
    def both() -> tuple[str, str]:
        config = resolve(FinetuneConfig, {"weights": str(tmp_path / "w.safetensors")})
        return (
            fingerprints.fingerprint("finetune", config, "data", None),
            fingerprints.workload_fingerprint(config, "data"),
        )

    (tmp_path / "w.safetensors").write_bytes(b"one")
    one = both()
    assert both() == one
    (tmp_path / "w.safetensors").write_bytes(b"two")
    assert both()[0] != one[0]
    assert both()[1] != one[1]
