"""Tests of augmentations: what every one of them keeps, and crops and mirror images by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pruneflow.workloads import training
from pruneflow.workloads.augmentations import AUGMENTATIONS, crop_flip
from pruneflow.workloads.machine import Machine
from pruneflow.workloads.splits import Split
from pruneflow.workloads.training import Recipe

Images = NDArray[np.uint8]
CPU = Machine("cpu", "fp32", 1)
EVERY = pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
SIDES = pytest.mark.parametrize(("height", "width"), [(32, 32), (17, 40), (4, 4)])


def images(number: int, height: int = 32, width: int = 32) -> Images:
    chance = np.random.default_rng(height + width)
    return chance.integers(1, 256, (number, height, width, 3), dtype=np.uint8)


def drawn(name: str, batch: Images, seed: int = 0) -> Images:
    return AUGMENTATIONS[name](batch, torch.Generator().manual_seed(seed))


@EVERY
@SIDES
def test_a_batch_keeps_its_shape_and_the_images_given_are_not_changed(
    name: str, height: int, width: int
) -> None:
    batch = images(6, height, width)
    before = batch.copy()
    changed = drawn(name, batch)
    assert changed.shape == batch.shape
    assert changed.dtype == np.uint8
    np.testing.assert_array_equal(batch, before)


@EVERY
def test_the_generator_alone_decides_and_no_other_is_drawn_from(name: str) -> None:
    batch = images(16)
    torch.manual_seed(3)
    first = drawn(name, batch)
    state = torch.get_rng_state()
    torch.manual_seed(4)
    np.testing.assert_array_equal(drawn(name, batch), first)
    assert (drawn(name, batch, seed=1) != first).any()
    torch.manual_seed(3)
    assert torch.equal(torch.get_rng_state(), state)


@EVERY
def test_a_batch_is_changed_anew_each_time(name: str) -> None:
    batch, generator = images(16), torch.Generator().manual_seed(0)
    assert (AUGMENTATIONS[name](batch, generator) != AUGMENTATIONS[name](batch, generator)).any()


@SIDES
def test_a_crop_is_a_window_of_the_image_in_a_black_border_or_its_mirror_image(
    height: int, width: int
) -> None:
    batch = images(40, height, width)
    rows, columns = height // 8, width // 8
    mirrored = 0
    for image, changed in zip(batch, drawn("crop_flip", batch), strict=True):
        padded = np.pad(image, ((rows, rows), (columns, columns), (0, 0)))
        windows = [
            (padded[y : y + height, x : x + width][:, ::step], step)
            for y in range(2 * rows + 1)
            for x in range(2 * columns + 1)
            for step in (1, -1)
        ]
        steps = [step for window, step in windows if np.array_equal(window, changed)]
        assert len(steps) == 1
        mirrored += steps[0] == -1
    assert 8 <= mirrored <= 32  # of 40, by the seed


def test_crops_come_from_everywhere() -> None:
    batch = np.zeros((400, 8, 8, 3), dtype=np.uint8)
    batch[:, 3, 4] = 255
    changed = crop_flip(batch, torch.Generator().manual_seed(0))
    spots = {(int(y), int(x)) for _, y, x in zip(*changed[..., 0].nonzero(), strict=True)}
    assert spots == {(y, x) for y in (2, 3, 4) for x in (2, 3, 4, 5)}


@EVERY
def test_a_training_that_goes_on_ends_with_the_same_weights(name: str) -> None:
    data = Split(images(24, 8, 8), np.arange(24) % 3)
    recipe = Recipe(3, 8, 0.1, "cosine", "nesterov", 5e-4, 8, 0, augment=name)

    def network() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))

    whole, stopped, other = network(), network(), network()
    list(training.fit(whole, data, recipe, CPU))
    since = next(iter(training.fit(stopped, data, recipe, CPU))).snapshot()
    list(training.fit(stopped, data, recipe, CPU, since=since))
    list(training.fit(other, data, replace(recipe, augment="none"), CPU))
    assert torch.equal(whole[1].weight, stopped[1].weight)
    assert not torch.equal(whole[1].weight, other[1].weight)
