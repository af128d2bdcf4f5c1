"""What a run ran on and with: recorded so that its times and last digits can be explained."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import psutil
import torch

from pruneflow.version import __version__

_PACKAGES = (
    "torch",
    "torchvision",
    "torch-pruning",
    "transformers",
    "mlflow",
    "numpy",
    "datasets",
    "safetensors",
    "pandas",
)
_EXTRAS = ("onnx", "onnxruntime", "openvino")


def describe() -> dict[str, object]:
    """Versions, processors, threads, memory, and the commit of the source that ran."""
    versions = {package: metadata.version(package) for package in _PACKAGES}
    installed = {one.metadata["Name"] for one in metadata.distributions()}
    versions |= {extra: metadata.version(extra) for extra in _EXTRAS if extra in installed}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {"pruneflow": __version__, **versions},
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "git": _git(Path(__file__).parent),
    }


def cpu() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine(device: str, processor: str | None = None, gpu: str | None = None) -> str:
    """What times on a device hang on: the processor's name, and on CUDA before it the GPU's.

    Args:
        device: `cpu` or `cuda`.
        processor, gpu: names; those of this machine by default.
    """
    processor = processor or cpu()
    return f"{gpu or torch.cuda.get_device_name()}, {processor}" if device == "cuda" else processor


def _git(folder: Path) -> dict[str, object] | None:
    """Commit of the checkout that the package's source lies in; None if it is in none."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", str(Path(__file__)))  # else it is another's checkout
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
