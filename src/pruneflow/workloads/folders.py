"""What a folder of data holds: the files that are data, and the split that a name says.

Files and folders that an editor, an archive or a system left there are never data.
"""

from __future__ import annotations

import filecmp
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pruneflow.errors import InputError, user_path

_CLUTTER = {
    *("__macosx", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "lost+found"),
    *("@eadir", "$recycle.bin", "system volume information"),
}
SPLITS = ("train", "validation", "test")
# The keywords of Hugging Face data sets (datasets.data_files): `eval` is a test set there.
_SPLIT_WORD = re.compile(
    r"((?P<train>train|training)|(?P<validation>val|valid|validation|dev)|"
    r"(?P<test>test|testing|eval|evaluation))(set|data|split)?"
)
_LONG = 150
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def existing(data_dir: str) -> Path:
    """The folder that `data_dir` names.

    Raises:
        InputError: it does not exist, or is a file.
    """
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
        unread = set(self.visible) - set(read)
        notes = []
        if unread:
            endings = sorted({path.suffix.lower() or "no ending" for path in unread})
            notes.append(f"{count(len(unread), 'file')} ({listed(endings)})")
        if self.hidden:
            names = listed(sorted(set(self.hidden)), most=3)
            notes.append(f"{len(self.hidden)} hidden ({names})")
        return [f"left out: {', '.join(notes)}"] if notes else []


def list_files(folder: Path) -> Listing:
    """Every file below a folder, links followed; a hidden folder counts once and is not entered.

    Raises:
        InputError: a folder that cannot be opened, or a link to nothing.
    """
    visible: list[Path] = []
    hidden: list[str] = []
    for root, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        above = {os.path.realpath(parent) for parent in Path(root).parents}
        if os.path.realpath(root) in above:  # a link to where it lies in
            folders.clear()
            continue
        hidden += [name for name in (*folders, *names) if is_hidden(name)]
        folders[:] = [name for name in folders if not is_hidden(name)]
        visible += [Path(root, name) for name in names if not is_hidden(name)]
    if dangling := [path for path in visible if not path.exists()]:
        raise InputError(
            f"data_dir={str(folder)!r} has links to nothing: {_shown(dangling, folder)}"
        )
    return Listing(sorted(visible), hidden)


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be read: {error.strerror}")


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is an editor's, an archive's or a system's."""
    return name.startswith((".", "~")) or name.lower() in _CLUTTER


def split_words(name: str) -> dict[str, str]:
    """The splits that a name speaks of, with the word it uses for each: `{"test": "testing"}`.

    Words are runs of letters, also those of a camelCase name, in capitals or not.
    """
    words = {}
    for run in re.findall(r"[^\W\d_]+", name):
        for word in [run] if _SPLIT_WORD.fullmatch(run.lower()) else _CAMEL.split(run):
            if match := _SPLIT_WORD.fullmatch(word.lower()):
                words[next(split for split in SPLITS if match[split])] = word.lower()
    return words


def by_split(paths: Iterable[Path], folder: Path) -> dict[str, list[Path]]:
    """Files by the split that their name, or a folder's between them and `folder`, speaks of.

    Those of no split are `all`.

    Raises:
        InputError: a name or path of two splits, two words for one split, files of which some say
            their split and some do not, or the same file twice.
    """
    paths = list(paths)
    splits: dict[str, list[Path]] = {}
    used: dict[str, dict[str, Path]] = {}
    unclear = []
    for path in paths:
        *above, own = (split_words(name) for name in _names(path, folder))
        clear = [words for words in (*above, own) if len(words) == 1]
        named = {split for words in clear for split in words}
        several = len(own) > 1 or (not named and any(above))
        if len(named) > 1 or several:
            unclear.append(path)
            continue
        split = named.pop() if named else "all"
        splits.setdefault(split, []).append(path)
        if clear:
            used.setdefault(split, {}).setdefault(clear[-1][split], path)
    if unclear:
        raise InputError(
            f"data_dir={str(folder)!r}: these files are named after more than one of train, "
            f"validation and test: {_shown(unclear, folder)}"
        )
    _check_names(splits, used, folder)
    if copies := _copies(paths):
        raise InputError(
            f"data_dir={str(folder)!r} has the same table twice: {_shown(copies, folder)}; keep "
            "one of them"
        )
    return splits


def _check_names(
    splits: Mapping[str, Sequence[Path]], used: Mapping[str, Mapping[str, Path]], folder: Path
) -> None:
    """Refuse sets that are named in two ways, or of which only some files say what they are."""
    for split, words in used.items():
        if len(words) > 1:
            raise InputError(
                f"data_dir={str(folder)!r} has more than one {split} set: "
                f"{_shown(words.values(), folder)}; keep one, or name them alike"
            )
    if "all" in splits and len(splits) > 1:
        raise InputError(
            f"data_dir={str(folder)!r} has files that say which set they are, and files that do "
            f"not: {_shown(splits['all'], folder)}; name them all train* or test*, or none"
        )
    if glued := glued_train([str(path.relative_to(folder)) for path in splits.get("all", [])]):
        raise InputError(
            f"data_dir={str(folder)!r}: whether these files are the training set cannot be told: "
            f"{listed(glued)}; write the word apart from others (reviews_train.csv)"
        )


def glued_train(names: Collection[str]) -> list[str]:
    """Those of some names in which `train` is part of a word, where others do not have it."""
    glued = [name for name in names if "train" in name.lower()]
    return glued if len(glued) < len(names) else []


def roles(splits: Collection[str]) -> dict[str, str]:
    """Which splits, by their names, are the training, the validation and the test set.

    A set of no split is the training set; a validation set is the test set where there is no other.
    """
    names = {
        split: name
        for name in splits
        for split, word in split_words(name).items()
        if word == name.lower()
    }
    if "all" in splits:
        names["train"] = "all"
    if "test" not in names and "validation" in names:
        names["test"] = names.pop("validation")
    return {split: names[split] for split in SPLITS if split in names}


def titled(part: str, split: str) -> str:
    """`test`, or `test (validation)` where another split is read as that part."""
    return part if split in (part, "all") else f"{part} ({split})"


def _copies(paths: Iterable[Path]) -> tuple[Path, Path] | None:
    """Two files of one name but for its ending, or of the same bytes."""
    seen: dict[str | int, list[Path]] = {}
    for path in paths:
        name, size = str(path.with_suffix("")).lower(), path.stat().st_size
        for other in seen.setdefault(size, []):
            if filecmp.cmp(other, path, shallow=False):
                return other, path
        if name in seen:
            return seen[name][0], path
        seen[name] = [path]
        seen[size].append(path)
    return None


def _names(path: Path, folder: Path) -> list[str]:
    """Names of the folders on the way to a file, and its own without its ending."""
    relative = path.relative_to(folder)
    return [*relative.parts[:-1], relative.stem]


def _shown(paths: Iterable[Path], folder: Path) -> str:
    return listed([str(path.relative_to(folder)) for path in paths])


def listed(names: Collection[str], most: int = 10) -> str:
    """The first of some names, cut short where they are long, and how many more there are."""
    shown = [name if len(name) <= _LONG else f"{name[:_LONG]}..." for name in list(names)[:most]]
    more = len(names) - most
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def count(number: int, thing: str) -> str:
    """`1 file`, `2,000 files`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
