"""Fingerprints: hashes of what decides a result, by which runs that are the same are found."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pruneflow.config import BenchmarkConfig, Settings
from pruneflow.errors import user_path
from pruneflow.tracking import environment
from pruneflow.version import __version__

# What does not decide a run's result: the preset's values are there one by one, what a folder
# or a base run holds counts, not where it lies.
_NOT_DECIDING = {"preset", "data_dir", "base_run", "base_epochs", "resume"}


def fingerprint(stage: str, config: Settings, data_digest: str, base: str | None) -> str:
    """Hash of everything that decides a run's result; the same for the same experiment."""
    deciding = {k: v for k, v in config.model_dump().items() if k not in _NOT_DECIDING}
    deciding["weights"] = _weights(config)
    return _hash(stage, __version__, deciding, data_digest, base)


def benchmark_fingerprint(config: BenchmarkConfig, pruned: str) -> str:
    """Hash of what a benchmark times, how and where.

    Args:
        config: its own, devices resolved.
        pruned: fingerprint of the pruning run.
    """
    machines = [environment.machine(device) for device in config.device]
    how = {k: v for k, v in config.model_dump().items() if k not in ("run", "study", "model")}
    return _hash("benchmark_latency", __version__, how, pruned, machines)


def workload_fingerprint(config: Settings, data_digest: str) -> str:
    """Hash of model, data, weights, preset and seed: what a base run is found by."""
    names = ("model", "preset", "seed", "image_size")
    values = {name: getattr(config, name) for name in names} | {"weights": _weights(config)}
    return _hash(__version__, values, data_digest)


def _weights(config: Settings) -> str:
    """What tells weights apart: their name, or of a file or folder the hash of its content."""
    if config.weights == "pretrained" and config.model.startswith("hf:"):
        path = user_path("model", config.model.removeprefix("hf:"))
    elif config.weights in ("none", "pretrained"):
        return config.weights
    else:
        path = user_path("weights", config.weights)
    if path.is_dir():
        return _hash(*(_content(file) for file in sorted(path.glob("*")) if file.is_file()))
    # what is no file is refused when it is read; a run that has its base never reads it
    return _content(path) if path.is_file() else config.weights


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
