"""The Python API in a caller's process: its modes and random states are the caller's own."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pruneflow

SMALL: dict[str, Any] = {
    "model": "squeezenet1_1",
    "image_size": 32,
    "train_limit": 40,
    "batch_size": 20,
    "epochs": 1,
}
MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "plain": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "device": lambda: torch.device("meta"),
}


def state() -> dict[str, Any]:
    """What a caller may have set."""
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
    }


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a training ends with whose caller has set nothing."""
    done = pruneflow.finetune(resume="never", threads=1, **SMALL)
    return pruneflow.load_model(done.run_id).state_dict()


@pytest.mark.parametrize("mode", MODES)
def test_a_run_leaves_the_callers_state_and_gives_the_same_in_every_mode(
    mode: str, expected: dict[str, torch.Tensor]
) -> None:
    torch.manual_seed(5)
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    try:
        torch.set_num_threads(threads + 1)
        torch.set_default_dtype(torch.float64)
        with MODES[mode]():
            before = state()
            done = pruneflow.finetune(resume="never", threads=1, **SMALL)
            model = pruneflow.load_model(done.run_id)
            assert state() == before
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert all(value.dtype == expected[name].dtype for name, value in model.state_dict().items())
