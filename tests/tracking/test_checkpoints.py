"""Checkpoints give back what was saved, bit for bit, and refuse what is none."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneflow.errors import InputError
from pruneflow.tracking import checkpoints
from pruneflow.tracking.checkpoints import Checkpoint


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 3, 5, 5, generator=generator).to(memory_format=torch.channels_last)
    return {
        "conv.weight": weight,
        "conv.bias": torch.randn(6, generator=generator),
        "bn.num_batches_tracked": torch.tensor(7),
    }


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), sparsity=st.floats(0, 1))
def test_what_is_loaded_is_what_was_saved(
    tmp_path_factory: pytest.TempPathFactory, seed: int, sparsity: float
) -> None:
    folder = tmp_path_factory.mktemp("checkpoint")
    saved = state(seed)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(saved["conv.weight"].shape, generator=generator) >= sparsity
    saved["conv.weight"].mul_(mask)
    checkpoints.save(folder, Checkpoint({"model": "m"}, saved, {"conv.weight": mask}))
    found = checkpoints.load(folder)
    assert found.structure == {"model": "m"}
    assert found.state.keys() == saved.keys()
    for name, tensor in saved.items():
        assert torch.equal(found.state[name], tensor)
        assert found.state[name].dtype == tensor.dtype
    if not mask.all():
        assert torch.equal(found.masks["conv.weight"], mask)


def test_a_kept_zero_is_not_mistaken_for_a_pruned_one(tmp_path: Path) -> None:
    mask = torch.tensor([True, True, False])
    checkpoints.save(tmp_path, Checkpoint({}, {"w": torch.tensor([0.0, 1.0, 0.0])}, {"w": mask}))
    assert torch.equal(checkpoints.load(tmp_path).masks["w"], mask)


def test_size_falls_with_sparsity(tmp_path: Path) -> None:
    weight = torch.randn(100, 100)
    mask = torch.zeros(100, 100, dtype=torch.bool)
    mask[:10] = True
    dense = checkpoints.save(tmp_path / "a", Checkpoint({}, {"w": weight}, {}))
    pruned = checkpoints.save(tmp_path / "b", Checkpoint({}, {"w": weight * mask}, {"w": mask}))
    assert dense >= 40_000
    assert pruned < 4_000 + 1_250 + 1_000  # values, one bit an entry, headers


def test_pruned_entries_that_are_not_zero_are_refused(tmp_path: Path) -> None:
    mask = torch.tensor([True, False])
    with pytest.raises(ValueError, match="w has pruned entries that are not zero"):
        checkpoints.save(tmp_path, Checkpoint({}, {"w": torch.ones(2)}, {"w": mask}))


def test_a_fresh_process_loads_the_same_bits(tmp_path: Path, root: Path) -> None:
    saved = state(3)
    mask = saved["conv.weight"] > 0
    saved["conv.weight"].mul_(mask)
    checkpoints.save(tmp_path, Checkpoint({}, saved, {"conv.weight": mask}))
    code = (
        "import sys, hashlib; from pathlib import Path\n"
        "from pruneflow.tracking import checkpoints\n"
        "state = checkpoints.load(Path(sys.argv[1])).state\n"
        "raw = b''.join((state[n] + 0).contiguous().numpy().tobytes() for n in sorted(state))\n"
        "print(hashlib.sha256(raw).hexdigest())\n"
    )
    raw = b"".join((saved[n] + 0).contiguous().numpy().tobytes() for n in sorted(saved))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={"PYTHONPATH": str(root / "src"), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == hashlib.sha256(raw).hexdigest(), done.stderr


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("structure.json", b"{"),
        ("structure.json", b"[]"),
        ("structure.json", b'{"format": 99, "packed": {}}'),
        ("structure.json", b'{"format": 1}'),
        ("structure.json", b'{"format": 1, "packed": {"conv.bias": [3]}}'),
        ("structure.json", b'{"format": 1, "packed": {"conv.weight": [9, 9]}}'),
        ("model.safetensors", b"\x80\x04\x95pickle"),
        ("model.safetensors", b"\xff" * 64),
    ],
)
def test_files_that_are_no_checkpoint_are_refused(
    tmp_path: Path, name: str, content: bytes
) -> None:
    saved = state()
    mask = saved["conv.weight"] > 0
    saved["conv.weight"].mul_(mask)
    checkpoints.save(tmp_path, Checkpoint({}, saved, {"conv.weight": mask}))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"checkpoint|structure"):
        checkpoints.load(tmp_path)


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        checkpoints.load(tmp_path)


def test_what_the_system_refuses_to_write_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(OSError, match="I/O error"):
        checkpoints.save(tmp_path, Checkpoint({}, state(), {}))
