"""Tests of images that are read as they are needed: they are those that would be held in memory."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pruneflow.errors import ExperimentError, InputError
from pruneflow.workloads import datasets, image_files, training
from pruneflow.workloads.batches import loaded, shuffled
from pruneflow.workloads.datasets import Data
from pruneflow.workloads.image_files import ImageFiles
from pruneflow.workloads.machine import Machine
from pruneflow.workloads.training import Recipe

CPU = Machine("cpu", "fp32", 1)
KINDS = ("alike", "several sizes", "upright by EXIF", "grey and transparent", "parquet")


def folder(root: Path, kind: str, number: int = 24) -> Path:
    """Images of two classes, for training and test."""
    chance = np.random.default_rng(0)
    for split in ("train", "test"):
        for index in range(number):
            height = 20 - index % 3 if kind == "several sizes" else 20
            pixels = chance.integers(0, 256, (height, 16, 3), dtype=np.uint8)
            picture = Image.fromarray(pixels)
            exif = picture.getexif()
            if kind == "upright by EXIF":
                exif[0x0112] = 6
            if kind == "grey and transparent":
                picture = picture.convert(("L", "LA", "RGBA")[index % 3])
            path = root / split / f"class{index % 2}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path, exif=exif)
    if kind != "parquet":
        return root
    import datasets as library

    tables = root.parent / "tables"
    for split in ("train", "test"):
        rows = library.load_dataset("imagefolder", data_dir=str(root / split), split="train")
        rows.to_parquet(tables / f"{split}.parquet")
    return tables


def load(root: Path) -> Data:
    return datasets.load("imagefolder", data_dir=str(root), image_size=16, train_limit=12, seed=0)


@pytest.fixture
def all_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "IN_MEMORY_BYTES", 0)


@pytest.mark.parametrize("kind", KINDS)
def test_images_in_files_are_those_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    root = folder(tmp_path / "images", kind)
    held = load(root)
    monkeypatch.setattr(image_files, "IN_MEMORY_BYTES", 0)
    streamed = load(root)
    assert held.summary == streamed.summary
    for part in ("train", "val", "test"):
        before, after = getattr(held, part), getattr(streamed, part)
        assert isinstance(before.samples, np.ndarray)
        assert isinstance(after.samples, ImageFiles)
        assert after.samples.shape == before.samples.shape
        np.testing.assert_array_equal(np.asarray(after.samples), before.samples)
        np.testing.assert_array_equal(after.labels, before.labels)


def test_batches_come_in_the_same_order_and_each_once(tmp_path: Path, all_in_files: None) -> None:
    data = load(folder(tmp_path / "images", "alike")).train
    whole = np.asarray(data.samples)
    order = list(shuffled(data, 5, torch.Generator().manual_seed(0)))
    batches = list(loaded(data, iter(order)))
    assert len(batches) == len(order) == 3
    for (split, index), chosen in zip(batches, order, strict=True):
        np.testing.assert_array_equal(split[index].samples, whole[chosen])
        np.testing.assert_array_equal(split[index].labels, data.labels[chosen])


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_a_training_of_files_ends_with_the_same_weights(tmp_path: Path, augment: str) -> None:
    root, states = folder(tmp_path / "images", "alike"), []
    for limit in (image_files.IN_MEMORY_BYTES, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(image_files, "IN_MEMORY_BYTES", limit)
            data = load(root)
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16 * 16 * 3, 2))
        recipe = Recipe(2, 5, 0.01, "constant", "sgd", 0.0, 16, 0, augment=augment)
        list(training.fit(model, data.train, recipe, CPU))
        found = training.accuracy(model, data.test, CPU, image_size=16, batch_size=4)
        states.append((model[1].weight.detach().clone(), found))
    assert torch.equal(states[0][0], states[1][0])
    assert states[0][1] == states[1][1]


def test_an_epoch_holds_a_few_batches_and_never_all(tmp_path: Path, all_in_files: None) -> None:
    data = load(folder(tmp_path / "images", "alike", 200)).train
    data = data[np.arange(len(data)).repeat(400)]  # 4,800 images, 4.6 MB decoded
    order = shuffled(data, 20, torch.Generator().manual_seed(0))
    tracemalloc.start()
    for split, _ in loaded(data, order):
        assert len(split) == 20
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_500_000
    assert data.samples.shape[0] * 20 * 16 * 3 > 4_500_000


def test_other_files_have_another_digest(tmp_path: Path, all_in_files: None) -> None:
    root = folder(tmp_path / "images", "alike")
    first, again = load(root).digest, load(root).digest
    assert first == again
    path = next((root / "test").rglob("*.png"))
    Image.new("RGB", (16, 20)).save(path)
    assert load(root).digest != first


@pytest.mark.parametrize("place", ["head", "pixels"])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, all_in_files: None, place: str) -> None:
    root = folder(tmp_path / "images", "alike")
    path = sorted((root / "train").rglob("*.png"))[3]
    if place == "head":
        path.write_bytes(b"no image")
        with pytest.raises(InputError, match=f"{path} cannot be decoded"):
            load(root)
        return
    noise = np.random.default_rng(0).integers(0, 256, (20, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-200])  # all that a JPEG's head says, but not all pixels
    data = datasets.load("imagefolder", data_dir=str(root), image_size=16, train_limit=None, seed=0)
    with pytest.raises(ExperimentError, match=f"{path} cannot be decoded"):
        print([np.asarray(part.samples) for part in (data.train, data.val)])


def test_what_a_model_expects_goes_with_the_images(tmp_path: Path, all_in_files: None) -> None:
    data = load(folder(tmp_path / "images", "alike")).train
    other = replace(data, mean=(0.5, 0.5, 0.5))
    split, _ = next(iter(loaded(other, [np.arange(3)])))
    assert isinstance(split, type(data))
    assert split.mean == (0.5, 0.5, 0.5)
