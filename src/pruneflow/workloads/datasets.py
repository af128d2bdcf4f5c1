"""Data sets: of images, kept as uint8, and of texts; split the same every time.

To add one, write a function that returns `Raw` (see `images`) and its row in IMAGES, or one that
returns `RawTexts` (see `texts`) and its row in TEXTS.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from pruneflow.errors import InputError, one_line
from pruneflow.workloads import images, texts
from pruneflow.workloads.folders import count, listed
from pruneflow.workloads.images import Raw as Raw
from pruneflow.workloads.images import Split as Split
from pruneflow.workloads.texts import RawTexts, Texts, Tokens

if TYPE_CHECKING:  # imported when used: names and help must not wait for them
    import numpy as np
    from numpy.typing import NDArray

    Labels: TypeAlias = NDArray[np.int64]
    _Samples: TypeAlias = Split | Texts

VALIDATION = 0.1  # share of the training set that is held out for validation
TEST = 0.2  # share held out as the test set, where a data set has none of its own
_TEST_SEED = 2020  # a test set is the same whatever a run's seed


@dataclass(frozen=True, eq=False)
class Data:
    """A data set ready for an experiment.

    Attributes:
        train, val, test: disjoint; `val` is split off the published training set by the seed,
            unless the data set has training, validation and test set.
        classes: names, in the order of the class numbers.
        digest: hash of every sample and label of the three splits.
        source: where it came from.
        summary: one line on what was read as what.
    """

    name: str
    train: Split | Texts | Tokens
    val: Split | Texts | Tokens
    test: Split | Texts | Tokens
    classes: tuple[str, ...]
    digest: str
    source: str
    summary: str = ""


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
    train: _Samples = raw.train
    val: _Samples | None = raw.val
    test: _Samples | None = raw.test
    if test is None:
        train, test = _hold_out(train, round(TEST * len(train)), _TEST_SEED)
    if val is None:
        train, val = _hold_out(train, max(1, round(VALIDATION * len(train))), seed)
    if train_limit is not None:
        classes = len(raw.classes)
        if not classes <= train_limit <= len(train):
            raise InputError(
                f"train_limit={train_limit} is not valid for {name}: it should be from {classes} "
                f"(one a class) to {len(train)} (all but validation)"
            )
        chosen, _ = balanced(train.labels, train_limit, seed, shares=False)
        train = train[chosen]
    if len(set(train.labels.tolist())) < 2:
        raise InputError(f"{name} has training samples of one class only; at least 2 are needed")
    summary = _summary(raw, train, val, test)
    digest = _digest((train, val, test))
    return Data(name, train, val, test, raw.classes, digest, raw.source, summary)


def _hold_out(samples: _Samples, number: int, seed: int) -> tuple[_Samples, _Samples]:
    """The samples without so many of them, and those; every class gives its share."""
    held, kept = balanced(samples.labels, number, seed, shares=True)
    return samples[kept], samples[held]


def _summary(raw: Raw | RawTexts, train: _Samples, val: _Samples, test: _Samples) -> str:
    """One line: what was read as what, how it is split, what stands in two splits."""
    read = raw.notes or (count(len(raw.train), "sample"),)
    sizes = f"{len(train):,} to train, {len(val):,} to validate, {len(test):,} to test"
    known = set(_contents(train))
    repeated = [
        f"{number:,} of {count(len(split), f'{part} sample')}"
        for part, split in (("validation", val), ("test", test))
        if (number := sum(content in known for content in _contents(split)))
    ]
    copies = [f"in train too: {', '.join(repeated)}"] if repeated else []
    classes = f"classes: {listed(raw.classes)}"
    return one_line("; ".join([f"read {read[0]}", *read[1:], classes, sizes, *copies]))


def _contents(split: _Samples) -> Iterator[object]:
    """What tells samples from each other: their text, or a hash of their pixels."""
    if isinstance(split, Texts):
        yield from split.texts
    else:
        yield from (hash(image.tobytes()) for image in split.images)


def balanced(
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


def _digest(splits: Iterable[_Samples]) -> str:
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
    raw = images.from_hub("cifar10", "uoft-cs/cifar10", data_dir, image_size)
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
    return images.from_folder("imagefolder", data_dir, image_size)


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
