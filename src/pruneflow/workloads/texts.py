"""Text data sets: readers of tables with a text and a label column, and the bundled reviews.

`datasets` lists them; `encoders` turns their texts into tokens.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pruneflow.errors import InputError, first_line, user_path

if TYPE_CHECKING:  # imported when used: names and help must not wait for them
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    Labels: TypeAlias = NDArray[np.int64]

_TEXT = ("text", "sentence", "review", "content", "comment")
_LABEL = ("label", "labels", "class", "target", "sentiment", "category")
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
    """A text data set as it is published: training set, test set if it has one, origin."""

    train: Texts
    test: Texts | None
    classes: tuple[str, ...]
    source: str


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
        frames = _from_hub("nyu-mll/glue", "sst2")
        source = "nyu-mll/glue (sst2)"
    else:
        folder = _folder(data_dir)
        if (folder / "sst2").is_dir():  # all of GLUE: its other tasks lie beside it
            folder = folder / "sst2"
        frames, source = _read(folder), str(folder.resolve())
    test = frames.get("validation")
    if "train" not in frames or test is None:
        raise InputError(f"{source} is not SST-2: it needs a train and a validation file")
    raw = _raw(frames["train"], test, source)
    if len(raw.classes) != 2:
        raise InputError(f"{source} is not SST-2: it has {len(raw.classes)} classes, not 2")
    names = ("negative", "positive") if raw.classes == ("0", "1") else raw.classes
    return RawTexts(raw.train, raw.test, names, source)


def textfolder(data_dir: str | None) -> RawTexts:
    """Any folder of CSV or Parquet files with a text and a label column.

    `train.csv`, `train-1.parquet`, `train/x.csv` and the like are the training set, those with
    `test` (or `validation`, `val`, `dev`) the test set; if no file says either, all are one set,
    from which a test set is held out.
    """
    if data_dir is None:
        raise InputError("dataset=textfolder needs data_dir=<folder of CSV or Parquet files>")
    folder = _folder(data_dir)
    frames = _read(folder)
    if "all" in frames and len(frames) > 1:
        raise InputError(
            f"data_dir={data_dir!r} has files that say which set they are, and files that do not: "
            "name them all train* or test*, or none"
        )
    train = frames.get("train", frames.get("all"))
    if train is None:
        raise InputError(f"data_dir={data_dir!r} has test files but no training file (train*.csv)")
    return _raw(train, frames.get("test", frames.get("validation")), str(folder.resolve()))


def _folder(data_dir: str) -> Path:
    folder = user_path("data_dir", data_dir)
    if not folder.exists():
        raise InputError(f"data_dir={data_dir!r} does not exist (looked at {folder.resolve()})")
    if not folder.is_dir():
        raise InputError(f"data_dir={data_dir!r} is a file, not a folder")
    return folder


def _from_hub(repository: str, name: str) -> dict[str, pd.DataFrame]:
    import datasets

    datasets.disable_progress_bars()
    try:
        splits: Any = datasets.load_dataset(repository, name)
    except Exception as error:  # its readers raise whatever the network leads them to
        raise InputError(
            f"{name} could not be read from the Hugging Face hub ({repository}): "
            f"{first_line(error)}; pass data_dir=<folder with the hub repository's files>"
        ) from None
    return {str(key): splits[key].to_pandas() for key in splits}


_PART = re.compile(r"(train|test|validation|val|dev)(?![a-z])", re.IGNORECASE)
_PARTS = {"train": "train", "test": "test"}  # every other is for validation


def _read(folder: Path) -> dict[str, pd.DataFrame]:
    """Tables of a folder, also one level down, by the set that file or folder is named after.

    Files that are named after none are `all`.
    """
    import pandas as pd

    found = [*folder.glob("*"), *folder.glob("*/*")]
    files = sorted(f for f in found if f.suffix in (".csv", ".parquet") and f.is_file())
    if not files:
        raise InputError(f"data_dir={str(folder)!r} holds neither CSV nor Parquet files")
    parts: dict[str, list[pd.DataFrame]] = {}
    for file in files:
        named = _PART.match(file.name)
        if named is None and file.parent != folder:
            named = _PART.match(file.parent.name)
        part = "all" if named is None else _PARTS.get(named[1].lower(), "validation")
        try:
            if file.suffix == ".csv":  # a text may be "null" or "None"; nothing is ""
                table = pd.read_csv(file, keep_default_na=False)
            else:
                table = pd.read_parquet(file)
        except (OSError, ValueError) as error:  # pandas' and Arrow's own are ValueErrors
            raise InputError(f"{file} cannot be read: {first_line(error)}") from None
        parts.setdefault(part, []).append(table)
    return {part: pd.concat(tables, ignore_index=True) for part, tables in parts.items()}


def _raw(train: pd.DataFrame, test: pd.DataFrame | None, source: str) -> RawTexts:
    """Texts and class numbers out of tables.

    Raises:
        InputError: columns that cannot be told, texts or labels that are missing.
    """
    import numpy as np

    text, label = _columns(train, source)
    tables = [train] if test is None else [train, test]
    for table in tables:
        if missing := {text, label} - set(table.columns):
            raise InputError(f"{source}: the test file has no column {min(missing)!r}")
        if table.empty:
            raise InputError(
                f"{source}: a {'training' if table is train else 'test'} file is empty"
            )
        for value, kinds in ((text, str), (label, (str, int, float, np.generic))):
            odd = [v for v in table[value] if v is not None and not isinstance(v, kinds)]
            if odd:
                raise InputError(
                    f"{source}: column {value!r} holds {type(odd[0]).__name__}, "
                    f"not {'text' if kinds is str else 'labels'}"
                )
        empty = table[text].isna() | (table[text].astype(str).str.strip() == "")
        unlabelled = table[label].isna() | (table[label].astype(str).str.strip() == "")
        if bool((empty | unlabelled).any()):
            row = int((empty | unlabelled).to_numpy().argmax())
            lacks = "no text" if bool(empty.iloc[row]) else "no label"
            raise InputError(f"{source}: row {row} (of {len(table)}, from 0) has {lacks}")
    names = sorted(set(train[label].tolist()), key=lambda v: (isinstance(v, str), v))
    numbers = {name: number for number, name in enumerate(names)}
    splits = []
    for table in tables:
        if unknown := set(table[label].tolist()) - set(names):
            raise InputError(
                f"{source}: the test file has label {min(map(str, unknown))!r}, which the "
                "training file has not"
            )
        labels = np.array([numbers[value] for value in table[label].tolist()], dtype=np.int64)
        splits.append(Texts(table[text].astype(str).to_numpy(dtype=object), labels))
    whole = all(not isinstance(n, float) or n.is_integer() for n in names)
    classes = tuple(str(int(n)) if whole and isinstance(n, float) else str(n) for n in names)
    return RawTexts(splits[0], splits[1] if len(splits) > 1 else None, classes, source)


def _columns(table: pd.DataFrame, source: str) -> tuple[str, str]:
    """Names of the text and the label column."""
    names = {str(name).lower(): str(name) for name in table.columns}
    label = next((names[name] for name in _LABEL if name in names), None)
    text = next((names[name] for name in _TEXT if name in names), None)
    if text is None:
        strings = [
            c for c in names.values() if c != label and all(isinstance(v, str) for v in table[c])
        ]
        text = strings[0] if len(strings) == 1 else None
    if text is None or label is None:
        lacking = "text" if text is None else "label"
        usual = _TEXT if text is None else _LABEL
        raise InputError(
            f"{source}: which column is the {lacking} cannot be told from "
            f"{', '.join(names.values())}: name it one of {', '.join(usual)}"
        )
    return text, label
