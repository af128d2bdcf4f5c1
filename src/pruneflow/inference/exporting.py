"""Exporting: a model as files that others read, and what runs these files again.

A format is one function that writes a folder and returns a call of what it wrote, and its row in
FORMATS. Batches of the files are of any size.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pruneflow.errors import first_line
from pruneflow.inference.engines import Exportable, to_onnx
from pruneflow.inference.forms import Inputs
from pruneflow.workloads import models
from pruneflow.workloads.splits import MEAN, STD

OPSET = 18
_PACKAGES = {"onnx": ("onnxruntime", "onnx")}
Call: TypeAlias = Callable[[Inputs], Tensor]
# A model in eval mode, a batch for it, what its checkpoint says of it, the folder to write to.
Format: TypeAlias = Callable[[nn.Module, Inputs, Mapping[str, Any], Path], Call]


class NoFormatError(Exception):
    """A model cannot be written in a format; the text says why."""


def safetensors(
    model: nn.Module, inputs: Inputs, structure: Mapping[str, Any], folder: Path
) -> Call:
    """The plain state dict, every tensor dense and under its own name: model.safetensors."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    state = {
        name: tensor.detach().contiguous().clone() for name, tensor in model.state_dict().items()
    }
    save_file(state, path, metadata={"format": "pt"})

    def call(inputs: Inputs) -> Tensor:
        positional, named = ((inputs,), {}) if isinstance(inputs, Tensor) else ((), inputs)
        output = torch.func.functional_call(model, load_file(path), positional, named)
        return getattr(output, "logits", output)  # type: ignore[no-any-return]

    return call


def huggingface(
    model: nn.Module, inputs: Inputs, structure: Mapping[str, Any], folder: Path
) -> Call:
    """A folder for `from_pretrained` of transformers, of images with how they are normalised."""
    import transformers

    if not isinstance(model, transformers.PreTrainedModel):
        raise NoFormatError("it is no model of transformers: pass format=safetensors or onnx")
    model.save_pretrained(folder)
    labels = {number: str(label) for number, label in enumerate(structure.get("labels", ()))}
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"id2label": labels, "label2id": {v: k for k, v in labels.items()}} if labels else {}
    (folder / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
    if isinstance(inputs, Tensor):
        processor = transformers.ViTImageProcessor(
            size={"height": inputs.shape[2], "width": inputs.shape[3]},
            image_mean=list(structure.get("mean", MEAN)),
            image_std=list(structure.get("std", STD)),
        )
        processor.save_pretrained(folder)
    try:
        again = type(model).from_pretrained(folder).eval()
    except RuntimeError:  # what a mismatch of sizes is
        raise NoFormatError(
            "its sizes differ from layer to layer, which no config.json of transformers can say: "
            "pass form=masked, or format=safetensors or onnx"
        ) from None
    return lambda inputs: models.logits(again, inputs)


def torch_export(
    model: nn.Module, inputs: Inputs, structure: Mapping[str, Any], folder: Path
) -> Call:
    """The graph of `torch.export`, which runs without the model's code: model.pt2."""
    exportable = Exportable(model, inputs)
    tensors = tuple(exportable.inputs.values())
    free = range(1 if isinstance(inputs, Tensor) else 2)  # batch, and of texts the tokens
    shapes = (tuple(dict.fromkeys(free, torch.export.Dim.DYNAMIC) for _ in tensors),)
    program = torch.export.export(exportable, tensors, dynamic_shapes=shapes)
    torch.export.save(program, folder / "model.pt2")
    again = torch.export.load(folder / "model.pt2").module()
    return lambda inputs: again(*Exportable(model, inputs).inputs.values())


def onnx(model: nn.Module, inputs: Inputs, structure: Mapping[str, Any], folder: Path) -> Call:
    """An ONNX graph, run by ONNX Runtime: model.onnx."""
    import onnxruntime as ort

    exportable = Exportable(model, inputs)
    names, path = list(exportable.inputs), folder / "model.onnx"
    axes = {0: "batch"} if isinstance(inputs, Tensor) else {0: "batch", 1: "tokens"}
    free = dict.fromkeys(names, axes) | {"logits": {0: "batch"}}
    to_onnx(exportable, path, output_names=["logits"], dynamic_axes=free, opset_version=OPSET)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    taken = {node.name for node in session.get_inputs()}  # what the graph does not use is gone

    def call(inputs: Inputs) -> Tensor:
        arrays = {n: t.contiguous().numpy() for n, t in Exportable(model, inputs).inputs.items()}
        feed = {name: array for name, array in arrays.items() if name in taken}
        return torch.from_numpy(session.run(None, feed)[0])

    return call


FORMATS: dict[str, Format] = {
    "safetensors": safetensors,
    "onnx": onnx,
    "torch_export": torch_export,
    "huggingface": huggingface,
}


def missing(name: str) -> str | None:
    """Name of a package that a format needs and that is not installed; None if it is complete."""
    packages = _PACKAGES.get(name, ())
    return next((name for name in packages if importlib.util.find_spec(name) is None), None)


def write(
    name: str, model: nn.Module, inputs: Inputs, structure: Mapping[str, Any], folder: Path
) -> Call:
    """Write a model into a folder, and return what runs the written files on inputs.

    Raises:
        NoFormatError: the model cannot be written so.
    """
    try:
        with models.looking(model), warnings.catch_warnings(action="ignore"), torch.no_grad():
            call = FORMATS[name](model, inputs, structure, folder)
    except NoFormatError:
        raise
    except Exception as error:  # exporters and runtimes raise kinds of their own
        raise NoFormatError(first_line(error)) from None

    def looked(inputs: Inputs) -> Tensor:
        with models.looking(model), torch.inference_mode():
            return call(inputs)

    return looked
