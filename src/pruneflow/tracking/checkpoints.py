"""Checkpoints: `model.safetensors` and `structure.json` in a folder. No pickle.

A tensor that masks have pruned is stored as the values that are kept and one bit an entry that
says where they go (`<name>.kept`), so that a checkpoint's size falls with its sparsity; every
other tensor is stored as it is, under its own name. Tied tensors are stored once.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
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
# What building a checkpoint's model may take: a multiple of what is stored, and at least the
# largest of torchvision's.
_TIMES = 16
_LEAST_BYTES, _LEAST_TENSORS = 4 << 30, 4_096


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        structure: how to rebuild the model: its `model` name and its `classes`.
        state: the model's state dict, dense, pruned entries zero.
        masks: boolean masks (True = kept) of the tensors that were stored as pruned.
    """

    structure: Mapping[str, Any]
    state: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]


def save(folder: Path, checkpoint: Checkpoint, tokenizer: Any = None) -> int:
    """Write a checkpoint and return its size in bytes.

    Args:
        folder: made if it is not there.
        checkpoint: what its masks prune has to be zero.
        tokenizer: of an encoder; its files go into the folder `tokenizer`.

    Raises:
        ValueError: a pruned entry is not zero.
        OSError: a full disk.
    """
    stored: dict[str, Tensor] = {}
    packed: dict[str, list[int]] = {}
    seen: set[int] = set()
    tied = _tied(checkpoint)
    for name, value in checkpoint.state.items():
        if name in tied:
            continue
        tensor = value.detach().cpu().contiguous()
        mask = checkpoint.masks.get(name)
        if mask is None or keeps_all(mask):
            # parts and views of one memory are stored each by itself
            memory = tensor.untyped_storage()
            shared = memory.nbytes() != tensor.nbytes or memory.data_ptr() in seen
            seen.add(memory.data_ptr())
            stored[name] = tensor.clone() if shared else tensor
            continue
        values = _kept(tensor, mask.cpu())
        if nonzeros(tensor) != nonzeros(values):
            raise ValueError(f"{name} has pruned entries that are not zero")
        stored[name] = values
        stored[name + _BITS] = torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))
        packed[name] = list(tensor.shape)
    folder.mkdir(parents=True, exist_ok=True)
    _save(stored, folder / "model.safetensors")
    described = {"format": FORMAT, **checkpoint.structure, "packed": packed}
    if tied:
        described["tied"] = tied
    (folder / "structure.json").write_text(json.dumps(described, indent=1), "utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder / "tokenizer")
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _tied(checkpoint: Checkpoint) -> dict[str, str]:
    """Names of tensors that are another one's memory, as tied weights are -> that one's name."""
    first: dict[tuple[object, ...], str] = {}
    tied = {}
    for name in sorted(checkpoint.state, key=lambda name: name not in checkpoint.masks):
        tensor = checkpoint.state[name]
        if tensor.numel():
            place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            if first.setdefault(place, name) != name:
                tied[name] = first[place]
    return tied


def _kept(tensor: Tensor, mask: Tensor) -> Tensor:
    """The entries that a mask keeps, in order."""
    if tensor.dtype == torch.bfloat16:
        return tensor[mask]
    # NumPy picks them out several times faster than PyTorch
    return torch.from_numpy(tensor.numpy()[mask.numpy()])


def save_training(folder: Path, snapshot: Snapshot) -> None:
    """Write where a training stands, into a new folder."""
    folder.mkdir()
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in snapshot.tensors.items()}
    _save(tensors, folder / "training.safetensors")
    values = {"epoch": snapshot.epoch, "seconds": snapshot.seconds, "values": snapshot.values}
    (folder / "training.json").write_text(json.dumps(values), "utf-8")


def load_training(folder: Path) -> Snapshot:
    """Where a training stood when it was saved.

    Raises:
        InputError: files that are torn or none of these.
    """
    try:
        values = json.loads((folder / "training.json").read_text("utf-8"))
        tensors = _load(folder / "training.safetensors")
        return Snapshot(values["epoch"], values["seconds"], tensors, values["values"])
    except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{folder} cannot be read: {first_line(error)}") from None


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file.

    Raises:
        OSError: it cannot be, for want of space, say.
    """
    try:
        save_file(dict(tensors), path, metadata={_TENSORS: _hash_of_header(tensors)})
    except SafetensorError as error:  # which hides what the system said
        raise OSError(first_line(error)) from None


def _load(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        ValueError, SafetensorError, OSError: it is torn, or its header altered.
    """
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


def restore(checkpoint: Checkpoint) -> nn.Module:
    """The model of a checkpoint, compact if it was saved so, in eval mode on the CPU.

    Raises:
        InputError: a structure that does not lead to the tensors of the checkpoint.
    """
    stored = sum(tensor.nbytes for tensor in checkpoint.state.values())
    try:
        _check_layers(checkpoint)
        with _Bounded(stored, len(checkpoint.state)):
            model = _built(checkpoint.structure)
        declared = model.state_dict()
        for name, tensor in checkpoint.state.items():
            if name in declared and declared[name].shape != tensor.shape:
                shapes = tuple(declared[name].shape), tuple(tensor.shape)
                raise ValueError(f"{name} should be of shape {shapes[0]}, and is {shapes[1]}")
        models.load_state(model, checkpoint.state)
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError, MemoryError) as error:
        raise InputError(
            f"the checkpoint does not fit its structure: {first_line(error)}"
        ) from None
    return model.eval()


class _Bounded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bounds the tensors that a structure leads to, before memory is taken for them.

    A model is built for real, since constructors may compute with what they make; a file that
    declares sizes beyond its tensors must not take the machine's memory, or time.

    Args:
        stored: bytes of the checkpoint's tensors. The dense model of a compact one is larger.
        tensors: how many there are.
    """

    def __init__(self, stored: int, tensors: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._bytes = max(_LEAST_BYTES, _TIMES * stored)
        self._tensors = max(_LEAST_TENSORS, _TIMES * tensors)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        made_of_numbers = not any(isinstance(value, Tensor) for value in (*args, *kwargs.values()))
        if made_of_numbers and any(a.name == "device" for a in func._schema.arguments):
            self._bytes -= func(*args, **kwargs | {"device": "meta"}).nbytes
            self._tensors -= 1
            if self._bytes < 0 or self._tensors < 0:
                raise ValueError("it declares a model far larger than the tensors that are there")
        return func(*args, **kwargs)


def _built(structure: Mapping[str, Any]) -> nn.Module:
    """The model that a structure describes; its weights mean nothing yet."""
    return compaction.resize(models.rebuild(structure), structure.get("sizes", {}))


def _check_layers(checkpoint: Checkpoint) -> None:
    """See that a structure declares no more layers than there are tensors.

    Raises:
        ValueError: it does; a list of them would take for ever.
    """
    most = max(_LEAST_TENSORS, len(checkpoint.state))
    for name, value in checkpoint.structure.get("config", {}).items():
        if "layer" in name and isinstance(value, int) and value > most:
            raise ValueError(f"{name}={value}, and there are {len(checkpoint.state)} tensors")


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint that `save` wrote.

    Raises:
        InputError: files that are missing, or are not such a checkpoint.
    """
    try:
        structure = json.loads((folder / "structure.json").read_text("utf-8"))
        stored = _load(folder / "model.safetensors")
        if structure.pop("format") != FORMAT:
            raise InputError(f"the checkpoint in {folder} has an unknown format")
        packed: dict[str, list[int]] = structure.pop("packed")
        tied: dict[str, str] = structure.pop("tied", {})
        missing = sorted({*packed, *tied.values()} - stored.keys())
        if missing:
            raise InputError(f"the checkpoint in {folder} lacks {missing[0]}")
        masks = {}
        state = {}
        for name, value in stored.items():
            if name in packed:
                masks[name] = _unpacked(stored[name + _BITS], packed[name])
                state[name] = torch.zeros(packed[name], dtype=value.dtype)
                state[name][masks[name]] = value
            elif name.removesuffix(_BITS) not in packed:
                state[name] = value
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise InputError(f"{name} in {folder} holds NaN or infinite values")
        state |= {name: state[other] for name, other in tied.items()}
    except InputError:
        raise
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"structure.json in {folder} is not JSON: {first_line(error)}") from None
    except (
        OSError,
        SafetensorError,
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
        ValueError,
    ) as error:
        reason = first_line(error)
        raise InputError(f"the checkpoint in {folder} cannot be read: {reason}") from None
    return Checkpoint(structure, state, masks)


def _unpacked(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """A mask from a bit an entry.

    Raises:
        ValueError: bits that are not as many as a tensor of that shape has entries.
    """
    entries = math.prod(shape)
    if not all(isinstance(n, int) and n >= 0 for n in shape) or -(-entries // 8) != len(packed):
        raise ValueError(f"{len(packed)} bytes of bits are no mask of shape {shape}")
    bits = np.unpackbits(packed.numpy(), count=entries)
    return torch.from_numpy(bits.astype(bool)).view(*shape)
