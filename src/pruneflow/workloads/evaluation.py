"""Evaluation of classifiers: accuracy, and the statistics that BatchNorm evaluates with.

Accuracy is correct samples over samples, summed before it is divided.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim.swa_utils import update_bn

from pruneflow.workloads import models
from pruneflow.workloads.batches import slices, to_model
from pruneflow.workloads.machine import Machine
from pruneflow.workloads.splits import Samples, Tokens
from pruneflow.workloads.training import Recipe

# Pixels of an evaluation batch (512 images of 64x64): beyond it, speed no longer grows.
_PIXELS = 1 << 21
_TEXTS = 128  # texts of an evaluation batch
_STATISTICS_SAMPLES = 2_048  # BatchNorm's statistics are re-estimated on


def accuracy(
    model: nn.Module,
    data: Samples,
    machine: Machine,
    *,
    image_size: int | None,
    batch_size: int,
    of: NDArray[np.int64] | None = None,
) -> float:
    """Correct samples / samples, in eval mode; the model is left as it was.

    A batch is at least as large as in training. `of` are the numbers of the samples that count.
    """
    order = np.arange(len(data)) if of is None else of
    if isinstance(data, Tokens):  # alike in length, so that hardly any of a batch is padding
        order = order[np.argsort(data.lengths[order], kind="stable")]
        size = max(batch_size, _TEXTS)
    else:
        assert image_size is not None
        size = max(batch_size, min(512, _PIXELS // image_size**2))
    correct = 0
    with models.looking(model), torch.inference_mode(), machine.autocast():
        for start in range(0, len(order), size):
            inputs, labels = to_model(data, order[start : start + size], image_size, machine)
            correct += int((models.logits(model, inputs).argmax(1) == labels).sum())
    return correct / len(order)


def recalibrate(model: nn.Module, data: Samples, recipe: Recipe, machine: Machine) -> None:
    """Re-estimate the running statistics of BatchNorm, in place, as the mean over batches.

    Statistics of the unpruned model are wrong for a pruned one, and make its accuracy before
    fine-tuning look like chance (Li et al. 2020, EagleEye, https://arxiv.org/abs/2007.02491).
    The recipe's batch size, image size and seed say which of the training samples are used, and
    how.
    """
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        return
    order = np.random.default_rng(recipe.seed).permutation(len(data))[:_STATISTICS_SAMPLES]
    batches = (
        to_model(data, order[batch], recipe.image_size, machine)[0]
        for batch in slices(len(order), recipe.batch_size)
    )
    with models.same_random_state(), models.same_modes(model), machine.autocast():
        torch.manual_seed(recipe.seed)  # dropout is active
        update_bn(batches, model)
