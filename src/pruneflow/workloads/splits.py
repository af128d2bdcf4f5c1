"""Splits of a data set: samples and their classes, and how some of them are drawn by a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, cast

if TYPE_CHECKING:  # imported when used: names and help must not wait for it
    import numpy as np
    from numpy.typing import NDArray

    Integers: TypeAlias = NDArray[np.int64]


RGB: TypeAlias = tuple[float, float, float]
# ImageNet's means and deviations of colours in [0, 1], for every data set: what most published
# weights expect, and from scratch as good as the data's own.
MEAN: RGB = (0.485, 0.456, 0.406)
STD: RGB = (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class Split:
    """Images (N, H, W, 3) of uint8, or texts (N,) as objects, and their class numbers (N,).

    Of many images, `samples` are `ImageFiles`, which an index gives others of and which become an
    array where one is needed.

    A model is given images less `mean` and over `deviation`, of each colour.
    """

    samples: Any
    labels: Integers
    mean: RGB = MEAN
    deviation: RGB = STD

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Integers) -> Split:
        return replace(self, samples=self.samples[index], labels=self.labels[index])


@dataclass(frozen=True, eq=False)
class Tokens:
    """Texts as a tokenizer has them: token numbers end to end, and where each text starts (N + 1,).

    `padding` fills up the shorter texts of a batch, before the text if `at_start`.
    """

    ids: NDArray[np.int32]
    starts: Integers
    labels: Integers
    padding: int
    at_start: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Integers:
        """Number of tokens of each text."""
        lengths: Integers = self.starts[1:] - self.starts[:-1]
        return lengths

    def padded(self, index: Integers) -> tuple[Integers, Integers]:
        """Token numbers (texts, longest) of some texts, and 1 where a token of theirs is."""
        import numpy as np

        lengths = self.lengths[index]
        mask = np.arange(int(lengths.max()))[None, :] < lengths[:, None]
        mask = mask[:, ::-1] if self.at_start else mask
        ids = np.full(mask.shape, self.padding, dtype=np.int64)
        ids[mask] = np.concatenate([self.ids[self.starts[i] : self.starts[i + 1]] for i in index])
        return ids, mask.astype(np.int64)


Samples: TypeAlias = Split | Tokens


@dataclass(frozen=True, eq=False)
class Raw:
    """A data set as it is published: its training set, and its others if it has them.

    `notes` say what was read as what, and what was left out.
    """

    train: Split
    test: Split | None
    classes: tuple[str, ...]
    source: str
    val: Split | None = None
    notes: tuple[str, ...] = ()


def balanced(labels: Integers, count: int, seed: int, *, shares: bool) -> tuple[Integers, Integers]:
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


def contents(samples: Any) -> Iterator[bytes]:
    """What tells samples apart: their pixels or text, or a hash of the file that holds them."""
    if hasattr(samples, "contents"):
        return cast("Iterator[bytes]", samples.contents())
    return (s.encode() if isinstance(s, str) else s.tobytes() for s in samples)


def digest(splits: Iterable[Split]) -> str:
    """Hash of every sample and label, the same on every machine."""
    import numpy as np

    total = hashlib.sha256()
    for split in splits:
        if split.samples.dtype == object:
            total.update(repr(split.samples.tolist()).encode())
        else:
            total.update(repr(split.samples.shape).encode())
            if isinstance(split.samples, np.ndarray):
                total.update(np.ascontiguousarray(split.samples).data)
            else:
                total.update(b"".join(contents(split.samples)))
        total.update(np.ascontiguousarray(split.labels).data)
    return total.hexdigest()[:16]
