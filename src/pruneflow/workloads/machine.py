"""The machine that a run computes on: its device, precision and threads, and PyTorch's modes."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pruneflow.errors import InputError
from pruneflow.workloads import models


@dataclass(frozen=True)
class Machine:
    """A device (`cpu`, `cuda`, `cuda:1`), a precision (`fp32`, `bf16` by autocast), CPU threads."""

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
        check_device(device, "auto", "cpu")
        if threads is not None and threads > cores:
            raise InputError(f"threads={threads} is not valid: this process may use {cores} cores")
        threads = threads or cores
        torch.set_num_threads(threads)
        if device == "cpu":
            keep_large_buffers()
        return cls(device, precision, threads)

    def autocast(self) -> torch.autocast:
        """The context in which this machine's forward passes run."""
        kind, enabled = torch.device(self.device).type, self.precision == "bf16"
        # what it remembers of weights is forgotten only where no other autocast is around it, so
        # within a caller's every step would see those of the first
        return torch.autocast(kind, torch.bfloat16, enabled=enabled, cache_enabled=False)

    def move(self, model: nn.Module) -> nn.Module:
        """The model on the device, in the memory layout that its convolutions like."""
        return models.channels_last(model.to(self.device))

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """An array on the device; a GPU copies it while it and the CPU do other things."""
        tensor = torch.from_numpy(array)
        if self.device == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def make_deterministic(
        self, model: nn.Module, forward: Callable[[nn.Module], Tensor]
    ) -> str | None:
        """Have a GPU compute trainings of a model to the same bits each time, as a CPU does.

        Returns:
            The operation of the model that PyTorch cannot repeat so, if there is one: then it may
            be the same bits, or not.
        """
        if self.device == "cpu":
            return None
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS repeats nothing without
        torch.use_deterministic_algorithms(True)
        try:
            with models.looking(model), self.autocast():
                forward(model.train()).sum().backward()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            operation = re.match(r"(\w+) does not have a deterministic implementation", str(error))
            if operation is None:
                raise
            torch.use_deterministic_algorithms(False)
            return operation[1]
        finally:
            model.zero_grad()
        return None


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_device(device: str, *others: str) -> None:
    """Refuse a GPU that this machine has not; `others` are valid in its place."""
    if not device.startswith("cuda"):
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(device.partition(":")[2] or 0) >= count:
        seen = f"{count} CUDA GPU{'s' * (count > 1)}" if count else "no CUDA GPU"
        gpus = ["cuda", *(f"cuda:{number}" for number in range(count))] if count else []
        raise InputError(
            f"device={device!r} is not available: PyTorch sees {seen} here "
            f"(valid: {', '.join([*others, *gpus])})"
        )


@contextmanager
def callers_state_kept() -> Iterator[None]:
    """Compute in PyTorch's default modes, and leave the caller's as they were.

    Those are random states, threads, grad mode, autocast, default dtype and default device; on CUDA
    TF32, which is off, and what can be computed in several ways, of which one is taken each time.
    """
    threads = torch.get_num_threads()
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    with ExitStack() as modes:
        modes.enter_context(models.same_random_state())
        modes.enter_context(_modes_of_cuda())
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


@contextmanager
def _modes_of_cuda() -> Iterator[None]:
    """Float32 on CUDA as on a CPU, and no convolution chosen by its time."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    modes: list[tuple[Any, str, Any]] = [
        (matmul, "allow_tf32", False),
        (cudnn, "allow_tf32", False),
        (cudnn, "benchmark", False),
        (cudnn, "deterministic", True),
    ]
    if hasattr(matmul, "fp32_precision"):  # since PyTorch 2.9: what those fall back on
        modes += [(part, "fp32_precision", "none") for part in (torch.backends, cudnn)]
    before = [(part, name, _mode(part, name)) for part, name, _ in modes]
    deterministic = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("default")
    for part, name, value in modes:
        setattr(part, name, value)
    try:
        yield
    finally:
        for part, name, value in before:
            setattr(part, name, value)
        torch.set_deterministic_debug_mode(deterministic)


def _mode(part: Any, name: str) -> Any:
    try:
        return getattr(part, name)
    except RuntimeError:  # of `allow_tf32`, where the caller has used its newer name
        return part.fp32_precision == "tf32"


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
