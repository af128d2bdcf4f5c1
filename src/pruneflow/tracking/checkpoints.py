"""Checkpoints: `model.safetensors` and `structure.json` in a folder. No pickle.

A tensor that masks have pruned is stored as the values that are kept and one bit an entry that
says where they go (`<name>.kept`), so that a checkpoint's size falls with its sparsity; every
other tensor is stored as it is, under its own name. Tied tensors are stored once.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pruneflow.errors import InputError, first_line
from pruneflow.pruning import compaction
from pruneflow.pruning.cost import nonzeros
from pruneflow.pruning.masks import keeps_all
from pruneflow.workloads import models
from pruneflow.workloads.training import Snapshot

FORMAT = 1
_TENSORS = "tensors"  # of a file's metadata: the hash of which tensors it holds
_BITS = ".kept"
# What building a model may take: a multiple of what is stored (of a compact one the dense one is
# built first), and at least the largest of torchvision's.
_TIMES, _LEAST_BYTES, _LEAST_TENSORS = 16, 4 << 30, 4_096
_UNFIT = (  # what files that are torn, altered or hostile lead to
    *(OSError, SafetensorError, MemoryError, RuntimeError),
    *(AttributeError, LookupError, TypeError, ValueError),
)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds."""

    structure: Mapping[str, Any]  # how to rebuild the model, as `models.rebuild` reads it
    state: Mapping[str, Tensor]  # the model's state dict, dense, pruned entries zero
    masks: Mapping[str, Tensor]  # boolean (True = kept), of the tensors that are stored as pruned


def save(folder: Path, checkpoint: Checkpoint, tokenizer: Any = None) -> int:
    """Write a checkpoint, with the files of an encoder's tokenizer; its size in bytes.

    Raises:
        ValueError: a pruned entry is not zero.
        OSError: a full disk.
    """
    stored: dict[str, Tensor] = {}
    packed: dict[str, list[int]] = {}
    memories: set[int] = set()
    tied = _tied(checkpoint.state, checkpoint.masks)
    for name in [name for name in checkpoint.state if name not in tied]:
        value = checkpoint.state[name].detach()
        tensor, mask = value.cpu().contiguous(), checkpoint.masks.get(name)
        if mask is None or keeps_all(mask):
            # parts and views of one memory are stored each by itself
            memory = tensor.untyped_storage()
            shared = memory.nbytes() != tensor.nbytes or memory.data_ptr() in memories
            memories.add(memory.data_ptr())
            stored[name] = tensor.clone() if shared else tensor
            continue
        mask = mask.cpu()
        # NumPy picks entries several times faster than PyTorch, and has no bfloat16
        numpy = tensor.dtype != torch.bfloat16
        kept = torch.from_numpy(tensor.numpy()[mask.numpy()]) if numpy else tensor[mask]
        if nonzeros(tensor) != nonzeros(kept):
            raise ValueError(f"{name} has pruned entries that are not zero")
        stored[name] = kept
        stored[name + _BITS] = torch.from_numpy(np.packbits(mask.numpy().reshape(-1)))
        packed[name] = list(tensor.shape)
    folder.mkdir(parents=True, exist_ok=True)
    _write(stored, folder / "model.safetensors")
    structure = {"format": FORMAT, **checkpoint.structure, "packed": packed}
    structure |= {"tied": tied} if tied else {}
    (folder / "structure.json").write_text(json.dumps(structure, indent=1), "utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder / "tokenizer")
    return size_bytes(folder)


def _tied(state: Mapping[str, Tensor], pruned: Collection[str]) -> dict[str, str]:
    """Tensors that are another one of a state dict -> that one, which stands for both."""
    tied: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}  # tensor's place in memory -> name
    # pruned ones first: of tied tensors the mask of one stands for all
    for name in sorted(state, key=lambda name: name not in pruned):
        value = state[name]
        place = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if value.numel() and first.setdefault(place, name) != name:
            tied[name] = first[place]
    return tied


def expected_bytes(state: Mapping[str, Tensor], entries: Mapping[str, int], *, packed: bool) -> int:
    """Bytes that `save` takes for the tensors of a state dict, to a few bytes a tensor.

    `entries`: name of a parameter -> how many of its entries are kept. The others are pruned by
    masks (`packed`), or removed, and with them those of the statistics of a normalisation.
    """
    total, tied = 0, _tied(state, entries)
    for name in [name for name in state if name not in tied]:
        value, count = state[name], state[name].numel()
        kept = entries.get(name, count)
        if packed and kept < count:
            bits = -(-count // 8)
            total += bits + _header_bytes(name + _BITS, "U8", [bits])
            total += len(json.dumps({name: list(value.shape)}, indent=1)) + len(value.shape) + 2
        elif not packed and name not in entries:
            weight = f"{name.rpartition('.')[0]}.weight"
            if weight in entries and value.shape == state[weight].shape:
                kept = entries[weight]
        shape = [kept] if packed and kept < count else list(value.shape)
        total += kept * value.element_size() + _header_bytes(name, "F32", shape)
    return total


def _header_bytes(name: str, dtype: str, shape: list[int]) -> int:
    """What a tensor takes in the header of a safetensors file, as far as that is known before."""
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [10**6, 10**6]}
    return len(json.dumps({name: entry}, separators=(",", ":"))) - 1


def size_bytes(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint that `save` wrote.

    Raises:
        InputError: files that are missing, or are not such a checkpoint.
    """
    try:
        structure = json.loads((folder / "structure.json").read_text("utf-8"))
        stored = _read(folder / "model.safetensors")
        if structure.pop("format") != FORMAT:
            raise ValueError("its format is unknown")
        packed: dict[str, list[int]] = structure.pop("packed")
        tied: dict[str, str] = structure.pop("tied", {})
        names = {*packed, *(name + _BITS for name in packed), *tied.values()}
        if missing := names - stored.keys():
            raise ValueError(f"it lacks {min(missing)}")
        for name, value in stored.items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise ValueError(f"{name} holds NaN or infinite values")
        masks = {name: _unpacked(stored.pop(name + _BITS), packed[name]) for name in packed}
        state = dict(stored)
        for name, mask in masks.items():
            state[name] = torch.zeros(mask.shape, dtype=stored[name].dtype)
            state[name][mask] = stored[name]
        state |= {name: state[other] for name, other in tied.items()}
        return Checkpoint(structure, state, masks)
    except _UNFIT as error:
        reason = first_line(error)
        raise InputError(f"the checkpoint in {folder} cannot be read: {reason}") from None


def _unpacked(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """A mask from a bit an entry."""
    entries = math.prod(shape)
    if not all(isinstance(n, int) and n >= 0 for n in shape) or -(-entries // 8) != len(bits):
        raise ValueError(f"{len(bits)} bytes of bits are no mask of shape {shape}")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=entries).astype(bool)).view(*shape)


def restore(checkpoint: Checkpoint) -> nn.Module:
    """The model of a checkpoint, compact if it was saved so, in eval mode on the CPU.

    Raises:
        InputError: a structure that does not lead to the tensors of the checkpoint.
    """
    structure, count = checkpoint.structure, len(checkpoint.state)
    try:
        for name, value in structure.get("config", {}).items():
            # a list of them would take for ever
            if "layer" in name and isinstance(value, int) and value > max(_LEAST_TENSORS, count):
                raise ValueError(f"{name}={value}, and there are {count} tensors")
        with _Bounded(sum(tensor.nbytes for tensor in checkpoint.state.values()), count):
            model = compaction.resize(models.rebuild(structure), structure.get("sizes", {}))
        models.load_state(model, checkpoint.state)
    except _UNFIT as error:
        raise InputError(
            f"the checkpoint does not fit its structure: {first_line(error)}"
        ) from None
    return model.eval()


class _Bounded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bounds the tensors that a structure leads to, before memory is taken for them.

    A model is built for real, since constructors may compute with what they make; a file that
    declares sizes beyond its tensors must not take the machine's memory, or time.
    """

    def __init__(self, stored_bytes: int, tensors: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._bytes = max(_LEAST_BYTES, _TIMES * stored_bytes)
        self._tensors = max(_LEAST_TENSORS, _TIMES * tensors)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        from_tensors = any(isinstance(value, Tensor) for value in (*args, *kwargs.values()))
        if not from_tensors and any(a.name == "device" for a in func._schema.arguments):
            self._bytes -= func(*args, **kwargs | {"device": "meta"}).nbytes
            self._tensors -= 1
            if self._bytes < 0 or self._tensors < 0:
                raise ValueError("it declares a model far larger than the tensors that are there")
        return func(*args, **kwargs)


def save_training(folder: Path, snapshot: Snapshot) -> None:
    """Write where a training stands, into a new folder."""
    folder.mkdir()
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in snapshot.tensors.items()}
    _write(tensors, folder / "training.safetensors")
    values = {"epoch": snapshot.epoch, "seconds": snapshot.seconds, "values": snapshot.values}
    (folder / "training.json").write_text(json.dumps(values), "utf-8")


def load_training(folder: Path) -> Snapshot:
    """Where a training stood when it was saved; InputError: files that are torn."""
    try:
        values = json.loads((folder / "training.json").read_text("utf-8"))
        return Snapshot(**values, tensors=_read(folder / "training.safetensors"))
    except _UNFIT as error:
        raise InputError(f"{folder} cannot be read: {first_line(error)}") from None


def _write(tensors: Mapping[str, Tensor], path: Path) -> None:
    try:
        save_file(dict(tensors), path, metadata={_TENSORS: _hash_of_header(tensors)})
    except SafetensorError as error:  # which hides what the system said
        raise OSError(first_line(error)) from None


def _read(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        written = (file.metadata() or {}).get(_TENSORS)  # the version before wrote none
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if written not in (None, _hash_of_header(tensors)):
        raise ValueError(f"the header of {path.name} is damaged")
    return tensors


def _hash_of_header(tensors: Mapping[str, Tensor]) -> str:
    """Hash of the names, types and shapes of tensors: what a file's header says of them."""
    entries = sorted((name, str(t.dtype), list(t.shape)) for name, t in tensors.items())
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()
