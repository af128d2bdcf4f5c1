"""Augmentations: what training images are changed by, anew in every epoch.

To add one, write the function and its row in AUGMENTATIONS. It takes a batch of images, uint8 of
(N, H, W, 3), and the training's generator, which alone it draws from (so a training that goes on
draws the same), and returns another batch of that shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:  # torch takes seconds to import; names and help must not wait for it
    import numpy as np
    import torch
    from numpy.typing import NDArray

    Images: TypeAlias = NDArray[np.uint8]

_MARGIN = 8  # a border of an eighth of the side: 4 pixels of 32 (He et al. 2016, section 4.2)


def crop_flip(images: Images, generator: torch.Generator) -> Images:
    """A crop of the full size out of each image with a black border, and half of them mirrored.

    He et al. 2016, https://arxiv.org/abs/1512.03385, section 4.2.
    """
    import numpy as np
    import torch

    number, height, width = images.shape[:3]
    rows, columns = height // _MARGIN, width // _MARGIN
    padded = np.pad(images, ((0, 0), (rows, rows), (columns, columns), (0, 0)))
    top = torch.randint(2 * rows + 1, (number,), generator=generator).tolist()
    left = torch.randint(2 * columns + 1, (number,), generator=generator).tolist()
    mirrored = torch.randint(2, (number,), generator=generator).tolist()
    changed = np.empty_like(images)
    for index, (y, x, mirror) in enumerate(zip(top, left, mirrored, strict=True)):
        crop = padded[index, y : y + height, x : x + width]
        changed[index] = crop[:, ::-1] if mirror else crop
    return changed


def randaugment(images: Images, generator: torch.Generator) -> Images:
    """`crop_flip`, then two random operations of magnitude 9 on each image, by torchvision.

    Cubuk et al. 2020, https://arxiv.org/abs/1909.13719.
    """
    import torch
    from torchvision.transforms import RandAugment

    operations = RandAugment(num_ops=2, magnitude=9)
    cropped = torch.from_numpy(crop_flip(images, generator)).permute(0, 3, 1, 2)
    seed = int(torch.randint(2**31, (), generator=generator))
    with torch.random.fork_rng(devices=()):  # torchvision draws from the global generator
        torch.manual_seed(seed)
        changed = torch.stack([operations(image) for image in cropped])
    return changed.permute(0, 2, 3, 1).numpy()


NO_AUGMENTATION = "none"
# name -> the function
AUGMENTATIONS: dict[str, Callable[[Images, torch.Generator], Images]] = {
    "crop_flip": crop_flip,
    "randaugment": randaugment,
}
