"""Tests of the models for images of 32x32: their sizes are those of the literature."""

from __future__ import annotations

import pytest
import torch

from pruneflow.errors import InputError
from pruneflow.pruning import tracing
from pruneflow.workloads import models
from pruneflow.workloads.cifar_models import CIFAR_MODELS

# Counted by hand from the papers' tables: convolutions, BatchNorm's two vectors, the head.
PARAMETERS = {
    "cifar_resnet20": 269_722,  # 0.27 M: He et al. 2016, table 6
    "cifar_resnet56": 853_018,  # 0.85 M
    "cifar_resnet110": 1_727_962,  # 1.7 M
    "cifar_resnet18": 11_173_962,
    "cifar_vgg16_bn": 14_728_266,
    "cifar_vgg19_bn": 20_040_522,
}


@pytest.mark.parametrize("name", sorted(CIFAR_MODELS))
def test_models_have_the_parameters_of_the_literature(name: str) -> None:
    model = models.build(name, 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", sorted(CIFAR_MODELS))
def test_logits_are_those_of_the_classes_at_other_sizes_too(name: str) -> None:
    model = models.build(name, 7).eval()
    with torch.no_grad():
        for side in (32, 48):
            assert models.logits(model, torch.zeros(2, 3, side, side)).shape == (2, 7)


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_resnet18", "cifar_vgg16_bn"])
def test_channels_of_every_block_can_be_removed(name: str) -> None:
    model = models.build(name, 10)
    images = torch.zeros(2, 3, 32, 32, dtype=torch.float64)

    def probe(other: torch.nn.Module) -> torch.Tensor:
        return models.logits(other, images.to(next(other.parameters()).dtype))

    groups = tracing.find_groups(model, probe, outputs=[models.head_name(model)]).groups
    convolutions = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)]
    inside = [n for n in convolutions if not name.startswith("cifar_resnet") or ".conv1" in n]
    makers = {layer for group in groups for layer in group.makers(model)}
    assert set(inside) <= makers


def test_no_weights_of_them_are_published() -> None:
    with pytest.raises(InputError, match="weights=pretrained is not valid for cifar_resnet20"):
        models.build("cifar_resnet20", 10, weights="pretrained")
