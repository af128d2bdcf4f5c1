"""Text data sets: readers of tables with a text and a label column, and the bundled reviews.

`datasets` lists them; `encoders` turns their texts into tokens.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pruneflow.errors import InputError
from pruneflow.workloads import tables
from pruneflow.workloads.folders import count, existing, listed, roles, titled
from pruneflow.workloads.splits import Raw, Split
from pruneflow.workloads.tables import Table

_REVIEWS = 2_000
_REVIEWS_SEED = 1_888
_MISLABELLED = 0.03  # so that no model is right about everything
_GOOD = "wonderful moving clever brilliant warm honest gripping funny fresh lovely"
_BAD = "dull clumsy tedious hollow lazy painful messy stale bland forgettable"
_THINGS = "film movie story script cast plot ending picture dialogue score"
_DEGREES = ["", "", "very ", "quite ", "truly ", "rather "]
_STARTS = ["", "", "in the end , ", "for two hours , ", "as expected , ", "on the whole , "]
_ENDS = ["", "", " from start to finish", " despite its length", " on a small budget", " again"]
_IN_WORDS = {"train": "training", "validation": "validation", "test": "test"}


def reviews(data_dir: str | None, image_size: int | None = None) -> Raw:
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
    made = Split(np.array(texts, dtype=object)[order], np.array(labels, dtype=np.int64)[order])
    return Raw(made, None, ("negative", "positive"), "pruneflow:reviews (synthetic)")


def _review(chance: random.Random, *, positive: bool) -> str:
    """One sentence; a third of them say it by negating the opposite."""
    negated = chance.random() < 1 / 3
    adjective = chance.choice((_GOOD if positive != negated else _BAD).split())
    verbs = ["is never", "is not", "was hardly"] if negated else ["is", "was", "feels"]
    verb, thing = chance.choice(verbs), chance.choice(_THINGS.split())
    degree = chance.choice(_DEGREES)
    return f"{chance.choice(_STARTS)}the {thing} {verb} {degree}{adjective}{chance.choice(_ENDS)} ."


def sst2(data_dir: str | None, image_size: int | None = None) -> Raw:
    """SST-2 (Socher et al. 2013) as in GLUE, from the hub or a folder with its files.

    GLUE's own test set has no labels; its validation set is the test set here.
    """
    if data_dir is None:
        hub = tables.from_hub("sst2", "nyu-mll/glue", "sst2")
        source, notes = "nyu-mll/glue (sst2)", list[str]()
        splits = {
            str(split): [tables.of_frame(f"{source}, {split}", rows.to_pandas())]
            for split, rows in hub.items()
        }
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
    raw = read_tables(splits, source, notes)
    if len(raw.classes) != 2:
        raise InputError(f"{source} is not SST-2: it has {len(raw.classes)} classes, not 2")
    return replace(raw, classes=("negative", "positive")) if raw.classes == ("0", "1") else raw


def textfolder(data_dir: str | None, image_size: int | None = None) -> Raw:
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
        there = listed([table.name for split in splits.values() for table in split])
        raise InputError(
            f"data_dir={data_dir!r} has test files but no training file (train*.csv): {there}"
        )
    return read_tables(splits, str(folder.resolve()), notes)


def read_tables(splits: Mapping[str, Sequence[Table]], source: str, notes: Sequence[str]) -> Raw:
    """Texts and class numbers out of the tables of each split."""
    import numpy as np

    parts = roles(splits)
    text, label = tables.text_and_label(splits[parts["train"]][0])
    read = []
    texts, labels = dict[str, list[str]](), dict[str, list[str]]()
    for part, split in parts.items():
        for table in splits[split]:
            if lacking := {text, label} - set(table.columns):
                raise InputError(
                    f"{table.name}: the {_IN_WORDS[part]} file has no column {min(lacking)!r}; it "
                    f"has {listed(list(table.columns))}"
                )
        texts[part] = [value for table in splits[split] for value in table.texts(text)]
        labels[part] = [value for table in splits[split] for value in table.labels(label)]
        if not texts[part]:
            raise InputError(f"{source}: a {_IN_WORDS[part]} file is empty")
        files = count(len(splits[split]), "file")
        read.append(f"{titled(part, split)}: {files}, {count(len(texts[part]), 'row')}")
    names = tables.class_names(value for values in labels.values() for value in values)
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
        sets[part] = Split(np.array(texts[part], dtype=object), array)
    read.append(f"texts: column {text}, labels: column {label}")
    val, test = sets.get("validation"), sets.get("test")
    return Raw(sets["train"], test, tuple(classes), source, val, (*read, *notes))
