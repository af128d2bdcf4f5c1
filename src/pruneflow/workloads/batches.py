"""Batches of samples: the order in which they come, and what a model is given of them."""

from __future__ import annotations

import collections
import functools
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pruneflow.workloads.machine import Machine
from pruneflow.workloads.splits import RGB, Samples, Split, Tokens

_BUCKET_BATCHES = 50  # batches of texts that are sorted by length together


def slices(samples: int, size: int) -> list[slice]:
    """Slices of at most `size`; a last sample alone joins the batch before (BatchNorm needs 2)."""
    starts = list(range(0, samples, size))
    if len(starts) > 1 and samples - starts[-1] == 1:
        starts.pop()
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], samples], strict=True)]


def shuffled(data: Samples, size: int, generator: torch.Generator) -> Iterator[NDArray[np.int64]]:
    """Batches of sample numbers in a random order, each sample once.

    Texts are sorted by length within stretches of many batches, so that those of one batch are
    alike in length and little of it is padding; the batches then come in a random order.
    """
    order = torch.randperm(len(data), generator=generator).numpy()
    batches = slices(len(data), size)
    if isinstance(data, Tokens):
        stretch = size * _BUCKET_BATCHES
        for start in range(0, len(order), stretch):
            part = order[start : start + stretch]
            order[start : start + stretch] = part[np.argsort(-data.lengths[part], kind="stable")]
        batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
    yield from (order[batch] for batch in batches)


def loaded(
    data: Samples, index: Iterable[NDArray[np.int64]]
) -> Iterator[tuple[Samples, NDArray[np.int64]]]:
    """Batches as numbers of samples that are in memory: those of files are decoded one ahead."""
    if isinstance(data, Tokens) or isinstance(data.samples, np.ndarray):
        yield from ((data, batch) for batch in index)
        return

    def read(batch: NDArray[np.int64]) -> Split:
        chosen = data[batch]
        return replace(chosen, samples=np.asarray(chosen.samples))

    with ThreadPoolExecutor(1) as ahead:
        pending = collections.deque[Future[Split]]()
        for batch in index:
            pending.append(ahead.submit(read, batch))
            if len(pending) > 1:
                split = pending.popleft().result()
                yield split, np.arange(len(split))
        for future in pending:
            yield future.result(), np.arange(len(future.result()))


def to_model(
    data: Samples, index: NDArray[np.int64], image_size: int | None, machine: Machine
) -> tuple[Tensor | dict[str, Tensor], Tensor]:
    """A batch as the model takes it, and its labels (N,)."""
    labels = machine.tensor(data.labels[index])
    if isinstance(data, Tokens):
        return tokens_to_model(data, index, machine), labels
    assert image_size is not None
    constants = _normalisation(machine.device, data.mean, data.deviation)
    return _pixels(data.samples[index], image_size, machine, constants), labels


def tokens_to_model(data: Tokens, index: NDArray[np.int64], machine: Machine) -> dict[str, Tensor]:
    """Texts as an encoder takes them: `input_ids` and `attention_mask`, both (N, longest)."""
    ids, mask = (machine.tensor(array) for array in data.padded(index))
    return {"input_ids": ids, "attention_mask": mask}


def _pixels(
    images: NDArray[np.uint8], size: int, machine: Machine, constants: tuple[Tensor, Tensor]
) -> Tensor:
    """Images as the model takes them: (N, 3, size, size), float32, channels_last, normalised."""
    mean, scale = constants
    uint8 = machine.tensor(np.ascontiguousarray(images))
    pixels = ((uint8 - mean) * scale).permute(0, 3, 1, 2)
    if pixels.shape[2:] != (size, size):
        shrinks = pixels.shape[2] > size or pixels.shape[3] > size
        pixels = functional.interpolate(
            pixels, (size, size), mode="bilinear", align_corners=False, antialias=shrinks
        )
    return pixels.contiguous(memory_format=torch.channels_last)


@functools.cache
def _normalisation(device: str, mean: RGB, deviation: RGB) -> tuple[Tensor, Tensor]:
    """What is taken from pixels and what they are multiplied by then, (3,), once a device."""
    with torch.inference_mode(False):
        means, scales = (torch.tensor(v, dtype=torch.float32) * 255 for v in (mean, deviation))
        return means.to(device), (1 / scales).to(device)
