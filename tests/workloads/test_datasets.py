"""Data sets: exact pixels, disjoint and balanced splits, and one line when a folder is wrong."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pruneflow.errors import InputError
from pruneflow.workloads import datasets
from pruneflow.workloads.datasets import Data, load
from pruneflow.workloads.splits import Raw, Split


def load_digits(*, seed: int = 0, train_limit: int | None = None) -> Data:
    return load("digits", data_dir=None, image_size=32, train_limit=train_limit, seed=seed)


def load_folder(folder: Path, *, name: str = "imagefolder", size: int = 8) -> Data:
    return load(name, data_dir=str(folder), image_size=size, train_limit=None, seed=0)


def pictures(split: Split) -> Counter[bytes]:
    return Counter(
        image.tobytes() + bytes([label])
        for image, label in zip(split.samples, split.labels, strict=True)
    )


def together(data: Data) -> Counter[bytes]:
    return pictures(data.train) + pictures(data.val) + pictures(data.test)


def noise(seed: int, width: int = 8, height: int = 8) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write_pictures(folder: Path, count: int, *, seed: int, size: tuple[int, int] = (8, 8)) -> None:
    folder.mkdir(parents=True)
    for index in range(count):
        noise(seed * 1000 + index, *size).save(folder / f"{index}.png")


def one_line(folder: Path, *, name: str = "imagefolder") -> str:
    with pytest.raises(InputError) as error:
        load_folder(folder, name=name)
    text = str(error.value)
    assert text == " ".join(text.splitlines())
    return text


# --------------------------------------------------------------------------------------- digits


def test_digits_are_scikit_learns_1797_images_each_in_one_split() -> None:
    from sklearn.datasets import load_digits as published

    data = load_digits()
    assert (len(data.train), len(data.val), len(data.test)) == (1294, 144, 359)
    assert data.train.samples.shape == (1294, 8, 8, 3)
    assert data.train.samples.dtype == np.uint8
    assert data.train.labels.dtype == np.int64
    assert data.classes == tuple("0123456789")
    bunch = published()
    grey = np.round(bunch.images * 255 / 16).astype(np.uint8)
    rgb = np.stack([grey, grey, grey], axis=-1)
    assert together(data) == pictures(Split(rgb, bunch.target.astype(np.int64)))


def test_validation_depends_on_the_seed_and_the_test_set_does_not() -> None:
    first, second = load_digits(seed=0), load_digits(seed=1)
    assert np.array_equal(first.test.samples, second.test.samples)
    assert np.array_equal(first.test.labels, second.test.labels)
    assert pictures(first.val) != pictures(second.val)
    assert together(first) == together(second)


def test_the_same_seed_gives_the_same_splits() -> None:
    first, second = load_digits(seed=3, train_limit=100), load_digits(seed=3, train_limit=100)
    assert first.digest == second.digest
    assert np.array_equal(first.train.samples, second.train.samples)
    assert np.array_equal(first.val.labels, second.val.labels)


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_each_split_has_its_share_of_every_digit(part: str) -> None:
    split: Split = getattr(load_digits(), part)
    shares = np.bincount(split.labels, minlength=10) / len(split)
    assert np.abs(shares - 0.1).max() < 0.01


@pytest.mark.parametrize("limit", [10, 57, 1294])
def test_train_limit_keeps_so_many_of_the_training_images_in_balance(limit: int) -> None:
    full, data = load_digits(), load_digits(train_limit=limit)
    assert len(data.train) == limit
    assert pictures(data.train) <= pictures(full.train)
    assert pictures(data.val) == pictures(full.val)
    assert pictures(data.test) == pictures(full.test)
    counts = np.bincount(data.train.labels, minlength=10)
    whole = np.bincount(full.train.labels, minlength=10)
    short = counts < whole  # classes that still had images to give
    assert counts.max() - counts[short].min(initial=counts.max()) <= 1


@pytest.mark.parametrize("limit", [-1, 0, 9, 1295])
def test_a_train_limit_that_does_not_fit_is_refused_with_what_is_valid(limit: int) -> None:
    with pytest.raises(InputError, match=rf"^train_limit={limit} .* from 10 .* to 1294 "):
        load_digits(train_limit=limit)


def test_digits_refuse_a_folder() -> None:
    with pytest.raises(InputError, match="data_dir='/somewhere' does not go with digits"):
        load("digits", data_dir="/somewhere", image_size=8, train_limit=None, seed=0)


# ---------------------------------------------------------------------------------------- splits


def register(
    monkeypatch: pytest.MonkeyPatch, labels: list[int], *, test: Split | None = None
) -> None:
    """A data set `numbered`, whose every image holds its own number."""
    classes = tuple(str(number) for number in range(max(labels) + 1))
    raw = Raw(numbered(labels), test, classes, "memory")
    monkeypatch.setitem(datasets.IMAGES, "numbered", lambda data_dir, size: raw)


def numbered(labels: list[int], *, start: int = 0) -> Split:
    number = np.arange(start, start + len(labels), dtype=np.int64)
    images = np.zeros((len(labels), 1, 1, 3), dtype=np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = number % 256, number // 256
    return Split(images, np.array(labels, dtype=np.int64))


def numbers(split: Split) -> list[int]:
    pixel = split.samples[:, 0, 0].astype(int)
    return [int(number) for number in pixel[:, 0] + 256 * pixel[:, 1]]


def load_numbered(*, seed: int = 0, train_limit: int | None = None) -> Data:
    return load("numbered", data_dir=None, image_size=1, train_limit=train_limit, seed=seed)


@settings(max_examples=60, deadline=None)
@given(
    classes=st.integers(2, 5),
    each=st.integers(5, 60),
    seed=st.integers(0, 2**32 - 1),
    own_test=st.booleans(),
)
def test_splits_are_a_balanced_partition_of_what_is_published(
    classes: int, each: int, seed: int, own_test: bool
) -> None:
    labels = [number % classes for number in range(classes * each)]
    np.random.default_rng(seed).shuffle(labels)
    test = numbered([0, 1, 1], start=len(labels)) if own_test else None
    with pytest.MonkeyPatch.context() as monkeypatch:
        register(monkeypatch, labels, test=test)
        data = load_numbered(seed=seed)
    parts = [numbers(data.train), numbers(data.val), numbers(data.test)]
    together = [*parts[0], *parts[1], *parts[2]]
    assert sorted(together) == list(range(len(labels) + (3 if own_test else 0)))
    left = len(labels)
    if own_test:
        assert parts[2] == [len(labels), len(labels) + 1, len(labels) + 2]
    else:
        assert len(data.test) == round(0.2 * left)
        assert np.ptp(np.bincount(data.test.labels, minlength=classes)) <= 1
        left -= len(data.test)
    assert len(data.val) == max(1, round(0.1 * left))
    assert np.ptp(np.bincount(data.val.labels, minlength=classes)) <= 1
    assert data.train.labels.tolist() == [labels[number] for number in parts[0]]
    assert data.val.labels.tolist() == [labels[number] for number in parts[1]]


@pytest.mark.parametrize("counts", [[90, 10], [100, 100, 5], [3, 16]])
def test_a_small_class_keeps_training_images_beside_large_ones(
    monkeypatch: pytest.MonkeyPatch, counts: list[int]
) -> None:
    register(monkeypatch, [number for number, count in enumerate(counts) for _ in range(count)])
    data = load_numbered()
    assert set(data.train.labels.tolist()) == set(range(len(counts)))


def test_the_digest_changes_with_a_pixel_a_label_and_the_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels = [0, 1] * 30
    test = numbered([0, 1], start=900)
    register(monkeypatch, labels, test=test)
    first, again, split = load_numbered(), load_numbered(), load_numbered(seed=1)
    limited = load_numbered(train_limit=20)
    pixel = Split(test.samples.copy(), test.labels)
    pixel.samples[1, 0, 0, 2] = 1
    register(monkeypatch, labels, test=pixel)
    other_pixel = load_numbered()
    register(monkeypatch, labels, test=Split(test.samples, np.array([1, 1])))
    other_label = load_numbered()
    assert first.digest == again.digest
    digests = {data.digest for data in (first, split, limited, other_pixel, other_label)}
    assert len(digests) == 5


def test_training_images_of_one_class_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, [1] * 20)
    with pytest.raises(InputError, match="numbered has training samples of one class only"):
        load_numbered()


# ---------------------------------------------------------------------------------- image folder


def test_an_image_folder_with_train_and_test_is_read_with_exact_pixels(tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        write_pictures(tmp_path / "train" / name, 10, seed=number, size=(5, 7))
        write_pictures(tmp_path / "test" / name, 4, seed=number + 10, size=(5, 7))
    data = load_folder(tmp_path, size=64)
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.val), len(data.test)) == (18, 2, 8)
    assert data.train.samples.shape[1:] == (7, 5, 3)  # all alike: kept as they are
    expected = Counter(
        noise(number * 1000 + index, 5, 7).tobytes() + bytes([number])
        for number in (0, 1)
        for index in range(10)
    )
    assert pictures(data.train) + pictures(data.val) == expected
    assert pictures(data.test) == Counter(
        noise((number + 10) * 1000 + index, 5, 7).tobytes() + bytes([number])
        for number in (0, 1)
        for index in range(4)
    )


def test_images_of_mixed_sizes_are_brought_to_the_image_size(tmp_path: Path) -> None:
    for number, name in enumerate(("red", "blue")):
        for part, size in (("train", (20, 10)), ("test", (9, 33))):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for index in range(5):
                colour = (200, 0, index) if number else (0, index, 100)
                Image.new("RGB", size, colour).save(folder / f"{index}.png")
    data = load_folder(tmp_path, size=12)
    assert data.train.samples.shape == (9, 12, 12, 3)
    assert data.test.samples.shape == (10, 12, 12, 3)
    # One colour stays that colour however it is resized; classes are in alphabetical order.
    assert data.classes == ("blue", "red")
    first = data.test.samples[:, :1, :1]
    assert np.array_equal(data.test.samples, np.broadcast_to(first, data.test.samples.shape))
    assert (
        sorted((int(p[0]), int(k)) for p, k in zip(first[:, 0, 0], data.test.labels, strict=True))
        == [(0, 1)] * 5 + [(200, 0)] * 5
    )


def test_mixed_sizes_lose_their_edges_not_their_middle(tmp_path: Path) -> None:
    pixels = np.zeros((10, 30, 3), dtype=np.uint8)
    pixels[:, 10:20] = 255  # a white square in the middle of a black strip
    for name in ("a", "b"):
        write_pictures(tmp_path / "train" / name, 3, seed=ord(name))
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "test" / name / "strip.png")
    data = load_folder(tmp_path, size=10)
    assert np.array_equal(data.test.samples, np.full((2, 10, 10, 3), 255))


def test_grey_and_transparent_images_are_read_as_rgb(tmp_path: Path) -> None:
    for name, mode, colour in (("a", "L", 77), ("b", "RGBA", (10, 20, 30, 128))):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "test" / name).mkdir(parents=True)
        for index in range(4):
            Image.new(mode, (6, 6), colour).save(tmp_path / "train" / name / f"{index}.png")
        Image.new(mode, (6, 6), colour).save(tmp_path / "test" / name / "0.png")
    data = load_folder(tmp_path)
    pixels = dict(zip(data.test.labels.tolist(), data.test.samples[:, 0, 0].tolist(), strict=True))
    assert pixels == {0: [77, 77, 77], 1: [132, 137, 142]}  # half of it over white


def test_a_folder_without_a_test_set_holds_out_a_fifth(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", 15, seed=1)
    write_pictures(tmp_path / "b", 15, seed=2)
    data = load_folder(tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (22, 2, 6)
    assert np.bincount(data.test.labels).tolist() == [3, 3]
    assert len(together(data)) == 30  # thirty different pictures: none is in two splits


def test_a_folder_called_val_is_the_test_set_where_there_is_no_other(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        write_pictures(tmp_path / "train" / name, 5, seed=number)
        write_pictures(tmp_path / "val" / name, 3, seed=number + 10)
    data = load_folder(tmp_path)
    assert len(data.test) == 6
    assert noise(10_000).tobytes() in {image.tobytes() for image in data.test.samples}


@pytest.mark.parametrize("name", ["test", "crash-test", "eval"])
def test_a_class_whose_name_sounds_like_a_split_does_not_leak_into_the_test_set(
    tmp_path: Path, name: str
) -> None:
    write_pictures(tmp_path / "train" / "other", 10, seed=1)
    write_pictures(tmp_path / "train" / name, 10, seed=2)
    data = load_folder(tmp_path)
    assert sorted(data.classes) == sorted(["other", name])
    assert set(together(data).values()) == {1}  # twenty different pictures, each in one split
    assert len(together(data)) == 20


def test_a_file_whose_name_is_no_text_is_refused_in_a_line(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", 5, seed=1)
    write_pictures(tmp_path / "b", 5, seed=2)
    (tmp_path / "a" / "0.png").rename(tmp_path / "a" / os.fsdecode(b"caf\xe9.png"))
    assert r"caf\udce9.png': a file's name has to be UTF-8" in one_line(tmp_path)


def test_file_names_that_sound_like_a_split_do_not_split_a_flat_folder(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        write_pictures(tmp_path / name, 10, seed=number)
        (tmp_path / name / "3.png").rename(tmp_path / name / "eval_3.png")
    assert len(together(load_folder(tmp_path))) == 20


def test_an_image_folder_needs_a_folder() -> None:
    with pytest.raises(InputError, match="needs data_dir="):
        load("imagefolder", data_dir=None, image_size=8, train_limit=None, seed=0)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    assert f"'{tmp_path / 'nope'}' does not exist" in one_line(tmp_path / "nope")


def test_a_file_instead_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"")
    assert f"'{tmp_path / 'x.png'}' is a file, not a folder" in one_line(tmp_path / "x.png")


@pytest.mark.parametrize("name", ["imagefolder", "cifar10"])
def test_an_empty_folder_is_named_with_the_layouts_that_work(tmp_path: Path, name: str) -> None:
    text = one_line(tmp_path, name=name)
    assert f"'{tmp_path}' holds neither Parquet files nor images" in text
    assert "train/<class>/" in text


def test_images_without_class_folders_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 3, seed=0)
    text = one_line(tmp_path / "pictures")
    assert str(tmp_path / "pictures") in text
    assert "class" in text


def test_a_folder_of_one_class_is_refused_as_such(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train" / "only", 10, seed=0)
    write_pictures(tmp_path / "test" / "only", 3, seed=1)
    assert "one class only" in one_line(tmp_path)


@pytest.mark.parametrize("content", [b"not a picture", None], ids=["garbage", "cut short"])
@pytest.mark.parametrize("index", [0, 3])
def test_an_image_that_cannot_be_decoded_is_one_line(
    tmp_path: Path, content: bytes | None, index: int
) -> None:
    for number, name in enumerate(("a", "b")):
        write_pictures(tmp_path / "train" / name, 5, seed=number)
    broken = tmp_path / "train" / "a" / f"{index}.png"
    broken.write_bytes(content or broken.read_bytes()[:100])
    assert f"{broken} cannot be decoded" in one_line(tmp_path)


def test_grey_of_16_bits_differs_by_its_brightness(tmp_path: Path) -> None:
    for number, name in enumerate(("dark", "light")):
        (tmp_path / name).mkdir()
        for index in range(6):
            grey = np.full((4, 4), 257 * (10 + 100 * number + index), dtype=np.uint16)
            Image.fromarray(grey).save(tmp_path / name / f"{index}.png")
    data = load_folder(tmp_path)
    means = {
        (int(image.mean()), int(label))
        for split in (data.train, data.val, data.test)
        for image, label in zip(split.samples, split.labels, strict=True)
    }
    assert means == {(10 + 100 * n + index, n) for n in (0, 1) for index in range(6)}


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_a_picture_of_unknown_range_is_refused_by_its_path(tmp_path: Path, mode: str) -> None:
    write_pictures(tmp_path / "a", 4, seed=0)
    write_pictures(tmp_path / "b", 4, seed=1)
    Image.new(mode, (8, 8)).save(tmp_path / "b" / "9.tif")
    assert f"{tmp_path / 'b' / '9.tif'} cannot be decoded: its mode is {mode}" in one_line(tmp_path)


def test_pictures_are_turned_before_their_sizes_are_compared(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        write_pictures(tmp_path / name, 5, seed=number, size=(4, 6))
        tags = Image.Exif()
        tags[0x0112] = 6
        noise(90 + number, 6, 4).save(tmp_path / name / "turned.png", exif=tags)
    data = load_folder(tmp_path, size=32)
    assert data.train.samples.shape[1:] == (6, 4, 3)


def test_of_several_frames_the_first_is_read_and_that_is_told(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        write_pictures(tmp_path / name, 5, seed=number)
    noise(77).save(tmp_path / "a" / "9.tif", save_all=True, append_images=[noise(78), noise(79)])
    data = load_folder(tmp_path)
    assert noise(77).tobytes() + bytes([0]) in together(data)
    assert len(together(data)) == 11
    assert "of several frames, the first is read: 1 image" in data.summary


@pytest.mark.parametrize(
    "names", [("train", "test"), ("Train", "TEST"), ("seg_train", "seg_test"), ("training", "eval")]
)
def test_split_folders_are_known_by_a_word_of_their_name(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    for part, name in enumerate(names):
        for number, label in enumerate(("a", "b")):
            write_pictures(tmp_path / name / label, 10 - 5 * part, seed=2 * part + number)
    data = load_folder(tmp_path)
    assert (len(data.train) + len(data.val), len(data.test)) == (20, 10)
    assert data.summary.startswith("read train: 20 images; test: 10 images; classes: a, b; ")


def test_a_validation_folder_beside_a_test_folder_is_the_validation_set(tmp_path: Path) -> None:
    for part, name in enumerate(("train", "valid", "test")):
        for number, label in enumerate(("a", "b")):
            write_pictures(tmp_path / name / label, 4 + part, seed=2 * part + number)
    data = load_folder(tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (8, 10, 12)
    assert "validation: 10 images" in data.summary


@pytest.mark.parametrize(
    "folders",
    [
        ["test/a", "test/b", "other/x/a"],
        ["train/a", "train/b", "Train/a", "Train/b"],
        ["train/a", "train/b", "test"],
        ["train/a", "train/b", "test/a", "eval/a"],
        ["train-test/a", "train-test/b"],
        ["a/train", "a/test", "b/train", "b/test"],
        ["train/a/test", "train/b"],
    ],
)
def test_folders_whose_split_cannot_be_told_are_refused(tmp_path: Path, folders: list[str]) -> None:
    for number, name in enumerate(folders):
        write_pictures(tmp_path / name, 2, seed=number)
    assert str(tmp_path) in one_line(tmp_path)


def test_what_is_no_data_is_no_class_and_is_told(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for number, name in enumerate(("a", "b", ".ipynb_checkpoints", "__MACOSX", "~c")):
            write_pictures(tmp_path / part / name, 5, seed=10 * len(part) + number)
        noise(1).save(tmp_path / part / "a" / "._0.png")
        noise(1).save(tmp_path / part / "loose.PNG")
        (tmp_path / part / "a" / "notes.txt").write_text("x")
        (tmp_path / part / "b" / "0.png").rename(tmp_path / part / "b" / "0.PNG")
    (tmp_path / "train" / "empty").mkdir()
    data = load_folder(tmp_path)
    assert data.classes == ("a", "b")
    assert (len(data.train) + len(data.val), len(data.test)) == (10, 10)
    assert "left out: 4 files (.png, .txt), 8 hidden (" in data.summary
    assert "no classes, as they hold no image: train/empty;" in data.summary


def test_pictures_that_are_in_train_too_are_counted(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        write_pictures(tmp_path / "train" / name, 10, seed=number)
        write_pictures(tmp_path / "valid" / name, 5, seed=number + 10)
        write_pictures(tmp_path / "test" / name, 5, seed=number + 20)
    assert "in train too" not in load_folder(tmp_path).summary
    noise(3).save(tmp_path / "test" / "a" / "x.bmp")  # the pixels of train/a/3.png
    noise(1004).save(tmp_path / "test" / "a" / "y.png")
    noise(5).save(tmp_path / "valid" / "b" / "x.png")
    repeated = "in train too: 1 of 11 validation samples, 2 of 12 test samples"
    assert load_folder(tmp_path).summary.endswith(repeated)


def test_bundled_data_says_what_was_read() -> None:
    assert load_digits().summary == (
        "read 1,797 samples; classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9; "
        "1,294 to train, 144 to validate, 359 to test"
    )


# --------------------------------------------------------------------------------------- Parquet


TEN = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def write_table(
    folder: Path,
    split: str,
    labels: list[int | None],
    *,
    seed: int,
    classes: bool = True,
    change: tuple[int, Image.Image | None] | None = None,
) -> None:
    import datasets as hugging_face

    features = hugging_face.Features(
        {
            "img": hugging_face.Image(),
            "label": hugging_face.ClassLabel(names=list(TEN))
            if classes
            else hugging_face.Value("int64"),
        }
    )
    shown: list[Image.Image | None] = [noise(seed + i, 6, 5) for i in range(len(labels))]
    if change is not None:
        shown[change[0]] = change[1]
    rows = {"img": shown, "label": labels}
    (folder / "plain_text").mkdir(exist_ok=True)
    table = hugging_face.Dataset.from_dict(rows, features=features)
    table.to_parquet(str(folder / "plain_text" / f"{split}-00000-of-00001.parquet"))


def expected_rows(labels: list[int], seed: int) -> Counter[bytes]:
    return Counter(noise(seed + i, 6, 5).tobytes() + bytes([k]) for i, k in enumerate(labels))


@pytest.mark.parametrize("name", ["cifar10", "imagefolder"])
def test_parquet_in_the_hubs_layout_is_read_back_with_exact_pixels(
    tmp_path: Path, name: str
) -> None:
    train, test = [0, 1, 2] * 10, [2, 1, 0, 0]
    write_table(tmp_path, "train", list(train), seed=0)
    write_table(tmp_path, "test", list(test), seed=500)
    data = load_folder(tmp_path, name=name)
    assert data.name == name
    assert data.classes == TEN
    assert (len(data.train), len(data.val)) == (27, 3)
    assert data.train.samples.shape[1:] == (5, 6, 3)
    assert pictures(data.train) + pictures(data.val) == expected_rows(train, 0)
    assert pictures(data.test) == expected_rows(test, 500)
    assert data.test.labels.tolist() == test
    assert data.source == str(tmp_path)


def test_pictures_of_a_table_are_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table(tmp_path, "train", [0, 1, 2] * 10, seed=0)
    write_table(tmp_path, "test", [2, 1, 0, 0], seed=500)
    first = load_folder(tmp_path, name="cifar10")

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("a picture is decoded again")

    monkeypatch.setattr("PIL.Image.open", opened)
    assert load_folder(tmp_path, name="cifar10").digest == first.digest
    write_table(tmp_path, "test", [2, 1, 0, 0], seed=700)
    monkeypatch.undo()
    assert load_folder(tmp_path, name="cifar10").digest != first.digest


def test_parquet_files_are_split_by_their_names_and_hidden_ones_are_never_read(
    tmp_path: Path,
) -> None:
    write_table(tmp_path, "train", [0, 1, 2] * 10, seed=0)
    write_table(tmp_path, "val", [0, 1, 2], seed=300)
    write_table(tmp_path, "test", [2, 1, 0, 0], seed=500)
    folder = tmp_path / "plain_text"
    for name in ("train", "test"):
        path = folder / f"{name}-00000-of-00001.parquet"
        path.rename(folder / f"CIFAR_{name.upper()}.PARQUET")
    (tmp_path / ".cache").mkdir()
    shutil.copy(folder / "CIFAR_TRAIN.PARQUET", tmp_path / ".cache" / "train.parquet")
    data = load_folder(tmp_path, name="cifar10")
    assert pictures(data.train) == expected_rows([0, 1, 2] * 10, 0)
    assert pictures(data.val) == expected_rows([0, 1, 2], 300)
    assert pictures(data.test) == expected_rows([2, 1, 0, 0], 500)
    assert data.summary.startswith(
        "read train: 30 images; validation: 3 images; test: 4 images; left out: 1 hidden (.cache);"
    )


@pytest.mark.parametrize(
    ("odd", "problem"),
    [
        (Image.new("F", (6, 5)), "its mode is F"),
        (None, "there is none"),
    ],
)
def test_a_picture_of_a_table_that_cannot_be_used_is_refused_by_its_row(
    tmp_path: Path, odd: Image.Image | None, problem: str
) -> None:
    write_table(tmp_path, "train", [0, 1, 2, 0], seed=0, change=(2, odd))
    assert f"split 'train', row 2 cannot be decoded: {problem}" in one_line(tmp_path)


def test_grey_of_16_bits_in_a_table_is_scaled(tmp_path: Path) -> None:
    grey = Image.fromarray(np.full((5, 6), 257 * 40, dtype=np.uint16))
    write_table(tmp_path, "train", [0, 1, 2] * 4, seed=0, change=(2, grey))
    assert bytes([40] * 90) + bytes([2]) in together(load_folder(tmp_path))


def test_parquet_without_a_class_label_column_is_refused_with_its_columns(tmp_path: Path) -> None:
    write_table(tmp_path, "train", [0, 1, 2], seed=0, classes=False)
    text = one_line(tmp_path, name="cifar10")
    assert str(tmp_path) in text
    assert text.endswith("there are: img (Image), label (Value)")


def test_parquet_of_one_class_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path, "train", [1] * 10, seed=0)
    assert "cifar10 has training samples of one class only" in one_line(tmp_path, name="cifar10")


def test_parquet_without_a_training_split_is_refused_with_the_splits_there_are(
    tmp_path: Path,
) -> None:
    write_table(tmp_path, "test", [0, 1, 2], seed=0)
    text = one_line(tmp_path, name="cifar10")
    assert f"{tmp_path} has no training split; it has: test" in text


def test_a_folder_of_other_classes_is_not_cifar10(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_pictures(tmp_path / "train" / name, 5, seed=1)
    text = one_line(tmp_path, name="cifar10")
    assert "has 2 classes, CIFAR-10 has 10: pass dataset=imagefolder" in text


def test_parquet_with_a_row_without_a_label_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path, "train", [0, 1, None, 2], seed=0)
    assert "label" in one_line(tmp_path, name="cifar10")


def test_parquet_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain_text").mkdir()
    (tmp_path / "plain_text" / "train-00000-of-00001.parquet").write_bytes(b"not\na table")
    assert f"'{tmp_path}' could not be read as cifar10" in one_line(tmp_path, name="cifar10")


def test_a_hub_that_cannot_be_reached_is_one_line_with_the_way_out() -> None:
    with pytest.raises(InputError) as error:
        load("cifar10", data_dir=None, image_size=8, train_limit=None, seed=0)
    text = str(error.value)
    assert "uoft-cs/cifar10" in text
    assert "data_dir=" in text
    assert "\n" not in text


def test_folders_whose_names_may_mean_the_training_set_are_refused(tmp_path: Path) -> None:
    for split in ("mytrain", "mytest"):
        for name in ("a", "b"):
            write_pictures(tmp_path / split / name, 4, seed=0)
    assert "mytrain; write the word apart" in one_line(tmp_path)
