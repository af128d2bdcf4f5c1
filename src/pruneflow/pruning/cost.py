"""What a model costs to run, counted: multiply-accumulates (MACs).

Convention: the multiplications of convolutions and linear layers, for one sample; biases,
normalisation, activations and pooling count nothing. One MAC is two FLOPs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pruneflow.pruning.selection import PRUNABLE


def positions(model: nn.Module, sample: Tensor) -> dict[str, int]:
    """How often each weight of a layer is used in one forward pass of one sample.

    Args:
        model: any module; its mode is left as it was found.
        sample: one input, shape (1, ...).

    Returns:
        parameter name of the layer's weight -> number of output positions it is applied at.
    """
    counts: dict[str, int] = {}
    hooks = []

    def counter(name: str, module: nn.Module):  # type: ignore[no-untyped-def]
        channels_last = isinstance(module, nn.Linear)

        def count(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            channels = output.shape[-1] if channels_last else output.shape[1]
            counts[name] = counts.get(name, 0) + output.numel() // channels

        return count

    for layer, module in model.named_modules():
        if isinstance(module, PRUNABLE):
            name = f"{layer}.weight" if layer else "weight"
            hooks.append(module.register_forward_hook(counter(name, module)))
    training = model.training
    try:
        with torch.inference_mode():
            model.eval()(sample)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return counts


def macs(model: nn.Module, uses: dict[str, int]) -> tuple[int, int]:
    """MACs of one sample: of every weight, and of those that are not zero.

    The second is what a kernel that skips zeros would do (the "theoretical" count of Blalock et
    al. 2020); a dense kernel does the first.

    Args:
        model: the model.
        uses: what `positions` returned for it.
    """
    weights = {name: model.get_parameter(name) for name in uses}
    dense = sum(weight.numel() * uses[name] for name, weight in weights.items())
    left = sum(int(weight.count_nonzero()) * uses[name] for name, weight in weights.items())
    return dense, left
