"""Which files of a folder are data, and which split their names say."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruneflow.errors import InputError
from pruneflow.workloads.folders import by_split, list_files, split_words

WORDS = {
    "train": ["train", "training", "trainset"],
    "validation": ["val", "valid", "validation", "dev"],
    "test": ["test", "testing", "eval", "evaluation"],
}
NEUTRAL = ["reviews", "latest", "trainer", "contest", "testimonials", "devices", "evaluate", "data"]
SEPARATORS = ["_", "-", ".", " ", "2", "-00000-of-00001-"]


@given(st.data())
def test_a_split_is_a_word_of_a_name_in_any_case(data: st.DataObject) -> None:
    split = data.draw(st.sampled_from([*WORDS]))
    word = data.draw(st.sampled_from(WORDS[split]))
    case = data.draw(st.sampled_from([str.lower, str.upper, str.title]))
    parts = data.draw(st.lists(st.sampled_from(NEUTRAL), max_size=2))
    parts.insert(data.draw(st.integers(0, len(parts))), word)
    name = data.draw(st.sampled_from(SEPARATORS)).join(case(part) for part in parts)
    assert split_words(name) == {split: word}
    assert split_words("".join(part.title() for part in parts)).keys() == {split}  # camelCase


@given(st.lists(st.sampled_from(NEUTRAL), min_size=1), st.sampled_from(SEPARATORS))
def test_a_part_of_a_word_is_no_split(words: list[str], separator: str) -> None:
    assert split_words(separator.join(words)) == {}


def splits_of(folder: Path, *names: str) -> dict[str, list[str]]:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x" * (number + 1))
    splits = by_split([folder / name for name in names], folder)
    return {split: [str(p.relative_to(folder)) for p in paths] for split, paths in splits.items()}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("reviews_train.csv", "train"),
        ("TRAIN.CSV", "train"),
        ("train-00000-of-00001.parquet", "train"),
        ("my.test.csv", "test"),
        ("Testing/part1.csv", "test"),
        ("train/training.csv", "train"),
        ("train_test_split/dev.csv", "validation"),
        ("latest.csv", "all"),
        ("trainer/contest.csv", "all"),
    ],
)
def test_a_file_is_of_the_split_that_it_or_its_folder_names(
    tmp_path: Path, name: str, split: str
) -> None:
    assert splits_of(tmp_path / "test", name) == {split: [name]}


@pytest.mark.parametrize(
    "names",
    [
        ["train_test.csv"],
        ["train/test.csv"],
        ["train/val/x.csv"],
        ["train_test/x.csv"],
        ["train.csv", "training.csv"],
        ["val.csv", "dev.csv"],
        ["test.csv", "eval.csv"],
        ["train.csv", "more.csv"],
        ["reviewstest.csv", "reviewstrain.csv"],
        ["train.csv", "train.parquet"],
        ["Train.csv", "TRAIN.csv"],
    ],
)
def test_what_is_ambiguous_is_refused_and_listed(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(InputError) as refused:
        splits_of(tmp_path, *names)
    assert names[-1] in str(refused.value)


def test_copies_are_refused_whatever_their_names(tmp_path: Path) -> None:
    splits_of(tmp_path, "train-1.csv", "old/train-7.csv")
    (tmp_path / "train-1.csv").write_text("same")
    (tmp_path / "old" / "train-7.csv").write_text("same")
    with pytest.raises(InputError, match="the same table twice"):
        by_split(list_files(tmp_path).visible, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        *(".ipynb_checkpoints/train.csv", "__MACOSX/x/train.csv", "._train.csv", "~$train.csv"),
        *(".git/a/b/c.csv", "Thumbs.db", "desktop.ini", "~old/train.csv", "a/.hidden.csv"),
    ],
)
def test_what_editors_archives_and_systems_leave_is_never_data(tmp_path: Path, name: str) -> None:
    for path in (tmp_path / name, tmp_path / "a" / "x.CSV", tmp_path / "notes.txt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    listing = list_files(tmp_path)
    assert listing.ending([".csv"]) == [tmp_path / "a" / "x.CSV"]
    (note,) = listing.left_out([tmp_path / "a" / "x.CSV"])
    assert note.startswith("left out: 1 file (.txt), 1 hidden (")


def test_links_are_followed_and_their_circles_are_not(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "x.csv").write_text("x")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(tmp_path / "far")
    (tmp_path / "data" / "round").symlink_to(tmp_path / "data")
    assert list_files(tmp_path / "data").visible == [tmp_path / "data" / "train" / "x.csv"]


def test_folders_that_cannot_be_read_whole_are_refused(tmp_path: Path) -> None:
    (tmp_path / "test.csv").symlink_to("nothing.csv")
    with pytest.raises(InputError, match=r"has links to nothing: test\.csv"):
        list_files(tmp_path)
    with pytest.raises(InputError, match="gone cannot be read"):
        list_files(tmp_path / "gone")
