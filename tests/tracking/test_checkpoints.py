"""Checkpoints give back what was saved, bit for bit, and refuse what is none."""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pruneflow.errors import InputError
from pruneflow.tracking import checkpoints
from pruneflow.tracking.checkpoints import Checkpoint
from pruneflow.workloads import models


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


def test_tied_tensors_are_stored_once_and_come_back_under_every_name(tmp_path: Path) -> None:
    weight = torch.randn(50, 40)
    mask = weight > 0
    weight.mul_(mask)
    saved = {"a": weight, "b": weight, "transposed": weight.t(), "row": weight[3]}
    saved["flat"] = weight.view(-1)
    checkpoints.save(tmp_path, Checkpoint({}, saved, {"b": mask}))
    found = checkpoints.load(tmp_path)
    assert found.state.keys() == saved.keys()
    assert all(torch.equal(found.state[name], value) for name, value in saved.items())
    assert found.state["a"].data_ptr() == found.state["b"].data_ptr()


@settings(max_examples=60)
@given(place=st.integers(8, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_of_the_header_is_seen(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "flipped"
    checkpoints.save(folder, Checkpoint({}, state(), {}))
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[8 + place % int.from_bytes(content[:8], "little")] ^= 1 << bit
    path.write_bytes(content)
    try:
        found = checkpoints.load(folder).state
    except InputError:
        return
    assert all(torch.equal(found[name], value) for name, value in state().items())
    assert found.keys() == state().keys()


@pytest.mark.parametrize("cut", [1, 50, 2_000])
def test_a_torn_file_is_seen(tmp_path: Path, cut: int) -> None:
    checkpoints.save(tmp_path, Checkpoint({}, state(), {}))
    for path in (tmp_path / "structure.json", tmp_path / "model.safetensors"):
        content = path.read_bytes()
        path.write_bytes(content[:-cut])
        with pytest.raises(InputError):
            checkpoints.load(tmp_path)
        path.write_bytes(content)


def test_a_file_without_a_hash_of_its_header_is_read(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, Checkpoint({}, state(), {}))
    plain = {name: tensor.contiguous() for name, tensor in state().items()}
    save_file(plain, tmp_path / "model.safetensors")  # as the version before did
    assert checkpoints.load(tmp_path).state.keys() == state().keys()


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(7),
        torch.tensor(2.5),
        torch.tensor([True, False]),
        torch.arange(6, dtype=torch.int32).view(2, 3).t(),
        torch.zeros(0, 3),
        torch.tensor([1.5, 0.0, -2.0], dtype=torch.bfloat16),
        torch.arange(4.0).expand(3, 4),
    ],
    ids=lambda value: f"{value.dtype}-{tuple(value.shape)}",
)
def test_tensors_of_every_kind_come_back(tmp_path: Path, value: torch.Tensor) -> None:
    mask = value != 0
    masks = {"v": mask} if value.is_floating_point() and value.dim() == 1 else {}
    checkpoints.save(tmp_path, Checkpoint({}, {"v": value, "w": value.clone()}, masks))
    found = checkpoints.load(tmp_path).state
    for name in ("v", "w"):
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def test_a_checkpoint_of_the_first_format_without_later_fields_is_restored(tmp_path: Path) -> None:
    model = models.build("mnasnet0_5", 3).eval()
    structure = {"builder": "torchvision", "model": "mnasnet0_5", "classes": 3}
    checkpoints.save(tmp_path, Checkpoint(structure, model.state_dict(), {}))
    written = json.loads((tmp_path / "structure.json").read_text())
    assert written == {"format": 1, "packed": {}, **structure}
    again = checkpoints.restore(checkpoints.load(tmp_path))
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


TINY = {
    "builder": "transformers",
    "config": {
        "model_type": "bert",
        "vocab_size": 20,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "max_position_embeddings": 16,
    },
}
VISION = {"builder": "torchvision", "model": "shufflenet_v2_x0_5", "classes": 3}


@pytest.mark.parametrize(
    ("structure", "hostile"),
    [
        *(
            (TINY, {"config": TINY["config"] | {name: 2**40}})  # type: ignore[operator]
            for name in (
                "vocab_size",
                "hidden_size",
                "num_hidden_layers",
                "intermediate_size",
                "max_position_embeddings",
                "type_vocab_size",
            )
        ),
        (TINY, {"config": TINY["config"] | {"intermediate_size": 10**9}}),  # type: ignore[operator]
        (VISION, {"classes": 2**40}),
        (VISION, {"sizes": {"fc": {"in_features": 10**7, "out_features": 10**7}}}),
        (VISION, {"options": {"transform_input": True}}),
        (VISION, {"options": {"weights": "DEFAULT"}}),
        (VISION, {"model": "vit_b_32", "options": {"image_size": 2**30}}),
    ],
)
def test_a_structure_beyond_its_tensors_is_refused_before_it_takes_memory(
    structure: dict[str, Any], hostile: dict[str, Any]
) -> None:
    state = models.rebuild(structure).state_dict()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="does not fit its structure") as refused:
        checkpoints.restore(Checkpoint(structure | hostile, state, {}))
    assert "\n" not in str(refused.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2_000_000  # KiB
