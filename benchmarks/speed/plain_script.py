"""One level as the 2020 study's scripts did it, for `whole_level.py` to time: no pruneflow in it.

python plain_script.py arrays.npz model.safetensors alexnet 224 0 2
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """Arrays as torchvision's CIFAR10 gives them: a picture, transformed, at a time."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], size: int) -> None:
        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.Resize((size, size)),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def accuracy(model: nn.Module, loader: DataLoader[tuple[torch.Tensor, int]]) -> float:
    """Correct samples / samples."""
    model.eval()
    correct = 0
    with torch.no_grad():
        for images, labels in loader:
            correct += int((model(images).argmax(1) == labels).sum())
    return correct / len(loader.dataset)  # type: ignore[arg-type]


def main(arrays: str, weights: str, name: str, size: int, seed: int, threads: int) -> None:
    """Prune half, evaluate, fine-tune an epoch, evaluate."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    data = np.load(arrays)
    train, test = (
        Pictures(data[f"{part}_images"], data[f"{part}_labels"], size) for part in ("train", "test")
    )
    train_loader = DataLoader(train, batch_size=128, shuffle=True, num_workers=2)
    test_loader = DataLoader(test, batch_size=128, num_workers=2)
    model = torchvision.models.get_model(name, num_classes=10)
    model.load_state_dict(load_file(weights))
    places = [(m, "weight") for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    start = time.perf_counter()
    prune.global_unstructured(places, prune.L1Unstructured, amount=0.5)  # type: ignore[no-untyped-call]
    accuracy(model, test_loader)
    accuracy(model, train_loader)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4, weight_decay=0.01)
    model.train()
    for images, labels in train_loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    test_after = accuracy(model, test_loader)
    accuracy(model, train_loader)
    print(json.dumps({"seconds": time.perf_counter() - start, "test": test_after}))


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))  # type: ignore[arg-type]
