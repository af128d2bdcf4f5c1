"""Models: classifiers of images by their names, with a head sized to the data set.

What is true of every model is here too: its logits, its head, its state, and looking at it.
"""

from __future__ import annotations

import functools
import random
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pruneflow.errors import InputError, first_line, unknown, user_path
from pruneflow.workloads import factories, other_models, torchvision_models
from pruneflow.workloads.cifar_models import CIFAR_MODELS

_FEW_CHANNELS = 8
# Parts of torchvision's published weights that no model here has.
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")


def names() -> list[str]:
    """Names of the classifiers of images."""
    return [*CIFAR_MODELS, *torchvision_models.names()]


def check(name: str) -> None:
    """See that there is a model of a name, before data are read; else an InputError."""
    if other_models.builder(name) is not None:
        other_models.check(name)
    elif name != "bert" and name not in names():
        if name.endswith(".py") or ":" in name:
            forms = "package.module:factory, path/to/file.py:factory, timm:<name> or hf:<id>"
            raise InputError(f"model={name!r} is not valid: it should be a name, {forms}")
        raise unknown("model", name, names())


def reads_texts(name: str) -> tuple[bool, ...]:
    """Whether a model reads texts; both, where its data decide."""
    if name.startswith("hf:") or factories.is_factory(name):
        return (True, False)
    return (name == "bert",)


def build(
    name: str,
    classes: int,
    *,
    weights: str = "none",
    load: bool = True,
    vocabulary: int | None = None,
) -> nn.Module:
    """A classifier with `classes` outputs, images (N, 3, H, W) in, logits (N, classes) out.

    `name` is one of `names()`, or a name that `other_models` knows what to build of.
    `weights` is `none` (torchvision's initialisation, from torch's global generator), `pretrained`
    (ImageNet, downloaded by torchvision on first use; the head is new), or a safetensors file, of
    which all but the head is taken if that has another number of outputs. Without `load`, the
    architecture is the same and the weights are new. `vocabulary` is how many tokens there are, for
    a factory of a model that reads texts.
    """
    if other_models.builder(name) is not None:
        model = other_models.build(name, classes, weights=weights, load=load, vocabulary=vocabulary)
    else:
        model = _listed(name, classes, published=weights == "pretrained", load=load)
    if weights not in ("none", "pretrained") and load:
        path = user_path("weights", weights)
        _take(model, _read(path), f"weights={str(path)!r}")
    return model


def _listed(name: str, classes: int, *, published: bool, load: bool) -> nn.Module:
    """A model of `names()`, with published weights or new ones."""
    check(name)
    if name in CIFAR_MODELS:
        if published:
            raise InputError(
                f"weights=pretrained is not valid for {name}, of which no weights are published "
                "here: pass weights=none or weights=<file>"
            )
        return CIFAR_MODELS[name](classes)
    options = torchvision_models.published_options(name) if published else {}
    model = torchvision_models.new(name, classes, options)
    if published and load:
        whole = torchvision_models.published(name)
        heads = (f"{head_name(whole)}.", *_AUXILIARY)
        state = {k: tensor for k, tensor in whole.state_dict().items() if not k.startswith(heads)}
        _take(model, state, f"the ImageNet weights of {name}")
    return model


def describe(name: str, model: nn.Module) -> dict[str, object]:
    """What `rebuild` needs of a classifier beside its name and classes, as JSON values."""
    if other_models.builder(name) is not None:
        return other_models.describe(name, model)
    if name in CIFAR_MODELS:
        return {"builder": "cifar"}
    options = torchvision_models.describe(model)
    return {"builder": "torchvision"} | ({"options": options} if options else {})


def rebuild(structure: Mapping[str, Any]) -> nn.Module:
    """A dense model as a checkpoint's structure describes it, with new weights.

    Raises:
        ValueError: a structure that no version of this has written; an InputError, what is missing.
    """
    builder = structure.get("builder")
    if builder == "transformers":
        from pruneflow.workloads import encoders

        return encoders.rebuild(structure)
    if builder in other_models.BUILDERS:
        return other_models.rebuild(structure)
    if builder not in ("torchvision", "cifar"):
        raise ValueError(f"the builder {builder!r} is not known")
    name, classes = str(structure["model"]), int(structure["classes"])
    if name not in names():
        raise unknown("model", name, names())
    if builder == "cifar":
        return CIFAR_MODELS[name](classes)
    return torchvision_models.new(name, classes, structure.get("options", {}))


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


def head_of(model: nn.Module, inputs: Tensor | Mapping[str, Tensor]) -> str:
    """Name of the layer that makes a model's logits (N, classes) of some inputs.

    It is the last one called whose outputs the logits are; else, where they are computed from
    those, the last with an output for each class; else `head_name`.
    """
    called: list[tuple[str, Tensor]] = []
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                keep = functools.partial(_keep_output, called, name)
                hooks.callback(module.register_forward_hook(keep).remove)
        with looking(model), torch.no_grad():
            result = logits(model, inputs)
    equal = [n for n, o in called if o.shape == result.shape and torch.equal(o, result)]
    per_class = [n for n, o in called if result.shape[1] in (o.shape[1], o.shape[-1])]
    return (equal or per_class or [head_name(model)])[-1]


def _keep_output(
    called: list[tuple[str, Tensor]], name: str, module: nn.Module, inputs: object, output: Tensor
) -> None:
    called.append((name, output))


def head_name(model: nn.Module) -> str:
    """Name of the layer that makes the logits, by its place: the last linear one, or convolution.

    Of an encoder the last of its head: some list the head before the body.
    """
    linear = [str(n) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    body = f"{getattr(model, 'base_model_prefix', '')}."
    linear = [name for name in linear if not name.startswith(body)] or linear
    return (linear or [str(n) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)])[-1]


def logits(model: nn.Module, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
    """Logits (N, classes) of a batch: images as one tensor, texts as an encoder's named ones.

    Models of transformers return them in an object, with others.
    """
    result = model(inputs) if isinstance(inputs, Tensor) else model(**inputs)
    logits: Tensor = result if isinstance(result, Tensor) else result.logits
    return logits


def check_image_size(model: nn.Module, name: str, size: int) -> Tensor:
    """One blank input (1, 3, size, size) that the model is seen to accept."""
    try:
        sample = torch.zeros(1, 3, size, size, device=next(model.parameters()).device)
        with looking(model), torch.inference_mode():
            model(sample)
    except Exception as error:  # whatever a model does with images that it cannot take
        reason = first_line(error)
        raise InputError(f"image_size={size} does not work with {name}: {reason}") from None
    return sample


def check_runs(
    name: str,
    model: nn.Module,
    batches: Sequence[Tensor | Mapping[str, Tensor]],
    classes: int,
    samples: str,
) -> None:
    """See that a model gives logits for some batches, in training and in evaluation."""
    try:
        with looking(model), torch.no_grad():
            for batch in batches:
                for mode in (True, False):
                    result = logits(model.train(mode), batch)
                    number = len(batch if isinstance(batch, Tensor) else batch["input_ids"])
                    if result.shape != (number, classes):
                        shape = tuple(result.shape)
                        raise ValueError(f"logits of shape {shape}, not {(number, classes)}")
                    if not bool(result.isfinite().all()):
                        raise ValueError("its logits are not finite")
    except Exception as error:  # whatever a model of somebody's does with samples
        reason = first_line(error)
        raise InputError(f"model={name} cannot classify these {samples}: {reason}") from None


def random_inputs(
    structure: Mapping[str, Any], batch: int, *, size: int, device: str
) -> Tensor | dict[str, Tensor]:
    """A batch of noise for a model as a checkpoint's structure describes it, the same every time.

    Images are (batch, 3, size, size), channels_last as in training; texts are `input_ids` and
    `attention_mask`, both (batch, size).
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = structure.get("vocabulary")
    if structure.get("builder") != "transformers" and vocabulary is None:
        images = torch.randn(batch, 3, size, size, generator=generator)
        return images.to(device, memory_format=torch.channels_last)
    config = structure.get("config", {})
    words = vocabulary or config.get("vocab_size", 1_000)
    ids = torch.randint(words, (batch, size), generator=generator)
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
