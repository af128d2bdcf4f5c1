"""Measurements of speed that are remembered between runs: a file of one JSON object a kind."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path


def file_of(kind: str) -> Path:
    """Where measurements of a kind are remembered: in PRUNEFLOW_CACHE, or the user's cache."""
    return Path(os.environ.get("PRUNEFLOW_CACHE") or user_cache_path("pruneflow")) / f"{kind}.json"


def of_machine() -> list[str]:
    """What every measurement hangs on: threads, PyTorch, the processor's kind, the machine."""
    import torch

    version, capability = f"torch {torch.__version__}", torch.backends.cpu.get_cpu_capability()
    return [f"{torch.get_num_threads()} threads", version, capability, platform.node()]


def read(path: Path) -> dict[str, Any]:
    """What is remembered; nothing where there is no file, or none that can be read."""
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def remember(path: Path, new: Mapping[str, Any]) -> None:
    """Add to what is remembered; where that cannot be written, it is measured again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(read(path) | dict(new), file, indent=0, sort_keys=True)
        os.replace(file.name, path)  # whole or not at all, whoever else writes
    except OSError:
        return
