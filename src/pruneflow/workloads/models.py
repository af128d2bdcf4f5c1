"""Models: torchvision's classifiers and those for CIFAR-10 by their names, with a head sized to the
data set.

What is true of every model is here too: its logits, its head, its state, and looking at it.
"""

from __future__ import annotations

import os
import random
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pruneflow.errors import InputError, first_line, unknown, user_path
from pruneflow.workloads.cifar_models import CIFAR_MODELS

# Their auxiliary heads, for training on ImageNet, are left out: here they would train on nothing.
_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")
# Arguments of torchvision's constructors that its builders set for some published weights, with
# what they are otherwise: whether images are normalised anew, and the size of a vision transformer.
_OPTIONS: dict[str, Any] = {"transform_input": False, "image_size": 224}
_FEW_CHANNELS = 8
_FORCE_SAFE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def names() -> list[str]:
    """Names of the classifiers of images."""
    return [*CIFAR_MODELS, *torchvision.models.list_models(module=torchvision.models)]


def build(name: str, classes: int, *, weights: str = "none", load: bool = True) -> nn.Module:
    """A classifier with `classes` outputs, images (N, 3, H, W) in, logits (N, classes) out.

    `weights` is `none` (torchvision's initialisation, from torch's global generator), `pretrained`
    (ImageNet, downloaded by torchvision on first use; the head is new), or a safetensors file, of
    which all but the head is taken if that has another number of outputs. Without `load`, the
    architecture is the same and the weights are new.
    """
    if name not in names():
        raise unknown("model", name, names())
    published = weights == "pretrained"
    if published and name in CIFAR_MODELS:
        raise InputError(
            f"weights=pretrained is not valid for {name}, of which no weights are published here: "
            "pass weights=none or weights=<file>"
        )
    model = _new(name, classes, _published_options(name) if published else {})
    if published and load:
        _take(model, _published(name), f"the ImageNet weights of {name}")
    elif weights != "none" and load:
        path = user_path("weights", weights)
        _take(model, _read(path), f"weights={str(path)!r}")
    return model


def describe(name: str, model: nn.Module) -> dict[str, object]:
    """What `rebuild` needs of a classifier beside its name and classes, as JSON values."""
    if name in CIFAR_MODELS:
        return {"builder": "cifar"}
    values = {name: getattr(model, name, usual) for name, usual in _OPTIONS.items()}
    options = {name: value for name, value in values.items() if value != _OPTIONS[name]}
    return {"builder": "torchvision"} | ({"options": options} if options else {})


def rebuild(structure: Mapping[str, Any]) -> nn.Module:
    """A dense model as a checkpoint's structure describes it, with new weights, or a ValueError."""
    if structure.get("builder") == "transformers":
        from pruneflow.workloads import encoders

        return encoders.rebuild(structure)
    if structure.get("builder") not in ("torchvision", "cifar"):
        raise ValueError(f"the builder {structure.get('builder')!r} is not known")
    name, options = str(structure["model"]), dict(structure.get("options", {}))
    if name not in names():
        raise unknown("model", name, names())
    if strange := options.keys() - _OPTIONS.keys():
        raise ValueError(f"the option {min(strange)!r} is not known")
    return _new(name, int(structure["classes"]), options)


def _new(name: str, classes: int, options: Mapping[str, Any]) -> nn.Module:
    if name in CIFAR_MODELS:
        return CIFAR_MODELS[name](classes)
    fixed = {"aux_logits": False, "init_weights": True} if name in _WITH_AUXILIARY_HEADS else {}
    model: nn.Module = torchvision.models.get_model(
        name, weights=None, num_classes=classes, **fixed, **options
    )
    return model


def _published_options(name: str) -> dict[str, Any]:
    """What torchvision's builder sets for its ImageNet weights, without fetching them."""
    if name.startswith("vit_"):
        weights = torchvision.models.get_model_weights(name).DEFAULT
        return {"image_size": weights.meta["min_size"][0]}
    return {"transform_input": True} if name in _WITH_AUXILIARY_HEADS else {}


def _published(name: str) -> dict[str, Tensor]:
    """ImageNet weights as torchvision's builder loads them, without those of any head."""
    forced = os.environ.get(_FORCE_SAFE)
    os.environ[_FORCE_SAFE] = "1"  # torch.load reads tensors alone, also where a builder calls it
    try:
        model = torchvision.models.get_model(name, weights="DEFAULT")
    except Exception as error:  # torch.hub raises what network, disk or the file's bytes lead it to
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise InputError(
            f"the ImageNet weights of {name} could not be downloaded ({first_line(error)}): "
            f"pass weights=none, weights=<file>, or put torchvision's file into {folder}"
        ) from None
    finally:
        del os.environ[_FORCE_SAFE]
        if forced is not None:
            os.environ[_FORCE_SAFE] = forced
    heads = (f"{head_name(model)}.", "AuxLogits.", "aux1.", "aux2.")
    return {k: tensor for k, tensor in model.state_dict().items() if not k.startswith(heads)}


def _read(path: Path) -> dict[str, Tensor]:
    weights = f"weights={str(path)!r}"
    if not path.is_file():
        raise InputError(f"{weights} is not a file: pass none, pretrained, or a safetensors file")
    try:
        state: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        hint = (
            "; only safetensors files are read, no pickles: safetensors.torch.save_file("
            "torch.load(<file>, weights_only=True), <new file>) makes one of a state dict"
        )
        hint = hint if path.suffix != ".safetensors" else ""
        raise InputError(f"{weights} cannot be read: {first_line(error)}{hint}") from None
    if any(name.endswith(".kept") for name in state):
        problem = "is the checkpoint of a pruned level, whose tensors are packed"
        raise InputError(f"{weights} {problem}: pass dense weights")
    return state


def _take(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights whole, but for a head of another number of outputs."""
    wanted, head = model.state_dict(), f"{head_name(model)}."
    for name, tensor in wanted.items():
        given = state.get(name)
        if given is not None and given.shape == tensor.shape:
            if given.is_floating_point() and not given.isfinite().all():
                raise InputError(f"{source}: {name} holds NaN or infinite values")
            wanted[name] = given
        elif not name.startswith(head):
            shape = "missing" if given is None else f"of shape {tuple(given.shape)}"
            raise InputError(
                f"{source} do not fit the model: {name} is {shape}, it should be of shape "
                f"{tuple(tensor.shape)}"
            )
    if extra := sorted(state.keys() - wanted.keys()):
        raise InputError(f"{source} do not fit the model: it has no {extra[0]}")
    load_state(model, wanted)


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dict of this very kind of model, whole.

    Tensors from a file do not say in which version of its class a module wrote them, and PyTorch
    then takes them for the first and converts them (MNASNet: to another stem). They are of the
    version that the model has. A RuntimeError says that they do not fit.
    """
    versioned = OrderedDict(state)
    versioned._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(versioned)


def head_name(model: nn.Module) -> str:
    """Name of the layer that makes the logits: the last linear layer, or convolution.

    Of an encoder the last of its head: some list the head before the body.
    """
    linear = [str(n) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    body = f"{getattr(model, 'base_model_prefix', '')}."
    linear = [name for name in linear if not name.startswith(body)] or linear
    return (linear or [str(n) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)])[-1]


def logits(model: nn.Module, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
    """Logits (N, classes) of a batch: images as one tensor, texts as an encoder's named ones."""
    result: Tensor = model(inputs) if isinstance(inputs, Tensor) else model(**inputs).logits
    return result


def check_image_size(model: nn.Module, name: str, size: int) -> Tensor:
    """One blank input (1, 3, size, size) that the model is seen to accept."""
    try:
        sample = torch.zeros(1, 3, size, size, device=next(model.parameters()).device)
        with looking(model), torch.inference_mode():
            model(sample)
    except (RuntimeError, ValueError, AssertionError, MemoryError) as error:
        reason = first_line(error)
        raise InputError(f"image_size={size} does not work with {name}: {reason}") from None
    return sample


def random_inputs(
    structure: Mapping[str, Any], batch: int, *, size: int, device: str
) -> Tensor | dict[str, Tensor]:
    """A batch of noise for a model as a checkpoint's structure describes it, the same every time.

    Images are (batch, 3, size, size), channels_last as in training; texts are `input_ids` and
    `attention_mask`, both (batch, size).
    """
    generator = torch.Generator().manual_seed(0)
    if structure.get("builder") != "transformers":
        images = torch.randn(batch, 3, size, size, generator=generator)
        return images.to(device, memory_format=torch.channels_last)
    config = structure["config"]
    ids = torch.randint(config.get("vocab_size", 1_000), (batch, size), generator=generator)
    # as real texts have them: no padding, and one end, where models look for their summary
    special = [config.get(f"{name}_token_id") for name in ("pad", "eos")]
    plain = next(number for number in range(3) if number not in special)
    for number in special:
        if isinstance(number, int):
            ids[ids == number] = plain
    if isinstance(special[1], int):
        ids[:, -1] = special[1]
    return {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}


# -------------------------------------------------------------------------------------- looking


@contextmanager
def looking(*observed: nn.Module) -> Iterator[None]:
    """Put models into eval mode, to look at them; afterwards they are as they were.

    So are the mode of every submodule, buffers, `requires_grad`, and the global random generators.
    Whatever runs, traces, exports, counts or times a model does so in here. Weights are not kept
    twice: nothing that only runs a model writes to them.
    """
    with same_random_state(), same_modes(*observed), _same_tensors(*observed):
        for model in observed:
            model.eval()
        yield


@contextmanager
def same_random_state() -> Iterator[None]:
    """Leave the global generators of PyTorch, NumPy and Python as they were."""
    on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if on_gpu else ()
    of_numpy, of_python = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(list(devices)):
            yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)


def channels_last(model: nn.Module) -> nn.Module:
    """The model, in place, in the memory layout that its convolutions like.

    Kernels of 1x1 with a stride that read fewer than 8 channels, as compact models come to have,
    stay in PyTorch's own: in the other, oneDNN writes beyond the memory of their gradient on
    processors with AVX2 and no AVX-512 (seen in PyTorch 2.14), and the process dies.
    """
    model.to(memory_format=torch.channels_last)
    for module in model.modules():
        if not isinstance(module, nn.Conv2d) or max(module.kernel_size) > 1:
            continue
        if max(module.stride) > 1 and module.in_channels // module.groups < _FEW_CHANNELS:
            weight = module.weight.detach()  # a kernel of 1x1 is contiguous in both layouts
            module.weight.data = weight.clone(memory_format=torch.contiguous_format)
            if _contiguous not in module._forward_pre_hooks.values():
                module.register_forward_pre_hook(_contiguous)
    return model


def _contiguous(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(values.clone(memory_format=torch.contiguous_format) for values in inputs)


@contextmanager
def without_fused_attention() -> Iterator[None]:
    """Attention without gradients is one operation where that applies, which hides its products."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def same_modes(*observed: nn.Module) -> Iterator[None]:
    """Leave every submodule in training or eval mode, as it was; they need not be alike."""
    modes = [(module, module.training) for model in observed for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _same_tensors(*observed: nn.Module) -> Iterator[None]:
    gradients = [(p, p.requires_grad) for model in observed for p in model.parameters()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for model in observed
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and buffer.layout == torch.strided
    ]
    try:
        yield
    finally:
        for parameter, needed in gradients:
            if parameter.requires_grad != needed:
                parameter.requires_grad_(needed)
        for module, name, buffer, value in buffers:
            module._buffers[name] = buffer
            if not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)
