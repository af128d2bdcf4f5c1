"""Classifiers for images of 32x32, as the literature on CIFAR-10 has them.

Torchvision's begin by making an image of 224 pixels small; these keep its size in the first
convolution, of 3x3. Images (N, 3, H, W) in, logits (N, classes) out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional


class _Block(nn.Module):
    """Two convolutions of 3x3 and a shortcut: the basic block of He et al. 2016.

    Where the shape changes, the shortcut is a projection (convolution of 1x1 and BatchNorm) or, for
    `projects=False`, every second pixel with channels of zeros around it (their option A).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, projects: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2
        self.shortcut = nn.Sequential()
        if projects and (stride > 1 or inputs != outputs):
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if len(self.shortcut):
            x = self.shortcut(x)
        elif self.padding:
            x = x[:, :, :: self.stride, :: self.stride]
            x = functional.pad(x, (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(y + x)


class CifarResNet(nn.Module):
    """Stages of so many channels with so many basic blocks each, an average over the image, a head.

    He et al. 2016, https://arxiv.org/abs/1512.03385, section 4.2 (20, 56 and 110 layers); with
    `projects` the ResNet18 of ImageNet on a stem for 32x32.
    """

    def __init__(
        self, classes: int, *, channels: Sequence[int], blocks: int, projects: bool
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        inputs, stages = channels[0], []
        for number, outputs in enumerate(channels):
            first = _Block(inputs, outputs, 1 if number == 0 else 2, projects)
            others = (_Block(outputs, outputs, 1, projects) for _ in range(blocks - 1))
            stages.append(nn.Sequential(first, *others))
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> logits (N, classes)."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.stages(x)
        return self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


class CifarVGG(nn.Module):
    """VGG with BatchNorm and a single linear layer, as it is used on CIFAR-10.

    Simonyan and Zisserman 2015, https://arxiv.org/abs/1409.1556; the head of 512 inputs after Li et
    al. 2017, https://arxiv.org/abs/1608.08710.
    """

    def __init__(self, classes: int, *, depths: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for outputs, depth in zip((64, 128, 256, 512, 512), depths, strict=True):
            for _ in range(depth):
                convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
                layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, classes)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W), 32 pixels a side or more, -> logits (N, classes)."""
        x = functional.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(x.flatten(1))  # type: ignore[no-any-return]


def _resnet(layers: int) -> Callable[[int], nn.Module]:
    blocks = (layers - 2) // 6
    return functools.partial(CifarResNet, channels=(16, 32, 64), blocks=blocks, projects=False)


# name -> the model, given its number of classes
CIFAR_MODELS: dict[str, Callable[[int], nn.Module]] = {
    "cifar_resnet20": _resnet(20),
    "cifar_resnet56": _resnet(56),
    "cifar_resnet110": _resnet(110),
    "cifar_resnet18": functools.partial(
        CifarResNet, channels=(64, 128, 256, 512), blocks=2, projects=True
    ),
    "cifar_vgg16_bn": functools.partial(CifarVGG, depths=(2, 2, 3, 3, 3)),
    "cifar_vgg19_bn": functools.partial(CifarVGG, depths=(2, 2, 4, 4, 4)),
}
