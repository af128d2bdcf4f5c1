"""Text data sets: the bundled reviews, SST-2's layout, folders of tables, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pruneflow.errors import InputError
from pruneflow.workloads import texts
from pruneflow.workloads.datasets import Data, load
from pruneflow.workloads.splits import Split, Tokens


def load_texts(name: str, folder: Path | None = None, *, seed: int = 0) -> Data:
    where = None if folder is None else str(folder)
    return load(name, data_dir=where, image_size=None, train_limit=None, seed=seed)


def table(labels: list[object], start: int = 0, text: str = "text", label: str = "label") -> object:
    words = [f"number {start + i} is {value}" for i, value in enumerate(labels)]
    return pd.DataFrame({text: words, label: labels})


def write(folder: Path, name: str, frame: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    assert isinstance(frame, pd.DataFrame)
    if name.endswith(".csv"):
        frame.to_csv(folder / name, index=False)
    else:
        frame.to_parquet(folder / name)


def all_texts(data: Data) -> list[str]:
    splits = (data.train, data.val, data.test)
    return [text for split in splits if isinstance(split, Split) for text in split.samples]


# ----------------------------------------------------------------------------------- reviews


def test_reviews_are_the_same_every_time_balanced_and_named_synthetic() -> None:
    one, two = texts.reviews(None), texts.reviews(None)
    assert one.train.samples.tolist() == two.train.samples.tolist()
    assert one.classes == ("negative", "positive")
    assert len(one.train) == 2_000
    assert abs(int(one.train.labels.sum()) - 1_000) < 20
    assert "synthetic" in one.source
    assert "synthetic" in (texts.reviews.__doc__ or "")


def test_a_word_does_not_decide_a_review_because_some_are_negated() -> None:
    train = texts.reviews(None).train
    wonderful = np.array(["wonderful" in text for text in train.samples])
    assert 0.5 < train.labels[wonderful].mean() < 0.8


def test_reviews_are_split_into_disjoint_samples_and_take_no_folder() -> None:
    data = load_texts("reviews")
    assert (len(data.train), len(data.val), len(data.test)) == (1440, 160, 400)
    assert sorted(all_texts(data)) == sorted(texts.reviews(None).train.samples.tolist())
    with pytest.raises(InputError, match="does not go with reviews"):
        load_texts("reviews", Path("x"))


def test_the_digest_tells_seeds_texts_and_labels_apart(tmp_path: Path) -> None:
    digests = {load_texts("reviews").digest, load_texts("reviews", seed=1).digest}
    for name, labels in {"a": [0, 1] * 20, "b": [0, 1] * 19 + [1, 0]}.items():
        write(tmp_path / name, "train.csv", table(labels))  # type: ignore[arg-type]
        digests.add(load_texts("textfolder", tmp_path / name).digest)
    assert len(digests) == 4


# -------------------------------------------------------------------------------------- SST-2


def sst2(folder: Path, start: int, labels: list[int], part: str) -> None:
    frame = table(labels, start, text="sentence")  # type: ignore[arg-type]
    assert isinstance(frame, pd.DataFrame)
    frame["idx"] = range(len(frame))
    write(folder / "sst2", f"{part}-00000-of-00001.parquet", frame)


def test_sst2s_validation_set_is_the_test_set_and_its_unlabelled_one_is_never_read(
    tmp_path: Path,
) -> None:
    sst2(tmp_path, 0, [0, 1] * 30, "train")
    sst2(tmp_path, 100, [1, 0] * 5, "validation")
    sst2(tmp_path, 200, [-1] * 10, "test")
    data = load_texts("sst2", tmp_path)
    assert data.classes == ("negative", "positive")
    assert isinstance(data.test, Split)
    assert data.test.samples[0] == "number 100 is 1"
    assert data.test.labels.tolist() == [1, 0] * 5
    assert (len(data.train), len(data.val)) == (54, 6)
    assert not any(text.startswith("number 2") and "-1" in text for text in all_texts(data))


def test_sst2_without_a_validation_file_is_refused(tmp_path: Path) -> None:
    sst2(tmp_path, 0, [0, 1] * 30, "train")
    with pytest.raises(InputError, match="needs a train and a validation file"):
        load_texts("sst2", tmp_path)


def test_sst2_that_cannot_be_downloaded_is_one_line_that_names_data_dir() -> None:
    with pytest.raises(InputError, match=r"could not be read from the Hugging Face hub.*data_dir="):
        load_texts("sst2")


# ------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_folder_with_train_and_test_files(tmp_path: Path, kind: str) -> None:
    write(tmp_path, f"train.{kind}", table(["good", "bad"] * 10))
    write(tmp_path, f"test.{kind}", table(["bad", "good"], 50))
    data = load_texts("textfolder", tmp_path)
    assert data.classes == ("bad", "good")
    assert isinstance(data.test, Split)
    assert data.test.samples.tolist() == ["number 50 is bad", "number 51 is good"]
    assert data.test.labels.tolist() == [0, 1]
    assert len(data.train) + len(data.val) == 20


def test_one_file_is_a_whole_set_and_a_test_set_is_held_out(tmp_path: Path) -> None:
    write(tmp_path, "reviews_of_mine.csv", table([0, 1] * 20))
    data = load_texts("textfolder", tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (29, 3, 8)


def test_the_only_column_of_text_is_the_text_whatever_its_name(tmp_path: Path) -> None:
    write(tmp_path, "train.csv", table([0, 1] * 10, text="utterance", label="class"))
    assert len(load_texts("textfolder", tmp_path).train) > 0


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "holds neither CSV nor Parquet files"),
        ({"test.csv": table([0, 1])}, "no training file"),
        ({"train.csv": table([0, 1], label="stars")}, "the label cannot be told from text, stars"),
        (
            {"train.csv": pd.DataFrame({"a": ["x"], "b": ["y"], "label": [1]})},
            "the text cannot be told from a, b, label",
        ),
        ({"train.csv": pd.DataFrame({"text": ["a", " "], "label": [0, 1]})}, "row 1 .* no text"),
        ({"train.csv": pd.DataFrame({"text": ["a", "b"], "label": [0, None]})}, "no label"),
        ({"train.csv": table([1] * 30)}, "training samples of one class only"),
        (
            {"train.csv": table(["a", "b"] * 9), "test.csv": table(["c"])},
            "label 'c', which the training file has not",
        ),
        (
            {"train.csv": table([0, 1] * 9), "test.csv": table([0], label="class")},
            "the test file has no column 'label'",
        ),
    ],
)
def test_tables_that_cannot_be_used_are_refused(
    tmp_path: Path, files: dict[str, object], problem: str
) -> None:
    for name, frame in files.items():
        write(tmp_path, name, frame)
    with pytest.raises(InputError, match=problem) as refused:
        load_texts("textfolder", tmp_path)
    assert "\n" not in str(refused.value)


def test_files_that_are_not_what_they_say_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"train.parquet cannot be read"):
        load_texts("textfolder", tmp_path)


def test_a_folder_that_is_missing_or_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="does not exist"):
        load_texts("textfolder", tmp_path / "nowhere")
    with pytest.raises(InputError, match="is a file, not a folder"):
        load_texts("textfolder", tmp_path / "file")
    with pytest.raises(InputError, match="needs data_dir="):
        load_texts("textfolder")


# -------------------------------------------------------------------------------------- tokens


def test_a_batch_is_filled_up_to_its_longest_text() -> None:
    tokens = Tokens(
        np.array([5, 6, 7, 8, 9, 4], dtype=np.int32),
        np.array([0, 2, 5, 6]),
        np.array([0, 1, 0]),
        padding=0,
    )
    assert tokens.lengths.tolist() == [2, 3, 1]
    ids, mask = tokens.padded(np.array([2, 0]))
    assert ids.tolist() == [[4, 0], [5, 6]]
    assert mask.tolist() == [[1, 0], [1, 1]]


def test_folders_can_name_the_sets_and_other_glue_tasks_stay_out(tmp_path: Path) -> None:
    write(tmp_path / "named" / "train", "data.csv", table(["a", "b"] * 20))
    write(tmp_path / "named" / "test", "data.csv", table(["a", "b"] * 5, start=1000))
    data = load_texts("textfolder", tmp_path / "named")
    assert isinstance(data.test, Split)
    assert all(int(text.split()[1]) >= 1000 for text in data.test.samples)
    assert len(data.test) == 10

    glue = tmp_path / "glue"
    for part in ("train", "validation"):
        sst2(glue / "sst2", 0 if part == "train" else 500, [0, 1] * 20, part)
        write(glue / "cola", f"{part}.csv", table([0, 1] * 20, start=9000, text="sentence"))
    assert not any("number 90" in text for text in all_texts(load_texts("sst2", glue)))


def test_a_file_is_not_taken_for_a_test_set_by_its_first_letters(tmp_path: Path) -> None:
    write(tmp_path, "testimonials.csv", table(["a", "b"] * 20))
    data = load_texts("textfolder", tmp_path)
    assert len(all_texts(data)) == 40
    write(tmp_path, "train-1.csv", table(["a", "b"] * 20))
    with pytest.raises(InputError, match="files that do not"):
        load_texts("textfolder", tmp_path)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("reviews_train.csv", "reviews_test.csv"),
        ("training.csv", "testing.csv"),
        ("TRAIN.CSV", "TEST.CSV"),
        ("my.train.csv", "my.dev.csv"),
        ("Train/a.csv", "Validation/a.csv"),
        ("trainData.csv", "testData.csv"),
    ],
)
def test_test_rows_are_never_trained_on(tmp_path: Path, train: str, test: str) -> None:
    for name, start in ((train, 0), (test, 1_000)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        frame = table(["a", "b"] * (20 if name == train else 5), start=start)
        frame.to_csv(tmp_path / name, index=False)  # type: ignore[attr-defined]
    write(tmp_path / ".ipynb_checkpoints", "train-checkpoint.csv", table(["a", "b"] * 20))
    data = load_texts("textfolder", tmp_path)
    assert isinstance(data.test, Split)
    assert data.test.samples.tolist() == [f"number {1_000 + i} is {'ab'[i % 2]}" for i in range(10)]
    assert len(all_texts(data)) == 50
    assert data.summary.startswith("read train: 1 file, 40 rows; test")
    assert "1 file, 10 rows; texts: column text, labels: column label; " in data.summary
    assert "left out: 1 hidden (.ipynb_checkpoints); classes: a, b; " in data.summary


def test_a_validation_file_beside_a_test_file_is_the_validation_set(tmp_path: Path) -> None:
    for number, part in enumerate(("train", "val", "test")):
        write(tmp_path, f"{part}.csv", table(["a", "b"] * (10 + number), start=100 * number))
    data = load_texts("textfolder", tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (20, 22, 24)
    assert isinstance(data.val, Split)
    assert data.val.samples[0] == "number 100 is a"


def test_labels_are_text_until_all_files_are_read(tmp_path: Path) -> None:
    write(tmp_path, "train-1.csv", table(["0", "1"] * 10))
    write(tmp_path, "train-2.parquet", table([1.0, 0.0] * 10, start=100))
    write(tmp_path, "train-3.csv", table(["other", "10"] * 10, start=200))
    write(tmp_path, "test.parquet", table([1, 0] * 3, start=300))
    data = load_texts("textfolder", tmp_path)
    assert data.classes == ("0", "1", "10", "other")
    assert data.test.labels.tolist() == [1, 0] * 3
    assert data.summary.startswith("read train: 3 files, 60 rows; test: 1 file, 6 rows; ")


def test_files_of_a_set_may_order_their_columns_as_they_like(tmp_path: Path) -> None:
    write(tmp_path, "train-1.csv", table([0, 1] * 10))
    frame = table([0, 1] * 10, start=100)
    assert isinstance(frame, pd.DataFrame)
    frame = frame.rename(columns=str.upper).assign(more=1)[["more", "LABEL", "TEXT"]]
    write(tmp_path, "train-2.csv", frame)
    assert len(all_texts(load_texts("textfolder", tmp_path))) == 40
    write(tmp_path, "train-3.csv", table([0, 1] * 10, start=200, text="words"))
    with pytest.raises(InputError, match=r"train-3.csv: the training file has no column 'text'"):
        load_texts("textfolder", tmp_path)


def test_texts_that_are_in_train_too_are_counted_and_change_no_digest(tmp_path: Path) -> None:
    write(tmp_path, "train.csv", table([0, 1] * 10))
    write(tmp_path, "val.csv", table([0, 1] * 3, start=18))
    write(tmp_path, "test.csv", table([1, 0] * 3, start=17))
    data = load_texts("textfolder", tmp_path)
    repeated = "in train too: 2 of 6 validation samples, 3 of 6 test samples"
    assert data.summary.endswith(repeated)
    (tmp_path / "notes.txt").write_text("x")
    again = load_texts("textfolder", tmp_path)
    assert "left out: 1 file (.txt)" in again.summary
    assert again.digest == data.digest


def test_what_was_read_is_one_short_line_whatever_the_labels_are(tmp_path: Path) -> None:
    labels = ["two\nlines \x1b[2J", *(f"{number}{'x' * 9_999}" for number in range(20))]
    write(tmp_path, "train.csv", table(labels * 4))  # type: ignore[arg-type]
    summary = load_texts("textfolder", tmp_path).summary
    assert summary.isprintable()
    assert len(summary) < 4_000
    assert summary.count("xxx...") == 10
    assert "and 11 more" in summary


def test_words_that_look_like_nothing_are_texts(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["null", "NA", "None", "nan"] * 10, "label": ["None", "b"] * 20})
    write(tmp_path, "train.csv", frame)
    data = load_texts("textfolder", tmp_path)
    assert set(all_texts(data)) == {"null", "NA", "None", "nan"}
    assert data.classes == ("None", "b")


def test_labels_between_whole_numbers_stay_apart(tmp_path: Path) -> None:
    write(tmp_path, "train.csv", table([0.25, 0.5, 1.0] * 20))
    assert load_texts("textfolder", tmp_path).classes == ("0.25", "0.5", "1.0")


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (pd.DataFrame({"text": ["a", "b"], "label": [[1], [2]]}), "holds ndarray, not labels"),
        (pd.DataFrame({"text": [b"\xff", b"b"], "label": [1, 2]}), "holds bytes, not text"),
    ],
)
def test_columns_of_other_kinds_are_refused(frame: pd.DataFrame, said: str, tmp_path: Path) -> None:
    write(tmp_path, "train.parquet", frame)
    with pytest.raises(InputError, match=said):
        load_texts("textfolder", tmp_path)


def test_an_empty_test_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "train.csv", table(["a", "b"] * 20))
    write(tmp_path, "test.csv", table([]))
    with pytest.raises(InputError, match="a test file is empty"):
        load_texts("textfolder", tmp_path)
