"""Data sets: of images, decoded once and kept as uint8, and of texts; split the same every time.

To add one, write a function that returns `Raw` and its row in IMAGES, or one that returns
`RawTexts` (in `texts`) and its row in TEXTS.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pruneflow.errors import InputError, first_line, user_path
from pruneflow.workloads import texts
from pruneflow.workloads.texts import RawTexts, Texts, Tokens

if TYPE_CHECKING:  # imported when used: names and help must not wait for them
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    Images: TypeAlias = NDArray[np.uint8]
    Labels: TypeAlias = NDArray[np.int64]

VALIDATION = 0.1  # share of the training set that is held out for validation
TEST = 0.2  # share held out as the test set, where a data set has none of its own
_TEST_SEED = 2020  # a test set is the same whatever a run's seed


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
class Data:
    """A data set ready for an experiment.

    Attributes:
        train, val, test: disjoint; `val` is split off the published training set by the seed.
        classes: names, in the order of the class numbers.
        digest: hash of every sample and label of the three splits.
        source: where it came from.
    """

    name: str
    train: Split | Texts | Tokens
    val: Split | Texts | Tokens
    test: Split | Texts | Tokens
    classes: tuple[str, ...]
    digest: str
    source: str


def load(
    name: str, *, data_dir: str | None, image_size: int | None, train_limit: int | None, seed: int
) -> Data:
    """Load a data set, hold out its validation samples and keep `train_limit` of the rest.

    Both are drawn by `seed` with an equal share of every class. `image_size` is used only where
    images differ in size and have to be brought to one.

    Raises:
        InputError: a folder or hub that cannot be read, or a limit that does not fit.
    """
    raw: Raw | RawTexts
    if name in TEXTS:
        raw = TEXTS[name](data_dir)
    else:
        assert image_size is not None
        raw = IMAGES[name](data_dir, image_size)
    published: Split | Texts = raw.train
    test: Split | Texts | None = raw.test
    if test is None:
        held, kept = _balanced(
            published.labels, round(TEST * len(published)), _TEST_SEED, shares=True
        )
        published, test = published[kept], published[held]
    held, kept = _balanced(
        published.labels, max(1, round(VALIDATION * len(published))), seed, shares=True
    )
    train, val = published[kept], published[held]
    if train_limit is not None:
        classes = len(raw.classes)
        if not classes <= train_limit <= len(train):
            raise InputError(
                f"train_limit={train_limit} is not valid for {name}: it should be from {classes} "
                f"(one a class) to {len(train)} (all but validation)"
            )
        chosen, _ = _balanced(train.labels, train_limit, seed, shares=False)
        train = train[chosen]
    if len(set(train.labels.tolist())) < 2:
        raise InputError(f"{name} has training samples of one class only; at least 2 are needed")
    digest = _digest((train, val, test))
    return Data(name, train, val, test, raw.classes, digest, raw.source)


def _balanced(
    labels: Labels, count: int, seed: int, *, shares: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sorted indices of `count` samples and those of the rest, drawn by the seed.

    With `shares`, every class gives the same share of its samples; otherwise the same number of
    them, as far as it has so many.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    turn = np.empty(len(labels))  # when each sample's turn comes
    for number in np.unique(labels):
        members = order[labels[order] == number]
        rank = np.arange(len(members))
        turn[members] = (rank + 0.5) / len(members) if shares else rank
    queue = order[np.argsort(turn[order], kind="stable")]
    return np.sort(queue[:count]), np.sort(queue[count:])


def _digest(splits: Iterable[Split | Texts]) -> str:
    import numpy as np

    digest = hashlib.sha256()
    for split in splits:
        if isinstance(split, Texts):
            digest.update(repr(split.texts.tolist()).encode())
        else:
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
    raw = _hugging_face("cifar10", "uoft-cs/cifar10", data_dir, image_size)
    if len(raw.classes) != 10:
        raise InputError(
            f"{raw.source} has {len(raw.classes)} classes, CIFAR-10 has 10: "
            "pass dataset=imagefolder for images of your own"
        )
    return raw


def imagefolder(data_dir: str | None, image_size: int) -> Raw:
    """Any folder of images: `train/<class>/*`, with `test/` (or `val/`) beside it if there is one.

    A folder without `train` is one set of class folders, from which a test set is held out.
    """
    if data_dir is None:
        raise InputError("dataset=imagefolder needs data_dir=<folder of class folders>")
    return _folder("imagefolder", data_dir, image_size)


IMAGES: dict[str, Callable[[str | None, int], Raw]] = {
    "digits": digits,
    "cifar10": cifar10,
    "imagefolder": imagefolder,
}
TEXTS: dict[str, Callable[[str | None], RawTexts]] = {
    "reviews": texts.reviews,
    "sst2": texts.sst2,
    "textfolder": texts.textfolder,
}
DATASETS = (*IMAGES, *TEXTS)
BUNDLED = ("digits", "reviews")  # need no data_dir, and no network


@dataclass(frozen=True, eq=False)
class _Published:
    """One split as it is stored: how to read its pictures from the first on, and their labels."""

    pictures: Callable[[], Iterable[Image.Image | None]]
    labels: Labels
    where: str


def _hugging_face(name: str, hub: str, data_dir: str | None, size: int) -> Raw:
    """A data set from a folder, if one is given, else from the hub."""
    if data_dir is not None:
        return _folder(name, data_dir, size)
    refused = f"{name} could not be read from the Hugging Face hub ({hub})"
    instead = "pass data_dir=<folder with the hub repository's layout, or an image folder>"
    return _table(hub, size, refused, instead)


def _folder(name: str, data_dir: str, size: int) -> Raw:
    """A folder laid out as a hub repository (Parquet files), or of images in class folders."""
    folder = user_path("data_dir", data_dir)
    if not folder.exists():
        raise InputError(f"data_dir={data_dir!r} does not exist (looked at {folder.resolve()})")
    if not folder.is_dir():
        raise InputError(f"data_dir={data_dir!r} is a file, not a folder")
    if not any(folder.glob("*.parquet")) and not any(folder.glob("*/*.parquet")):
        return _image_folder(folder, size)
    refused = f"data_dir={data_dir!r} could not be read as {name}"
    return _table(str(folder.resolve()), size, refused, "it should hold the hub repository's files")


def _table(source: str, size: int, refused: str, instead: str) -> Raw:
    """A data set of Parquet files with an image and a class label column."""
    import datasets
    import numpy as np

    datasets.disable_progress_bars()
    try:
        splits: Any = datasets.load_dataset(source)
    except Exception as error:  # its readers raise whatever the network or the bytes lead them to
        raise InputError(f"{refused}: {first_line(error)}; {instead}") from None
    if "train" not in splits:
        raise InputError(f"{source} has no training split; it has: {', '.join(splits)}")
    features = splits["train"].features
    kinds = {key: type(feature).__name__ for key, feature in features.items()}
    image = next((key for key, kind in kinds.items() if kind == "Image"), None)
    label = next((key for key, kind in kinds.items() if kind == "ClassLabel"), None)
    if image is None or label is None:
        raise InputError(
            f"{source} is not an image classification set: an image and a class label column are "
            f"needed, there are: {', '.join(f'{k} ({v})' for k, v in kinds.items())}"
        )

    def published(key: str) -> _Published:
        labels = list(splits[key][label])
        if not labels or any(value is None or value < 0 for value in labels):
            raise InputError(f"{source}: split {key!r} is empty or has rows without a {label}")
        numbers = np.asarray(labels, dtype=np.int64)
        where = f"{source}, split {key!r}"
        return _Published(lambda: _pictures(splits[key], image), numbers, where)

    test = next((key for key in ("test", "validation", "val") if key in splits), None)
    parts = [published(key) for key in ("train", test) if key is not None]
    return _raw(parts, tuple(features[label].names), source, size)


def _pictures(split: Any, column: str) -> Iterable[Image.Image | None]:
    """The pictures of a split, decoded once and kept in the library's own cache as plain pixels."""
    from datasets import Features, Value
    from PIL import Image

    kept = {"width": Value("int32"), "height": Value("int32"), "pixels": Value("binary")}
    try:
        decoded = split.map(
            _as_pixels,
            input_columns=[column],
            batched=True,
            remove_columns=split.column_names,
            features=Features(kept),
        ).with_format("arrow")
    except Exception:  # a picture that cannot be decoded: told by whom reads them one by one
        yield from split[column]
        return
    for batch in decoded.iter(1_000):
        for width, height, pixels in zip(*(batch[name] for name in kept), strict=True):
            yield Image.frombytes("RGB", (width.as_py(), height.as_py()), pixels.as_buffer())


def _as_pixels(pictures: list[Image.Image]) -> dict[str, list[Any]]:
    rgb = [picture.convert("RGB") for picture in pictures]
    return {
        "width": [picture.width for picture in rgb],
        "height": [picture.height for picture in rgb],
        "pixels": [picture.tobytes() for picture in rgb],
    }


def _image_folder(folder: Path, size: int) -> Raw:
    """`train/<class>/*` and, if there is one, a test folder beside it; or `<class>/*` alone."""
    import numpy as np
    from PIL import Image
    from torchvision.datasets import ImageFolder

    def find(*names: str) -> Path | None:
        return next((folder / name for name in names if (folder / name).is_dir()), None)

    train = find("train", "training")
    test = find("test", "testing", "val", "valid", "validation") if train else None
    roots = [root for root in (train or folder, test) if root is not None]
    parts, classes = [], []
    for root in roots:
        try:
            found = ImageFolder(str(root))
        except (FileNotFoundError, OSError) as error:
            raise InputError(
                f"data_dir={str(folder)!r} holds neither Parquet files nor images in class folders "
                f"(train/<class>/<images>): {first_line(error)}"
            ) from None
        paths = [path for path, _ in found.samples]
        numbers = np.asarray([number for _, number in found.samples], dtype=np.int64)
        parts.append(
            _Published(lambda paths=paths: map(Image.open, paths), numbers, str(root))  # type: ignore[misc]
        )
        classes.append(tuple(found.classes))
    if len(set(classes)) > 1:
        odd = sorted(set(classes[0]) ^ set(classes[1]))
        raise InputError(f"{roots[0]} and {roots[1]} differ in their classes: {', '.join(odd)}")
    return _raw(parts, classes[0], str(folder.resolve()), size)


def _raw(parts: list[_Published], classes: tuple[str, ...], source: str, size: int) -> Raw:
    splits = _decode(parts, None) or _decode(parts, (size, size))
    assert splits is not None
    return Raw(splits[0], splits[1] if len(splits) > 1 else None, classes, source)


def _decode(parts: list[_Published], fit: tuple[int, int] | None) -> list[Split] | None:
    """Decode every image once, as it is; None at the first one of another size than the others.

    With `fit` (width, height), each has its shorter side resized and its middle cut out.
    """
    import numpy as np
    from PIL import Image, ImageOps

    side = fit
    splits = []
    for part in parts:
        images: Images | None = None
        index = 0
        try:
            for index, picture in enumerate(part.pictures()):
                if picture is None:
                    raise ValueError("there is none")
                side = side or picture.size
                if fit is None and picture.size != side:
                    return None
                rgb = picture.convert("RGB")
                if images is None:
                    images = np.empty((len(part.labels), side[1], side[0], 3), dtype=np.uint8)
                images[index] = np.asarray(ImageOps.fit(rgb, side) if fit else rgb)
        except (
            OSError,
            SyntaxError,
            ValueError,
            MemoryError,
            Image.DecompressionBombError,
        ) as error:
            reason = first_line(error)
            raise InputError(f"{part.where}: image {index} cannot be decoded: {reason}") from None
        assert images is not None
        splits.append(Split(images, part.labels))
    return splits
