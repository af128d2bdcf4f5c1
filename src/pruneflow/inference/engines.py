"""Engines: what runs a form. Eager PyTorch is always there, the others are an extra.

An engine is one function and its row in ENGINES: a model in eval mode, inputs and threads in, a
call that returns its logits out.
"""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruneflow.errors import first_line
from pruneflow.inference.forms import Inputs
from pruneflow.workloads import models

Engine = Callable[[nn.Module, Inputs, int], Callable[[], Tensor]]
Arrays = dict[str, Any]  # the inputs by name, as contiguous NumPy arrays


class NoEngineError(Exception):
    """An engine cannot run a model; the text says why."""


class Exportable(nn.Module):
    """A model called with its tensors in a fixed order, as exporters want it."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.model = model
        self.is_named = not isinstance(inputs, Tensor)
        self.inputs = {"input": inputs} if isinstance(inputs, Tensor) else inputs
        self.eval()  # an exporter hands its own mode down to the model when it is done

    def forward(self, *tensors: Tensor) -> Tensor:
        named = dict(zip(self.inputs, tensors, strict=True))
        return models.logits(self.model, named if self.is_named else tensors[0])


def _exported(build: Callable[[Exportable, Arrays, int], Callable[[], Any]]) -> Engine:
    """The engine that runs what `build` makes of a model, its inputs and threads."""

    @wraps(build)
    def engine(model: nn.Module, inputs: Inputs, threads: int) -> Callable[[], Tensor]:
        try:
            with models.looking(model), warnings.catch_warnings(action="ignore"):
                exportable = Exportable(model, inputs)
                arrays = {n: t.contiguous().numpy() for n, t in exportable.inputs.items()}
                infer = build(exportable, arrays, threads)
            infer()
        except Exception as error:  # exporters and runtimes raise kinds of their own
            raise NoEngineError(f"{build.__name__} cannot run it: {first_line(error)}") from None
        return lambda: torch.from_numpy(infer())

    return engine


def eager(model: nn.Module, inputs: Inputs, threads: int) -> Callable[[], Tensor]:
    """PyTorch itself, operation by operation."""

    def call() -> Tensor:
        with torch.inference_mode():
            return models.logits(model, inputs)

    return call


def to_onnx(model: Exportable, path: Path, **options: Any) -> None:
    """Write a model as an ONNX graph, by the exporter that needs no further package.

    It is taught adaptive pooling to any size: PyTorch's own knows whole factors of the input only,
    and VGG16 pools 1x1 up to 7x7 where images are small.
    """
    names, tensors = list(model.inputs), tuple(model.inputs.values())
    registry: Any = torch.onnx
    registry.register_custom_op_symbolic(_POOLING, _adaptive_pooling, _POOLING_OPSET)
    try:
        torch.onnx.export(model, tensors, path, input_names=names, dynamo=False, **options)
    finally:
        registry.unregister_custom_op_symbolic(_POOLING, _POOLING_OPSET)


_POOLING, _POOLING_OPSET = "aten::adaptive_avg_pool2d", 9


def _adaptive_pooling(graph: Any, images: Any, size: Any) -> Any:
    """Pooling as ONNX has it where windows are alike, else as products with their means."""
    from torch.onnx import symbolic_helper

    helper: Any = symbolic_helper  # untyped
    outputs, sides = helper._get_const(size, "is", "output_size"), None
    with suppress(RuntimeError):  # of what has no sizes
        sides = images.type().varyingSizes()
    if sides is None or None in sides[-2:]:
        raise ValueError("adaptive pooling of images whose size is known only when it is run")
    inputs = sides[-2:]
    if all(side % output == 0 for side, output in zip(inputs, outputs, strict=True)):
        windows = [side // output for side, output in zip(inputs, outputs, strict=True)]
        return graph.op("AveragePool", images, kernel_shape_i=windows, strides_i=windows)
    rows, columns = (_means(s, o) for s, o in zip(inputs, outputs, strict=True))
    across = graph.op("MatMul", images, graph.op("Constant", value_t=columns.T.contiguous()))
    return graph.op("MatMul", graph.op("Constant", value_t=rows), across)


def _means(side: int, outputs: int) -> Tensor:
    """(outputs, side): what each output of adaptive pooling takes of each input, adding up to 1."""
    means = torch.zeros(outputs, side)
    for number, row in enumerate(means):
        window = slice(number * side // outputs, -(-(number + 1) * side // outputs))
        row[window] = 1 / (window.stop - window.start)
    return means


@_exported
def onnxruntime(model: Exportable, arrays: Arrays, threads: int) -> Callable[[], Any]:
    """ONNX Runtime on the CPU, of the model exported for these inputs' shape."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # threads that wait by spinning would take the cores of what is timed next
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with tempfile.TemporaryDirectory(prefix="pruneflow-") as folder:
        path = Path(folder) / "model.onnx"
        to_onnx(model, path, external_data=True)
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {node.name: arrays[node.name] for node in session.get_inputs()}
    return lambda: session.run(None, feed)[0]


@_exported
def openvino(model: Exportable, arrays: Arrays, threads: int) -> Callable[[], Any]:
    """OpenVINO on the CPU, in float32 as the others, of the model converted for these inputs."""
    import openvino as ov

    feed, tensors = list(arrays.values()), tuple(model.inputs.values())
    converted = ov.convert_model(model, example_input=tensors, input=[a.shape for a in feed])
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # by itself it would take bf16 where there is any
    }
    request = ov.Core().compile_model(converted, "CPU", settings).create_infer_request()
    return lambda: request.infer(feed, share_inputs=True)[0]


ENGINES: dict[str, Engine] = {"eager": eager, "onnxruntime": onnxruntime, "openvino": openvino}
# Engines that do nothing with zeros: the forms worth giving them.
ENGINE_FORMS = ("dense", "compact")
_PACKAGES = {"onnxruntime": ("onnxruntime", "onnx"), "openvino": ("openvino",)}


def missing(engine: str) -> str | None:
    """Name of a package that an engine needs and that is not installed; None if it is complete."""
    packages = _PACKAGES.get(engine, ())
    return next((name for name in packages if importlib.util.find_spec(name) is None), None)
