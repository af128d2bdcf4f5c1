"""Engines: what runs a form. Eager PyTorch is always there, the others are an extra.

An engine is one function and its row in ENGINES: a model in eval mode and inputs in, a call that
returns its logits out.
"""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pruneflow.errors import first_line
from pruneflow.inference.forms import Inputs
from pruneflow.workloads import models

Compiled = Callable[[], Tensor]


class NoEngineError(Exception):
    """An engine cannot run a model; the text says why."""


def eager(model: nn.Module, inputs: Inputs, threads: int) -> Compiled:
    """PyTorch itself, operation by operation."""

    def call() -> Tensor:
        with torch.inference_mode():
            return models.logits(model, inputs)

    return call


def onnxruntime(model: nn.Module, inputs: Inputs, threads: int) -> Compiled:
    """ONNX Runtime on the CPU, of the model exported for these inputs' shape."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory(prefix="pruneflow-") as folder:
        path = Path(folder) / "model.onnx"
        try:
            with models.looking(model), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    _Positional(model, inputs),
                    _tensors(inputs),
                    path,
                    input_names=_names(inputs),
                    dynamo=False,
                    external_data=True,
                )
            options = ort.SessionOptions()
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
            options.log_severity_level = 3
            # threads that wait by spinning would take the cores of what is timed next
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            names = [put.name for put in session.get_inputs()]
            feed = dict(zip(_names(inputs), _arrays(inputs), strict=True))
            feed = {name: value for name, value in feed.items() if name in names}
            session.run(None, feed)
        except Exception as error:  # the exporter and the runtime raise kinds of their own
            raise NoEngineError(f"onnxruntime cannot run it: {first_line(error)}") from None

    def call() -> Tensor:
        return torch.from_numpy(session.run(None, feed)[0])

    return call


def openvino(model: nn.Module, inputs: Inputs, threads: int) -> Compiled:
    """OpenVINO on the CPU, in float32 as the others, of the model converted for these inputs."""
    import openvino as ov

    try:
        with models.looking(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            converted = ov.convert_model(
                _Positional(model, inputs),
                example_input=_tensors(inputs),
                input=[tuple(t.shape) for t in _tensors(inputs)],
            )
        settings: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # by itself it would take bf16 where there is any
        }
        request = ov.Core().compile_model(converted, "CPU", settings).create_infer_request()
        feed = _arrays(inputs)
        request.infer(feed, share_inputs=True)
    except Exception as error:
        raise NoEngineError(f"openvino cannot run it: {first_line(error)}") from None

    def call() -> Tensor:
        return torch.from_numpy(request.infer(feed, share_inputs=True)[0])

    return call


ENGINES: dict[str, Callable[[nn.Module, Inputs, int], Compiled]] = {
    "eager": eager,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
}
# Engines that do nothing with zeros: the forms worth giving them.
ENGINE_FORMS = ("dense", "compact")
_MODULES = {"onnxruntime": ("onnxruntime", "onnx"), "openvino": ("openvino",)}


def missing(engine: str) -> str | None:
    """Name of a package that an engine needs and that is not installed; None if it is complete."""
    for module in _MODULES.get(engine, ()):
        if importlib.util.find_spec(module) is None:
            return module
    return None


class _Positional(nn.Module):
    """A model in eval mode, called with its tensors in a fixed order, as exporters want it."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.model = model
        self.names = None if isinstance(inputs, Tensor) else list(inputs)
        self.eval()  # an exporter hands its own mode down to the model when it is done

    def forward(self, *tensors: Tensor) -> Tensor:
        if self.names is None:
            return models.logits(self.model, tensors[0])
        return models.logits(self.model, dict(zip(self.names, tensors, strict=True)))


def _tensors(inputs: Inputs) -> tuple[Tensor, ...]:
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs.values())


def _arrays(inputs: Inputs) -> list[NDArray[Any]]:
    """As engines take them: contiguous, so that nothing is rearranged at each call."""
    return [tensor.contiguous().numpy() for tensor in _tensors(inputs)]


def _names(inputs: Inputs) -> list[str]:
    return ["input"] if isinstance(inputs, Tensor) else list(inputs)
