"""Data sets: images decoded once, kept as uint8, split the same way every time.

To add one, write a function that returns `Raw` and its row in DATASETS.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pruneflow.errors import InputError

if TYPE_CHECKING:  # imported when used: names and help must not wait for them
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    Images: TypeAlias = NDArray[np.uint8]
    Labels: TypeAlias = NDArray[np.int64]

VALIDATION = 0.1  # share of the training set that is held out for validation
TEST = 0.2  # share held out as the test set, where a data set has none of its own
_TEST_SEED = 2020  # a test set is the same whatever a run's seed

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp", ".tif", ".tiff", ".pgm"}


@dataclass(frozen=True, eq=False)
class Split:
    """Images (N, H, W, 3), uint8, and their class numbers (N,)."""

    images: Images
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: NDArray[np.int64]) -> Split:
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True, eq=False)
class Raw:
    """A data set as it is published: its training set, its test set if it has one, its origin."""

    train: Split
    test: Split | None
    classes: tuple[str, ...]
    source: str


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set ready for an experiment.

    Attributes:
        train, val, test: disjoint; `val` is split off the published training set by the seed.
        classes: names, in the order of the class numbers.
        digest: hash of every image and label of the three splits.
        source: where it came from.
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    digest: str
    source: str


def load(
    name: str, *, data_dir: str | None, image_size: int, train_limit: int | None, seed: int
) -> ImageData:
    """Load a data set, hold out its validation images and keep `train_limit` of the rest.

    Both are drawn by `seed` with an equal share of every class. `image_size` is used only where
    images differ in size and have to be brought to one.

    Raises:
        InputError: a folder or hub that cannot be read, or a limit that does not fit.
    """
    raw = DATASETS[name](data_dir, image_size)
    published, test = raw.train, raw.test
    if test is None:
        held, kept = _balanced(published.labels, round(TEST * len(published)), _TEST_SEED)
        published, test = published[kept], published[held]
    held, kept = _balanced(published.labels, max(1, round(VALIDATION * len(published))), seed)
    train, val = published[kept], published[held]
    if train_limit is not None:
        classes = len(raw.classes)
        if not classes <= train_limit <= len(train):
            raise InputError(
                f"train_limit={train_limit} is not valid for {name}: it should be from {classes} "
                f"(one image a class) to {len(train)} (all but validation)"
            )
        chosen, _ = _balanced(train.labels, train_limit, seed)
        train = train[chosen]
    if len(set(train.labels.tolist())) < 2:
        raise InputError(f"{name} has training images of one class only; at least 2 are needed")
    digest = _digest((train, val, test))
    return ImageData(name, train, val, test, raw.classes, digest, raw.source)


def _balanced(labels: Labels, count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sorted indices of `count` samples, classes as equal as can be, and those of the rest."""
    import numpy as np

    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)  # how many of its class come before each sample
    for number in np.unique(labels):
        members = order[labels[order] == number]
        rank[members] = np.arange(len(members))
    queue = order[np.argsort(rank[order], kind="stable")]
    return np.sort(queue[:count]), np.sort(queue[count:])


def _digest(splits: Iterable[Split]) -> str:
    import numpy as np

    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr(split.images.shape).encode())
        digest.update(np.ascontiguousarray(split.images).data)
        digest.update(np.ascontiguousarray(split.labels).data)
    return digest.hexdigest()[:16]


# ------------------------------------------------------------------------------- the data sets


def digits(data_dir: str | None, image_size: int) -> Raw:
    """scikit-learn's handwritten digits: 1,797 real images of 8x8, bundled with it."""
    import numpy as np
    from sklearn.datasets import load_digits

    if data_dir is not None:
        raise InputError(f"data_dir={data_dir!r} does not go with digits, which are bundled")
    bunch = load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=3)
    names = tuple(str(name) for name in bunch.target_names)
    return Raw(Split(images, bunch.target.astype(np.int64)), None, names, "sklearn:load_digits")


def cifar10(data_dir: str | None, image_size: int) -> Raw:
    """CIFAR-10 (Krizhevsky 2009): from the hub, or a folder with its layout or an ImageFolder."""
    return _hugging_face("cifar10", "uoft-cs/cifar10", data_dir, image_size)


def imagefolder(data_dir: str | None, image_size: int) -> Raw:
    """Any folder of images: `train/<class>/*`, with `test/` (or `val/`) beside it if there is one.

    A folder without `train` is one set of class folders, from which a test set is held out.
    """
    if data_dir is None:
        raise InputError("dataset=imagefolder needs data_dir=<folder of class folders>")
    return _hugging_face("imagefolder", None, data_dir, image_size)


DATASETS: dict[str, Callable[[str | None, int], Raw]] = {
    "digits": digits,
    "cifar10": cifar10,
    "imagefolder": imagefolder,
}


def _hugging_face(name: str, hub: str | None, data_dir: str | None, size: int) -> Raw:
    import datasets

    datasets.disable_progress_bars()
    path = hub or ""
    try:
        if data_dir is None:
            splits = datasets.load_dataset(path)
        else:
            folder = Path(data_dir).expanduser()
            path = str(folder.resolve())
            if _has_tables(folder):
                splits = datasets.load_dataset(path)
            else:
                splits = datasets.load_dataset("imagefolder", data_dir=path)
    except InputError:
        raise
    except Exception as error:  # its readers raise whatever the network or the bytes lead them to
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if data_dir is None:
            raise InputError(
                f"{name} could not be read from the Hugging Face hub ({hub}): {reason}. "
                "Pass data_dir=<folder with the hub repository's layout, or an image folder>"
            ) from None
        raise InputError(f"data_dir={data_dir!r} could not be read as {name}: {reason}") from None
    return _raw(splits, name, path, size)


def _has_tables(folder: Path) -> bool:
    """Whether a folder is laid out as a hub repository (Parquet files), not as an image folder."""
    if not folder.exists():
        raise InputError(f"data_dir={str(folder)!r} does not exist (looked at {folder.resolve()})")
    if not folder.is_dir():
        raise InputError(f"data_dir={str(folder)!r} is a file, not a folder")
    images = False
    for path in folder.rglob("*"):
        if path.suffix.lower() == ".parquet":
            return True
        images = images or path.suffix.lower() in _SUFFIXES
    if not images:
        raise InputError(
            f"data_dir={str(folder)!r} holds neither Parquet files nor images: it should be laid "
            "out as the hub repository (Parquet) or as train/<class>/<images>"
        )
    return False


def _raw(splits: Any, name: str, source: str, size: int) -> Raw:
    if "train" not in splits:
        raise InputError(f"{source} has no training split; it has: {', '.join(splits)}")
    train = splits["train"]
    kinds = {key: type(feature).__name__ for key, feature in train.features.items()}
    image = next((key for key, kind in kinds.items() if kind == "Image"), None)
    label = next((key for key, kind in kinds.items() if kind == "ClassLabel"), None)
    if image is None or label is None:
        raise InputError(
            f"{source} is not an image classification set: an image and a class label column are "
            f"needed, there are: {', '.join(f'{k} ({v})' for k, v in kinds.items())}"
        )
    classes = tuple(train.features[label].names)
    test = next((splits[key] for key in ("test", "validation", "val") if key in splits), None)
    parts = [train] if test is None else [train, test]
    side = train[0][image].size if len(train) else (size, size)
    decoded = _decode(parts, image, label, side) or _decode(parts, image, label, None, size)
    assert decoded is not None
    return Raw(decoded[0], decoded[1] if test is not None else None, classes, source)


def _decode(
    parts: list[Any], image: str, label: str, side: tuple[int, int] | None, size: int = 0
) -> list[Split] | None:
    """Decode every image once; None at the first one that is not of `side` (width, height).

    With side None, each is brought to a square of `size`.
    """
    import numpy as np

    width, height = side or (size, size)
    splits = []
    for part in parts:
        labels = np.asarray(part[label], dtype=np.int64)
        if len(labels) == 0 or labels.min() < 0:
            raise InputError("the data set has a split that is empty or without labels")
        images = np.empty((len(labels), height, width, 3), dtype=np.uint8)
        for index, picture in enumerate(part[image]):
            if side is not None and picture.size != side:
                return None
            rgb = picture.convert("RGB")
            images[index] = np.asarray(rgb if side else _square(rgb, size))
        splits.append(Split(images, labels))
    return splits


def _square(picture: Image.Image, size: int) -> Image.Image:
    """The shorter side resized to `size`, the middle cut out."""
    from PIL import ImageOps

    return ImageOps.fit(picture, (size, size))
