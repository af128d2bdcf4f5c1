"""Text data sets: readers of tables with a text and a label column, and the bundled reviews.

`datasets` lists them; `encoders` turns their texts into tokens.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from pruneflow.errors import InputError, first_line
from pruneflow.workloads import tables
from pruneflow.workloads.folders import count, existing, listed, roles, titled
from pruneflow.workloads.tables import Table

if TYPE_CHECKING:  # imported when used: names and help must not wait for them
    import numpy as np
    from numpy.typing import NDArray

    Labels: TypeAlias = NDArray[np.int64]

_REVIEWS = 2_000
_REVIEWS_SEED = 1_888
_MISLABELLED = 0.03  # so that no model is right about everything


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts, an object array (N,) of str, and their class numbers (N,)."""

    texts: NDArray[np.object_]
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: NDArray[np.int64]) -> Texts:
        return Texts(self.texts[index], self.labels[index])


@dataclass(frozen=True, eq=False)
class Tokens:
    """Texts as a model's tokenizer has them: token numbers end to end, and where each one starts.

    Attributes:
        ids: int32, all texts after each other.
        starts: where each text starts in it, and where the last one ends (N + 1,).
        labels: class numbers (N,).
        padding: the token number that fills up shorter texts of a batch.
        at_start: whether it goes before a text and not after it.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    labels: Labels
    padding: int
    at_start: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each text."""
        lengths: NDArray[np.int64] = self.starts[1:] - self.starts[:-1]
        return lengths

    def padded(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Token numbers of some texts, filled up to the longest of them, and 1 where a token is.

        Returns:
            Two arrays of shape (texts, tokens of the longest).
        """
        import numpy as np

        lengths = self.lengths[index]
        mask = np.arange(int(lengths.max()))[None, :] < lengths[:, None]
        mask = mask[:, ::-1] if self.at_start else mask
        ids = np.full(mask.shape, self.padding, dtype=np.int64)
        ids[mask] = np.concatenate([self.ids[self.starts[i] : self.starts[i + 1]] for i in index])
        return ids, mask.astype(np.int64)


@dataclass(frozen=True, eq=False)
class RawTexts:
    """A text data set as it is published: its training set, and its others if it has them.

    Attributes:
        source: where it came from.
        notes: what was read as what, and what was left out.
    """

    train: Texts
    test: Texts | None
    classes: tuple[str, ...]
    source: str
    val: Texts | None = None
    notes: tuple[str, ...] = ()


def reviews(data_dir: str | None) -> RawTexts:
    """2,000 synthetic film reviews, made from templates by a fixed seed; for trying things out.

    They are no data: no number from them says anything about language. One label in 33 is wrong.
    """
    import numpy as np

    if data_dir is not None:
        raise InputError(f"data_dir={data_dir!r} does not go with reviews, which are bundled")
    chance = random.Random(_REVIEWS_SEED)
    texts, labels = [], []
    for number in range(_REVIEWS):
        label = number % 2
        texts.append(_review(chance, positive=bool(label)))
        labels.append(1 - label if chance.random() < _MISLABELLED else label)
    order = chance.sample(range(_REVIEWS), _REVIEWS)
    made = Texts(np.array(texts, dtype=object)[order], np.array(labels, dtype=np.int64)[order])
    return RawTexts(made, None, ("negative", "positive"), "pruneflow:reviews (synthetic)")


_GOOD = [
    "wonderful",
    "moving",
    "clever",
    "brilliant",
    "warm",
    "honest",
    "gripping",
    "funny",
    "fresh",
    "lovely",
]
_BAD = [
    "dull",
    "clumsy",
    "tedious",
    "hollow",
    "lazy",
    "painful",
    "messy",
    "stale",
    "bland",
    "forgettable",
]
_THINGS = [
    "film",
    "movie",
    "story",
    "script",
    "cast",
    "plot",
    "ending",
    "picture",
    "dialogue",
    "score",
]
_DEGREES = ["", "", "very ", "quite ", "truly ", "rather "]
_STARTS = ["", "", "in the end , ", "for two hours , ", "as expected , ", "on the whole , "]
_ENDS = ["", "", " from start to finish", " despite its length", " on a small budget", " again"]


def _review(chance: random.Random, *, positive: bool) -> str:
    """One sentence; a third of them say it by negating the opposite."""
    negated = chance.random() < 1 / 3
    adjective = chance.choice(_GOOD if positive != negated else _BAD)
    verb = chance.choice(
        ["is never", "is not", "was hardly"] if negated else ["is", "was", "feels"]
    )
    thing, degree = chance.choice(_THINGS), chance.choice(_DEGREES)
    return f"{chance.choice(_STARTS)}the {thing} {verb} {degree}{adjective}{chance.choice(_ENDS)} ."


def sst2(data_dir: str | None) -> RawTexts:
    """SST-2 (Socher et al. 2013) as in GLUE, from the hub or a folder with its files.

    GLUE's own test set has no labels; its validation set is the test set here.
    """
    if data_dir is None:
        splits, notes = _from_hub("nyu-mll/glue", "sst2"), list[str]()
        source = "nyu-mll/glue (sst2)"
    else:
        folder = existing(data_dir)
        if (folder / "sst2").is_dir():  # all of GLUE: its other tasks lie beside it
            folder = folder / "sst2"
        splits, notes = tables.read(folder)
        source = str(folder.resolve())
    if "train" not in splits or "validation" not in splits:
        raise InputError(f"{source} is not SST-2: it needs a train and a validation file")
    if splits.pop("test", None):
        notes.append("the test set has no labels and is not read")
    raw = _raw(splits, source, notes)
    if len(raw.classes) != 2:
        raise InputError(f"{source} is not SST-2: it has {len(raw.classes)} classes, not 2")
    names = ("negative", "positive") if raw.classes == ("0", "1") else raw.classes
    return replace(raw, classes=names)


def textfolder(data_dir: str | None) -> RawTexts:
    """Any folder of CSV or Parquet files with a text and a label column.

    A word of a file's or a folder's name says whether it is for training (`reviews_train.csv`,
    `train/x.parquet`), the test or the validation (which is the test set where there is no other).
    If no name does, all files are one set, from which a test set is held out.
    """
    if data_dir is None:
        raise InputError("dataset=textfolder needs data_dir=<folder of CSV or Parquet files>")
    folder = existing(data_dir)
    splits, notes = tables.read(folder)
    if "train" not in roles(splits):
        there = listed([table.name for found in splits.values() for table in found])
        raise InputError(
            f"data_dir={data_dir!r} has test files but no training file (train*.csv): {there}"
        )
    return _raw(splits, str(folder.resolve()), notes)


def _from_hub(repository: str, name: str) -> dict[str, list[Table]]:
    import datasets

    datasets.disable_progress_bars()
    try:
        splits: Any = datasets.load_dataset(repository, name)
    except Exception as error:  # its readers raise whatever the network leads them to
        raise InputError(
            f"{name} could not be read from the Hugging Face hub ({repository}): "
            f"{first_line(error)}; pass data_dir=<folder with the hub repository's files>"
        ) from None
    return {
        str(key): [tables.of_frame(f"{repository} ({name}), {key}", splits[key].to_pandas())]
        for key in splits
    }


_IN_WORDS = {"train": "training", "validation": "validation", "test": "test"}


def _raw(splits: Mapping[str, Sequence[Table]], source: str, notes: Sequence[str]) -> RawTexts:
    """Texts and class numbers out of the tables of each split.

    Raises:
        InputError: columns that cannot be told, texts or labels that are missing.
    """
    import numpy as np

    parts = roles(splits)
    text, label = tables.text_and_label(splits[parts["train"]][0])
    read = []
    texts: dict[str, list[str]] = {}
    labels: dict[str, list[str]] = {}
    for part, split in parts.items():
        for table in splits[split]:
            for column in (text, label):
                if column not in table.columns:
                    raise InputError(
                        f"{table.name}: the {_IN_WORDS[part]} file has no column {column!r}; it "
                        f"has {listed(list(table.columns))}"
                    )
            texts.setdefault(part, []).extend(table.texts(text))
            labels.setdefault(part, []).extend(table.labels(label))
        if not texts[part]:
            raise InputError(f"{source}: a {_IN_WORDS[part]} file is empty")
        files = count(len(splits[split]), "file")
        read.append(f"{titled(part, split)}: {files}, {count(len(texts[part]), 'row')}")
    names = tables.class_names(itertools.chain.from_iterable(labels.values()))
    known = {names[value] for value in labels["train"]}
    classes = [name for name in dict.fromkeys(names.values()) if name in known]
    numbers = {name: number for number, name in enumerate(classes)}
    sets = {}
    for part, values in labels.items():
        if unknown := {names[value] for value in values} - known:
            raise InputError(
                f"{source}: the {_IN_WORDS[part]} file has label {min(unknown)!r}, which the "
                f"training file has not; it has {listed(classes)}"
            )
        array = np.array([numbers[names[value]] for value in values], dtype=np.int64)
        sets[part] = Texts(np.array(texts[part], dtype=object), array)
    read.append(f"texts: column {text}, labels: column {label}")
    val, test = sets.get("validation"), sets.get("test")
    return RawTexts(sets["train"], test, tuple(classes), source, val, (*read, *notes))
