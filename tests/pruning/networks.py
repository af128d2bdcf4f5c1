"""Small networks in which channels hang together in the ways that real ones use."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def images(size: int = 8) -> Callable[[nn.Module], Tensor]:
    """What runs a model on two fixed images of any float type."""
    pictures = torch.randn(
        2, 3, size, size, generator=torch.Generator().manual_seed(9), dtype=torch.float64
    )

    def forward(model: nn.Module) -> Tensor:
        logits: Tensor = model(pictures.to(next(model.parameters()).dtype))
        return logits

    return forward


def plain() -> nn.Sequential:
    """Two convolutions, then two linear layers behind a flatten: 4, 6 and 5 units."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )


class Residual(nn.Module):
    """A stem and two blocks on one stream, BatchNorm everywhere, as in ResNet."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.ModuleList(nn.Conv2d(8, 6, 3, padding=1, bias=False) for _ in range(2))
        self.inner_norm = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(2))
        self.outer = nn.ModuleList(nn.Conv2d(6, 8, 3, padding=1, bias=False) for _ in range(2))
        self.outer_norm = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        for inner, a, outer, b in zip(
            self.inner, self.inner_norm, self.outer, self.outer_norm, strict=True
        ):
            x = torch.relu(x + b(outer(torch.relu(a(inner(x))))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class Grouped(nn.Module):
    """A convolution in 3 groups of 2 to 4 channels between two others, then a depthwise one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first = nn.Conv2d(3, 6, 1)
        self.grouped = nn.Conv2d(6, 12, 3, padding=1, groups=3)
        self.norm = nn.BatchNorm2d(12)
        self.next = nn.Conv2d(12, 5, 1)
        self.depthwise = nn.Conv2d(5, 5, 3, padding=1, groups=5)
        self.last = nn.Conv2d(5, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.grouped(torch.relu(self.first(x)))))
        logits: Tensor = self.last(torch.relu(self.depthwise(self.next(x)))).mean((2, 3))
        return logits


class Shuffled(nn.Module):
    """Channels reversed on the way: a dependency that tracing does not see."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Conv2d(3, 6, 1)
        self.second = nn.Conv2d(6, 4, 1)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x)).flip(1)
        logits: Tensor = self.last(torch.relu(self.second(x)).mean((2, 3)))
        return logits


class Normalised(nn.Module):
    """Channels that a GroupNorm mixes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first = nn.Conv2d(3, 6, 1)
        self.norm = nn.GroupNorm(2, 6)
        self.second = nn.Conv2d(6, 4, 1)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.second(self.norm(self.first(x))).mean((2, 3)))
        return logits


class Tied(nn.Module):
    """Two convolutions that share their weight, between two others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.first = nn.Conv2d(3, 6, 1)
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.again = nn.Conv2d(6, 6, 3, padding=1)
        self.again.weight = self.shared.weight
        self.last = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.shared(torch.relu(self.first(x))))
        logits: Tensor = self.last(torch.relu(self.again(x))).mean((2, 3))
        return logits


def trained_looking(model: nn.Module) -> nn.Module:
    """Every normalisation and bias drawn at random, as training leaves them."""
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.data.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return model.eval()
