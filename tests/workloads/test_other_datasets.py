"""Tests of data sets that are not listed: of factories, and of Hugging Face's library."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets as library
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

import pruneflow
from pruneflow.errors import InputError
from pruneflow.workloads import datasets, other_datasets
from pruneflow.workloads.splits import Raw

CHANCE = np.random.default_rng(0)
PIXELS = CHANCE.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
LABELS = [n % 3 for n in range(12)]


class Own:
    """A set of samples and labels, as torch's are."""

    def __init__(self, samples: Any, labels: Any, **more: Any) -> None:
        self.pairs = list(zip(samples, labels, strict=True))
        self.__dict__.update(more)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> Any:
        return self.pairs[number]


def pictures() -> list[Image.Image]:
    return [Image.fromarray(pixels) for pixels in PIXELS]


def as_tensors(values: Any) -> TensorDataset:
    return TensorDataset(torch.as_tensor(values), torch.tensor(LABELS))


# Every form in which the same images can come: HWC and CHW, bytes and floats, arrays and pictures.
IMAGE_SETS: dict[str, Callable[[], Any]] = {
    "pictures": lambda: Own(pictures(), LABELS),
    "arrays": lambda: Own(PIXELS, LABELS),
    "channels first": lambda: as_tensors(PIXELS.transpose(0, 3, 1, 2)),
    "ToTensor": lambda: as_tensors(PIXELS.transpose(0, 3, 1, 2).astype(np.float32) / 255),
    "float64": lambda: as_tensors(PIXELS.transpose(0, 3, 1, 2) / 255),
    "wide integers": lambda: Own(PIXELS.astype(np.int64), np.array(LABELS)),
    "numpy labels": lambda: Own(PIXELS, np.array(LABELS, dtype=np.int32)),
    "words": lambda: Own(PIXELS, [str(label) for label in LABELS]),
    "tables": lambda: library.Dataset.from_dict({"picture": pictures(), "label": LABELS}),
}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the factory `own_data.py:make` returns, under `it`."""
    (tmp_path / "own_data.py").write_text("HELD = {}\ndef make(): return HELD['it']\n")
    monkeypatch.chdir(tmp_path)
    yield (
        __import__("pruneflow.workloads.factories", fromlist=["x"])
        .load_factory("dataset", "own_data.py:make")
        .__globals__["HELD"]
    )
    for name in [name for name in sys.modules if name.startswith("own_data")]:
        del sys.modules[name]


def read(size: int | None = 8, columns: tuple[str, ...] = ()) -> Raw:
    return other_datasets.read("own_data.py:make", columns, size)


@pytest.mark.parametrize("kind", sorted(IMAGE_SETS))
def test_images_of_every_kind_are_the_same_pixels(made: dict[str, Any], kind: str) -> None:
    made["it"] = (IMAGE_SETS[kind](), IMAGE_SETS[kind]())
    raw = read()
    assert raw.test is not None
    for split in (raw.train, raw.test):
        np.testing.assert_array_equal(split.samples, PIXELS)
        assert split.samples.dtype == np.uint8
        assert split.labels.tolist() == LABELS
    assert raw.classes == ("0", "1", "2")


def test_grey_images_are_of_three_equal_channels(made: dict[str, Any]) -> None:
    made["it"] = [Own(PIXELS[..., :1], LABELS), Own(PIXELS[..., 0], LABELS)]
    raw = read()
    np.testing.assert_array_equal(raw.train.samples, PIXELS[..., :1].repeat(3, axis=3))
    assert raw.test is not None
    np.testing.assert_array_equal(raw.test.samples, raw.train.samples)


def test_images_of_several_sizes_are_squares_of_the_size(made: dict[str, Any]) -> None:
    several = [PIXELS[0], PIXELS[1, :3], PIXELS[2, :, :2]] * 4
    made["it"] = (Own(several, LABELS), Own(several, LABELS))
    assert read(8).train.samples.shape == (12, 8, 8, 3)


@pytest.mark.parametrize("names", [("train", "test"), ("training", "validation", "test")])
def test_splits_can_be_named(made: dict[str, Any], names: tuple[str, ...]) -> None:
    made["it"] = {name: Own(PIXELS, LABELS) for name in names}
    raw = read()
    assert (raw.val is not None) == (len(names) == 3)
    made["it"] = tuple(made["it"].values())
    assert (read().val is not None) == (len(names) == 3)


def test_classes_that_a_set_states_have_their_names_and_places(made: dict[str, Any]) -> None:
    names = ["ape", "bee", "cow", "dog"]
    made["it"] = (Own(PIXELS, LABELS, classes=names), Own(PIXELS, LABELS))
    raw = read()
    assert raw.classes == tuple(names)
    assert raw.train.labels.tolist() == LABELS
    made["it"] = (Own(PIXELS, [names[n + 1] for n in LABELS], classes=names), made["it"][1])
    with pytest.raises(InputError, match="are none of its classes"):
        read()


@pytest.mark.parametrize("labels", [["no", "yes"], [0, 1], [True, False], ["1.0", "2.0"]])
def test_texts_and_their_labels(made: dict[str, Any], labels: list[Any]) -> None:
    texts = [f"text {n}" for n in range(12)]
    each = [labels[n % 2] for n in range(12)]
    made["it"] = (Own(texts, each), Own(texts, each))
    raw = read()
    assert raw.train.samples.tolist() == texts
    assert raw.train.samples.dtype == object
    assert sorted(set(raw.train.labels.tolist())) == [0, 1]


BROKEN: list[tuple[Any, str]] = [
    (3, "returned int: it should return a pair of train and test"),
    ((Own(PIXELS, LABELS),), "returned tuple"),
    ({}, "returned dict: it should return a pair of train and test"),
    ({"other": Own(PIXELS, LABELS)}, "has no training set; it has: other"),
    ((Own([], []), Own(PIXELS, LABELS)), "train is empty"),
    ((iter([1]), iter([1])), "it should have a length and give samples by number"),
    ((Own(PIXELS / 255 - 0.411, LABELS),) * 2, "before they are normalised"),
    ((Own(PIXELS.astype(int) + 300, LABELS),) * 2, "values that are no pixels from 0 to 255"),
    ((Own(np.zeros((12, 4, 4, 7)), LABELS),) * 2, "it should be an image of 1 or 3 channels"),
    ((Own(range(12), LABELS),) * 2, "it should be an image of 1 or 3 channels, or a text"),
    ((Own(PIXELS, [None] * 12),) * 2, "row 0 (of 12, from 0) has no label"),
    ((Own(["a", ""] * 6, LABELS),) * 2, "row 1 (of 12, from 0) has no text"),
    ((Own(["a", PIXELS[0]] * 6, LABELS),) * 2, "holds ndarray, not text"),
]


@pytest.mark.parametrize(("it", "reason"), BROKEN, ids=[reason[:30] for _, reason in BROKEN])
def test_what_is_no_data_set_is_one_line(made: dict[str, Any], it: Any, reason: str) -> None:
    made["it"] = it
    with pytest.raises(InputError) as error:
        read()
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_sample_that_cannot_be_read_is_named(made: dict[str, Any]) -> None:
    class Failing(Own):
        def __getitem__(self, number: int) -> Any:
            if number == 5:
                raise OSError("gone")
            return super().__getitem__(number)

    made["it"] = (Failing(PIXELS, LABELS), Own(PIXELS, LABELS))
    with pytest.raises(InputError, match=r"train: sample 5 cannot be read \(OSError: gone\)"):
        read()


# ----------------------------------------------------------------------------- of Hugging Face


def table(**columns: Any) -> Any:
    return library.Dataset.from_dict(columns)


def both(rows: Any) -> Any:
    return library.DatasetDict({"train": rows, "test": rows})


@pytest.mark.parametrize("how", ["saved", "parquet", "csv", "json"])
def test_a_folder_is_read_as_the_library_saved_it_or_as_its_files(tmp_path: Path, how: str) -> None:
    rows = table(sentence=["a b", "c d", "e f"] * 4, label=["x", "y", "x"] * 4)
    if how == "saved":
        both(rows).save_to_disk(tmp_path / "data")
    else:
        (tmp_path / "data").mkdir()
        for split in ("train", "test"):
            getattr(rows, f"to_{how}")(tmp_path / "data" / f"{split}.{how}")
    raw = other_datasets.read(f"hf:{tmp_path / 'data'}", (), None)
    assert raw.train.samples.tolist() == ["a b", "c d", "e f"] * 4
    assert raw.classes == ("x", "y")
    assert raw.test is not None


def test_columns_can_be_named_where_there_are_several(tmp_path: Path) -> None:
    coarse, fine = ["animal", "plant"] * 6, ["ape", "oak", "bee", "fir"] * 3
    both(table(img=pictures(), coarse=coarse, fine=fine)).save_to_disk(tmp_path / "data")
    name = f"hf:{tmp_path / 'data'}"
    assert other_datasets.read(name, ("img", "coarse"), 8).classes == ("animal", "plant")
    assert other_datasets.read(name, ("img", "fine"), 8).classes == ("ape", "bee", "fir", "oak")
    with pytest.raises(InputError, match="pass columns=<image>,<label>"):
        other_datasets.read(name, (), 8)
    with pytest.raises(InputError, match="has no column 'finest'; it has img, coarse, fine"):
        other_datasets.read(name, ("img", "finest"), 8)


def test_a_test_set_without_labels_is_left_out(tmp_path: Path) -> None:
    label = library.ClassLabel(names=["bad", "good"])
    rows = table(sentence=["a", "b"] * 6, label=[0, 1] * 6).cast_column("label", label)
    hidden = table(sentence=["a", "b"] * 6, label=[-1] * 12).cast_column("label", label)
    splits = {"train": rows, "validation": rows, "test": hidden}
    library.DatasetDict(splits).save_to_disk(tmp_path / "data")
    raw = other_datasets.read(f"hf:{tmp_path / 'data'}", (), None)
    assert raw.classes == ("bad", "good")
    assert "no labels, and not read: test" in raw.notes
    assert raw.test is not None  # the validation set


@pytest.mark.parametrize("content", [None, "nothing", "broken"])
def test_a_folder_that_holds_no_data_set_is_one_line(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "data"
    if content is not None:
        folder.mkdir()
    if content == "broken":
        (folder / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="could not be read") as error:
        other_datasets.read(f"hf:{folder}", (), 8)
    assert "\n" not in str(error.value)


# -------------------------------------------------------------------------------- through runs


def test_a_run_on_data_of_ones_own_is_found_again_by_its_content(
    store: str, made: dict[str, Any]
) -> None:
    labels = [n % 2 for n in range(60)]
    bright = [
        np.full((16, 16, 3), 200 * label + n % 9, dtype=np.uint8) for n, label in enumerate(labels)
    ]
    made["it"] = (Own(bright, labels), Own(bright, labels))
    given = {"dataset": "own_data.py:make", "model": "squeezenet1_1", "image_size": 32}
    given |= {"base_epochs": 1, "iterations": 1, "threads": 1, "device": "cpu"}
    run = pruneflow.prune_iterative(**given)
    assert len(run.levels) == 2
    assert pruneflow.prune_iterative(**given).run_id == run.run_id
    made["it"] = (Own(bright[::-1], labels), Own(bright, labels))
    assert pruneflow.prune_iterative(**given).run_id != run.run_id


def test_texts_of_ones_own_share_their_base(store: str, made: dict[str, Any]) -> None:
    texts, labels = [f"a {'good' if n % 2 else 'bad'} film" for n in range(40)], [0, 1] * 20
    made["it"] = (Own(texts, labels), Own(texts, labels))
    given = {"dataset": "own_data.py:make", "model": "bert", "threads": 1, "device": "cpu"}
    base = pruneflow.finetune(epochs=1, **given)
    run = pruneflow.prune_direct(base_epochs=1, **given)
    runs = pruneflow.query.runs(run_ids=[run.run_id])
    assert runs["base_run"].iloc[0] == base.run_id
    for refused in ({"image_size": 32}, {"augment": "crop_flip"}):
        with pytest.raises(InputError, match="has no effect with dataset=own_data"):
            pruneflow.finetune(**given, **refused)
    with pytest.raises(InputError, match="model=alexnet reads images"):
        pruneflow.finetune(**given | {"model": "alexnet"})


def test_listed_data_sets_are_read_as_before() -> None:
    data = datasets.load("digits", data_dir=None, image_size=8, train_limit=50, seed=0)
    assert not data.holds_texts
