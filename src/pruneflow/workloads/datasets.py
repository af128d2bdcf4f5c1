"""Data sets by their names: read, split the same every time, and told of in a line.

To add one, write a function that returns `Raw` (see `images` and `texts`), and its row here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pruneflow.errors import InputError, one_line
from pruneflow.workloads import images, other_datasets, texts
from pruneflow.workloads.folders import count, listed
from pruneflow.workloads.splits import Raw, Samples, Split, balanced, contents, digest

VALIDATION = 0.1  # share of the training set that is held out for validation
TEST = 0.2  # share held out as the test set, where a data set has none of its own
_TEST_SEED = 2020  # a test set is the same whatever a run's seed

# Each takes a folder or None, and the side that images of several sizes are brought to.
Reader = Callable[[str | None, int | None], Raw]
IMAGES: dict[str, Reader] = {
    "digits": images.digits,
    "cifar10": images.cifar10,
    "imagefolder": images.imagefolder,
}
TEXTS: dict[str, Reader] = {
    "reviews": texts.reviews,
    "sst2": texts.sst2,
    "textfolder": texts.textfolder,
}
DATASETS = (*IMAGES, *TEXTS)
BUNDLED = ("digits", "reviews")  # need no data_dir, and no network


@dataclass(frozen=True, eq=False)
class Data:
    """A data set ready for an experiment: disjoint splits, and the names of classes in order."""

    name: str
    train: Samples
    val: Samples
    test: Samples
    classes: tuple[str, ...]
    digest: str  # of every sample and label
    source: str
    summary: str  # a line on what was read as what

    @property
    def holds_texts(self) -> bool:
        """Whether samples are texts, and no images."""
        return isinstance(self.train, Split) and self.train.samples.dtype == object


def load(
    name: str,
    *,
    data_dir: str | None,
    image_size: int | None,
    train_limit: int | None,
    seed: int,
    columns: Sequence[str] = (),
) -> Data:
    """Load a data set, hold out its validation samples and keep `train_limit` of the rest.

    Both are drawn by `seed` with an equal share of every class. `image_size` is used only where
    images differ in size and have to be brought to one. `columns` are those of inputs and labels,
    for data sets of Hugging Face.
    """
    if other_datasets.is_other(name):
        raw = other_datasets.read(name, columns, image_size)
    else:
        raw = (IMAGES | TEXTS)[name](data_dir, image_size)
    train, val, test = raw.train, raw.val, raw.test
    if test is None:
        held, rest = balanced(train.labels, round(TEST * len(train)), _TEST_SEED, shares=True)
        train, test = train[rest], train[held]
    if val is None:
        number = max(1, round(VALIDATION * len(train)))
        held, rest = balanced(train.labels, number, seed, shares=True)
        train, val = train[rest], train[held]
    if train_limit is not None:
        if not len(raw.classes) <= train_limit <= len(train):
            raise InputError(
                f"train_limit={train_limit} is not valid for {name}: it should be from "
                f"{len(raw.classes)} (one a class) to {len(train)} (all but validation)"
            )
        chosen, _ = balanced(train.labels, train_limit, seed, shares=False)
        train = train[chosen]
    if len(set(train.labels.tolist())) < 2:
        raise InputError(f"{name} has training samples of one class only; at least 2 are needed")
    summary = _summary(raw, train, val, test)
    content = digest((train, val, test))
    return Data(name, train, val, test, raw.classes, content, raw.source, summary)


def _summary(raw: Raw, train: Split, val: Split, test: Split) -> str:
    """What was read as what, how it is split, and what stands in two splits."""

    def hashes(split: Split) -> list[int]:
        return [hash(content) for content in contents(split.samples)]

    read = "; ".join(raw.notes or (count(len(raw.train), "sample"),))
    sizes = f"{len(train):,} to train, {len(val):,} to validate, {len(test):,} to test"
    known, repeated = set(hashes(train)), []
    for part, split in (("validation", val), ("test", test)):
        if number := sum(content in known for content in hashes(split)):
            repeated.append(f"{number:,} of {count(len(split), f'{part} sample')}")
    copies = f"; in train too: {', '.join(repeated)}" if repeated else ""
    return one_line(f"read {read}; classes: {listed(raw.classes)}; {sizes}{copies}")
