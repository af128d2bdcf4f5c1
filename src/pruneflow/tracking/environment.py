"""What a run ran on and with: recorded so that its times and last digits can be explained."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import psutil
import torch

from pruneflow.version import __version__

_PACKAGES = (
    "torch", "torchvision", "torch-pruning", "transformers", "mlflow", "numpy", "datasets",
    "safetensors", "pandas", "onnx", "onnxruntime", "openvino",
)  # fmt: skip


def describe(devices: Sequence[str] = ()) -> dict[str, object]:
    """Versions, processors, threads, memory, and the commit of the source that ran.

    Of what is computed on a GPU its name, whether TF32 was allowed, and whether each operation was
    to give the same bits each time. A GPU that is not used is not asked: that takes memory of it.
    """
    gpus = [torch.cuda.get_device_name(device) for device in devices if device.startswith("cuda")]
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    modes = {
        "tf32": matmul.allow_tf32 or cudnn.allow_tf32,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {"pruneflow": __version__, **_installed()},
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "gpu": ", ".join(gpus) or None,
        **(modes if gpus else {}),
        "git": _git_state(),
    }


def _installed() -> dict[str, str]:
    """Versions of the packages that are installed."""
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def cpu() -> str:
    """The processor's name."""
    described = Path("/proc/cpuinfo")
    text = described.read_text("utf-8") if described.exists() else ""
    named = re.search(r"^model name\s*: *(.+?) *$", text, re.MULTILINE)
    return named[1] if named else platform.processor() or platform.machine()


def machine(device: str) -> str:
    """What times on a device hang on: the processor's name, before it the GPU's on CUDA."""
    return cpu() if device == "cpu" else f"{torch.cuda.get_device_name(device)}, {cpu()}"


def _git_state() -> dict[str, object] | None:
    """Commit of the checkout that the package's source lies in; None if it is in none."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.check_output(
            command, stderr=subprocess.DEVNULL, text=True, timeout=10
        ).strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # else it is another's checkout
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
