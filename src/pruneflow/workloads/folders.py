"""What a folder of data holds: the files that are data, and the split that a name says.

Files and folders that an editor, an archive or a system left there are never data.
"""

from __future__ import annotations

import filecmp
import itertools
import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pruneflow.errors import InputError, user_path

_CLUTTER = {
    *("__macosx", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "lost+found"),
    *("@eadir", "$recycle.bin", "system volume information"),
}
# The keywords of Hugging Face data sets (datasets.data_files): `eval` is a test set there.
_SPLITS = {
    "train": re.compile("(train|training)(set|data|split)?"),
    "validation": re.compile("(val|valid|validation|dev)(set|data|split)?"),
    "test": re.compile("(test|testing|eval|evaluation)(set|data|split)?"),
}
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_LONG = 150


def existing(data_dir: str) -> Path:
    """The folder that `data_dir` names."""
    folder = user_path("data_dir", data_dir)
    if not folder.exists():
        raise InputError(f"data_dir={data_dir!r} does not exist (looked at {folder.resolve()})")
    if not folder.is_dir():
        raise InputError(f"data_dir={data_dir!r} is a file, not a folder")
    return folder


@dataclass(frozen=True)
class Listing:
    """The files below a folder, in the order of their paths, and the names of hidden entries."""

    visible: list[Path]
    hidden: list[str]

    def ending(self, endings: Collection[str]) -> list[Path]:
        """Those with one of these endings, given in small letters; a file's may be in capitals."""
        return [path for path in self.visible if path.suffix.lower() in endings]

    def left_out(self, read: Iterable[Path]) -> list[str]:
        """A note on how many files were not read, and of which endings; none if all were."""
        notes = []
        if unread := set(self.visible) - set(read):
            endings = sorted({path.suffix.lower() or "no ending" for path in unread})
            notes.append(f"{count(len(unread), 'file')} ({listed(endings)})")
        if self.hidden:
            notes.append(f"{len(self.hidden)} hidden ({listed(sorted(set(self.hidden)), 3)})")
        return [f"left out: {', '.join(notes)}"] if notes else []


def list_files(folder: Path) -> Listing:
    """Every file below a folder, links followed; a hidden folder counts once and is not entered."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}")

    visible: list[Path] = []
    hidden: list[str] = []
    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if os.path.realpath(root) in map(os.path.realpath, Path(root).parents):
            folders.clear()  # a link to where it lies in
            continue
        hidden += [name for name in (*folders, *names) if is_hidden(name)]
        folders[:] = [name for name in folders if not is_hidden(name)]
        visible += [Path(root, name) for name in names if not is_hidden(name)]
    if dangling := [path for path in visible if not path.exists()]:
        raise _refusal(folder, "has links to nothing", dangling)
    return Listing(sorted(visible), hidden)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is an editor's, an archive's or a system's."""
    return name.startswith((".", "~")) or name.lower() in _CLUTTER


def split_words(name: str) -> dict[str, str]:
    """The splits that a name speaks of, with the word it uses for each: `{"test": "testing"}`.

    Words are runs of letters, also those of a camelCase name, in capitals or not.
    """
    words: dict[str, str] = {}
    for run in re.findall(r"[^\W\d_]+", name):
        for word in (run, *_CAMEL.split(run)):
            for split, pattern in _SPLITS.items():
                if pattern.fullmatch(word.lower()):
                    words.setdefault(split, word.lower())
    return words


def by_split(paths: Sequence[Path], folder: Path) -> dict[str, list[Path]]:
    """Files by the split that their name, or a folder's between them and `folder`, speaks of.

    Those of no split are `all`. A name of two splits, two names for one split, files of which some
    say their split and some do not, and the same file twice are refused.
    """
    splits: dict[str, list[Path]] = {}
    examples: dict[str, dict[str, Path]] = {}  # of the words that are used for each split
    unclear = []
    for path in paths:
        names = (*path.relative_to(folder).parts[:-1], path.stem)
        spoken = [words for words in map(split_words, names) if words]
        clear = [words for words in spoken if len(words) == 1]
        named = {split for words in clear for split in words}
        if len(split_words(path.stem)) > 1 or (spoken and len(named) != 1):
            unclear.append(path)
            continue
        split = named.pop() if named else "all"
        splits.setdefault(split, []).append(path)
        if clear:
            examples.setdefault(split, {}).setdefault(clear[-1][split], path)
    if unclear:
        problem = "has files named after more than one of train, validation and test"
        raise _refusal(folder, problem, unclear)
    for split, files in examples.items():
        if len(files) > 1:
            problem = f"has more than one {split} set"
            raise _refusal(folder, problem, files.values(), "keep one, or name them alike")
    unnamed = splits.get("all", [])
    if unnamed and examples:
        problem = "has files that say which set they are, and files that do not"
        raise _refusal(folder, problem, unnamed, "name them all train* or test*, or none")
    if glued := glued_train([str(path.relative_to(folder)) for path in unnamed]):
        problem = "has files of which it cannot be told whether they are the training set"
        way_out = "write the word apart from others (reviews_train.csv)"
        raise _refusal(folder, problem, [folder / name for name in glued], way_out)
    _check_copies(paths, folder)
    return splits


def _refusal(folder: Path, problem: str, paths: Iterable[Path], way_out: str = "") -> InputError:
    files = listed([str(path.relative_to(folder)) for path in paths])
    return InputError(f"data_dir={str(folder)!r} {problem}: {files}{way_out and f'; {way_out}'}")


def _check_copies(paths: Sequence[Path], folder: Path) -> None:
    """Refuse two files of one name but for its ending, or of the same bytes."""
    names = [str(path.with_suffix("")).lower() for path in paths]
    sizes = [path.stat().st_size for path in paths]
    for a, b in itertools.combinations(range(len(paths)), 2):
        same_bytes = sizes[a] == sizes[b] and filecmp.cmp(paths[a], paths[b], shallow=False)
        if names[a] == names[b] or same_bytes:
            copies = (paths[a], paths[b])
            raise _refusal(folder, "has the same table twice", copies, "keep one of them")


def glued_train(names: Collection[str]) -> list[str]:
    """Those of some names in which `train` is part of a word, where others do not have it."""
    glued = [name for name in names if "train" in name.lower()]
    return glued if len(glued) < len(names) else []


def roles(splits: Collection[str]) -> dict[str, str]:
    """Which splits, by their names, are the training, the validation and the test set.

    A set of no split is the training set; a validation set is the test set where there is no other.
    """
    named = {name: split_words(name) for name in splits}
    names = {s: name for name, words in named.items() for s in words if words[s] == name.lower()}
    names |= {"train": "all"} if "all" in splits else {}
    if "test" not in names and "validation" in names:
        names["test"] = names.pop("validation")
    return {split: names[split] for split in _SPLITS if split in names}


def titled(part: str, split: str) -> str:
    """`test`, or `test (validation)` where another split is read as that part."""
    return part if split in (part, "all") else f"{part} ({split})"


def listed(names: Collection[str], most: int = 10) -> str:
    """The first of some names, cut short where they are long, and how many more there are."""
    shown = [name if len(name) <= _LONG else f"{name[:_LONG]}..." for name in list(names)[:most]]
    more = len(names) - most
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def count(number: int, thing: str) -> str:
    """`1 file`, `2,000 files`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
