"""The machine that a run computes on: its device, precision and threads, and PyTorch's modes."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from pruneflow.errors import InputError
from pruneflow.workloads import models


@dataclass(frozen=True)
class Machine:
    """A device (`cpu`, `cuda`), a precision (`fp32`, `bf16` by autocast) and CPU threads."""

    device: str
    precision: str
    threads: int

    @classmethod
    def choose(
        cls, device: str, threads: int | None, cores: int, precision: str = "fp32"
    ) -> Machine:
        """The machine for a device that may be `auto`, and threads that may be None: all cores.

        Sets PyTorch's thread count, and on a CPU what the allocator does with large blocks, for
        the process.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError(
                "device='cuda' is not available: PyTorch sees no CUDA GPU here (valid: auto, cpu)"
            )
        if threads is not None and threads > cores:
            raise InputError(f"threads={threads} is not valid: this process may use {cores} cores")
        threads = threads or cores
        torch.set_num_threads(threads)
        if device == "cpu":
            keep_large_buffers()
        return cls(device, precision, threads)

    def autocast(self) -> torch.autocast:
        """The context in which this machine's forward passes run."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")

    def move(self, model: nn.Module) -> nn.Module:
        """The model on the device, in the memory layout that its convolutions like."""
        return models.channels_last(model.to(self.device))


@contextmanager
def callers_state_kept() -> Iterator[None]:
    """Compute in PyTorch's default modes, and leave the caller's as they were.

    Those are random states, threads, grad mode, autocast, default dtype and default device.
    """
    threads = torch.get_num_threads()
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    with ExitStack() as modes:
        modes.enter_context(models.same_random_state())
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            modes.enter_context(torch.autocast(kind, enabled=False))
        torch.set_default_dtype(torch.float32)
        if device.type != "cpu":
            modes.enter_context(torch.device("cpu"))
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.set_default_dtype(dtype)


@functools.cache
def keep_large_buffers() -> None:
    """Tell glibc's allocator to keep big freed blocks instead of handing them back each time.

    A step frees and asks for gradients of hundreds of megabytes; as fresh pages from the system
    they cost as much as the arithmetic (AlexNet, batch 128, 64x64: 157 against 259 images/s).
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library: nothing to tell it
        return
    m_trim_threshold, m_mmap_max = -1, -4
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)
