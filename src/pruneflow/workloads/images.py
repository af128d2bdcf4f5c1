"""Image data sets: readers of folders of images and of Parquet files, decoded once to uint8.

`datasets` lists them; `pictures` says what a picture looks like as RGB.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pruneflow.errors import InputError, first_line
from pruneflow.workloads.folders import (
    Listing,
    by_split,
    count,
    existing,
    glued_train,
    is_hidden,
    list_files,
    listed,
    roles,
    split_words,
    titled,
)
from pruneflow.workloads.pictures import to_rgb

if TYPE_CHECKING:  # imported when used: names and help must not wait for them
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    Images: TypeAlias = NDArray[np.uint8]
    Labels: TypeAlias = NDArray[np.int64]

# Those of torchvision's ImageFolder.
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, eq=False)
class Split:
    """Images (N, H, W, 3), uint8, and their class numbers (N,)."""

    images: Images
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: NDArray[np.int64]) -> Split:
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True, eq=False)
class Raw:
    """A data set as it is published: its training set, and its others if it has them.

    Attributes:
        source: where it came from.
        notes: what was read as what, and what was left out.
    """

    train: Split
    test: Split | None
    classes: tuple[str, ...]
    source: str
    val: Split | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Published:
    """One split as it is stored: its pictures from the first on, their labels and their names."""

    pictures: Callable[[], Iterable[Image.Image | None]]
    labels: Labels
    name: Callable[[int], str]


def from_hub(name: str, hub: str, data_dir: str | None, size: int) -> Raw:
    """A data set from a folder, if one is given, else from the hub."""
    if data_dir is not None:
        return from_folder(name, data_dir, size)
    import datasets

    refused = f"{name} could not be read from the Hugging Face hub ({hub})"
    instead = "pass data_dir=<folder with the hub repository's layout, or an image folder>"
    splits = _load(lambda: datasets.load_dataset(hub), refused, instead)
    return _table(splits, hub, size)


def from_folder(name: str, data_dir: str, size: int) -> Raw:
    """A folder laid out as a hub repository (Parquet files), or of images in class folders."""
    folder = existing(data_dir)
    listing = list_files(folder)
    tables = listing.ending((".parquet",))
    if not tables:
        return _image_folder(folder, listing, size)
    splits = by_split(tables, folder)
    paths = {  # the library keeps the name `all` for itself
        "train" if split == "all" else split: [str(path) for path in splits[split]]
        for split in splits
    }
    refused = f"data_dir={data_dir!r} could not be read as {name}"
    instead = "it should hold the hub repository's files"

    def load() -> Any:
        import datasets

        features = None
        if (folder / "README.md").is_file():  # its card may say what the columns are
            features = datasets.load_dataset_builder(str(folder)).info.features
        return datasets.load_dataset("parquet", data_files=paths, features=features)

    read = _load(load, refused, instead)
    return _table(read, str(folder.resolve()), size, listing.left_out(tables))


def _load(load: Callable[[], Any], refused: str, instead: str) -> Any:
    import datasets

    datasets.disable_progress_bars()
    try:
        return load()
    except Exception as error:  # its readers raise whatever the network or the bytes lead them to
        raise InputError(f"{refused}: {first_line(error)}; {instead}") from None


def _table(splits: Any, source: str, size: int, notes: Sequence[str] = ()) -> Raw:
    """A data set of Parquet files with an image and a class label column."""
    parts = roles(splits)
    if "train" not in parts:
        raise InputError(f"{source} has no training split; it has: {', '.join(splits)}")
    features = splits[parts["train"]].features
    kinds = {key: type(feature).__name__ for key, feature in features.items()}
    image = next((key for key, kind in kinds.items() if kind == "Image"), None)
    label = next((key for key, kind in kinds.items() if kind == "ClassLabel"), None)
    if image is None or label is None:
        raise InputError(
            f"{source} is not an image classification set: an image and a class label column are "
            f"needed, there are: {', '.join(f'{k} ({v})' for k, v in kinds.items())}"
        )
    sets = {
        part: _published(splits[key], f"{source}, split {key!r}", image, label)
        for part, key in parts.items()
    }
    if rest := sorted(set(splits) - set(parts.values())):
        notes = [*notes, f"splits not read: {listed(rest)}"]
    read = [f"{titled(k, parts[k])}: {count(len(s.labels), 'image')}" for k, s in sets.items()]
    return _raw(sets, tuple(features[label].names), source, size, [*read, *notes])


def _published(split: Any, where: str, image: str, label: str) -> _Published:
    import numpy as np

    labels = list(split[label])
    if not labels:
        raise InputError(f"{where} is empty")
    if lacking := [row for row, value in enumerate(labels) if value is None or value < 0]:
        raise InputError(f"{where}: row {lacking[0]} (of {len(labels)}, from 0) has no {label}")
    numbers = np.asarray(labels, dtype=np.int64)
    return _Published(lambda: _decoded(split, image), numbers, lambda row: f"{where}, row {row}")


def _decoded(split: Any, column: str) -> Iterable[Image.Image | None]:
    """The pictures of a split, decoded once and kept in the library's own cache as plain pixels."""
    import datasets
    from datasets import Features, Value
    from PIL import Image

    # As files: the library forgets as it decodes how many bits and which colour was transparent.
    split = split.cast_column(column, datasets.Image(decode=False))
    kept = {"width": Value("int32"), "height": Value("int32"), "pixels": Value("binary")}
    try:
        decoded = split.map(
            _upright_rgb,
            input_columns=[column],
            batched=True,
            remove_columns=split.column_names,
            features=Features(kept),
        ).with_format("arrow")
    except Exception:  # a picture that cannot be decoded: told by whom reads them one by one
        yield from (file and _opened(file) for file in split[column])
        return
    for batch in decoded.iter(1_000):
        for width, height, pixels in zip(*(batch[name] for name in kept), strict=True):
            yield Image.frombytes("RGB", (width.as_py(), height.as_py()), pixels.as_buffer())


def _opened(file: Mapping[str, Any]) -> Image.Image:
    from PIL import Image

    return Image.open(file["path"] if file["bytes"] is None else io.BytesIO(file["bytes"]))


def _upright_rgb(files: list[Mapping[str, Any]]) -> dict[str, list[Any]]:
    # The library knows what it has computed before by this function's name: what `to_rgb` makes of
    # a picture cannot change without another name here.
    rgb = [to_rgb(_opened(file)) for file in files]
    return {
        "width": [picture.width for picture in rgb],
        "height": [picture.height for picture in rgb],
        "pixels": [picture.tobytes() for picture in rgb],
    }


def _image_folder(folder: Path, listing: Listing, size: int) -> Raw:
    """`train/<class>/*` with other splits beside it; or `<class>/*` alone."""
    import numpy as np

    images = listing.ending(ENDINGS)
    if not images:
        raise InputError(
            f"data_dir={str(folder)!r} holds neither Parquet files nor images in class folders "
            f"(train/<class>/<images>): {'; '.join(listing.left_out([])) or 'it is empty'}"
        )
    roots = _roots(folder, images)
    sets, read, used, empty = {}, [], list[Path](), list[str]()
    classes: dict[str, list[str]] = {}
    for part, split in roles(roots).items():
        root = roots[split]
        members = _by_class(root, images, split, folder)
        classes[part] = sorted(members)
        paths = [path for name in classes[part] for path in members[name]]
        numbers = [n for n, name in enumerate(classes[part]) for _ in members[name]]
        sets[part] = _of_files(paths, np.asarray(numbers, dtype=np.int64))
        read.append(f"{titled(part, split)}: {count(len(paths), 'image')}")
        used += paths
        empty += [
            str(path.relative_to(folder)) for path in _folders(root) if path.name not in members
        ]
    for part, names in classes.items():
        if odd := set(names) ^ set(classes["train"]):
            raise InputError(
                f"{folder}: its train and {part} folders differ in their classes: "
                f"{listed(sorted(odd))}"
            )
    notes = [f"no classes, as they hold no image: {listed(empty)}"] if empty else []
    notes = [*read, *listing.left_out(used), *notes]
    return _raw(sets, tuple(classes["train"]), str(folder.resolve()), size, notes)


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not is_hidden(p.name))


def _roots(folder: Path, images: Sequence[Path]) -> dict[str, Path]:
    """The folder of class folders of each split; `all` alone if there are no splits.

    A folder is that of a split if its name says so and it holds folders with images: one that
    holds images itself is a class, whatever its name.
    """
    inside = [path.relative_to(folder).parts for path in images]
    nested = {parts[0] for parts in inside if len(parts) > 2}
    named = {path.name: split_words(path.name) for path in _folders(folder)}
    named = {name: words for name, words in named.items() if words}
    if not nested & set(named):
        if glued := glued_train(sorted(nested)):
            raise InputError(
                f"data_dir={str(folder)!r}: whether these folders are the training set cannot be "
                f"told: {listed(glued)}; write the word apart from others (my_train)"
            )
        return {"all": folder}
    splits = [split for words in named.values() for split in words]
    each_once = len(splits) == len(set(splits)) == len(named)
    if not each_once or "train" not in splits or set(named) - nested:
        raise InputError(
            f"data_dir={str(folder)!r}: which folders are the training, validation and test set "
            f"cannot be told from {listed(sorted(named))}: there should be a train folder, at most "
            "one of each, and class folders with images in each"
        )
    return {split: folder / name for name, words in named.items() for split in words}


def _by_class(
    root: Path, images: Sequence[Path], split: str, folder: Path
) -> dict[str, list[Path]]:
    """Images of each class folder, in the order of torchvision's ImageFolder.

    Raises:
        InputError: none, or folders in a class folder that are named after another split.
    """
    members: dict[str, list[Path]] = {}
    unclear = []
    for path in sorted(images, key=lambda path: (str(path.parent), path.name)):
        if not path.is_relative_to(root):
            continue
        parts = path.relative_to(root).parts
        if len(parts) > 1:
            members.setdefault(parts[0], []).append(path)
        if any(set(split_words(name)) - {split} for name in parts[1:-1]):
            unclear.append(str(path.relative_to(folder)))
    if unclear:
        raise InputError(
            f"data_dir={str(folder)!r}: folders inside class folders are named after a split: "
            f"{listed(unclear)}; the layout that is read is train/<class>/<images>"
        )
    if not members:
        raise InputError(
            f"{root} holds neither Parquet files nor images in class folders "
            "(train/<class>/<images>): its images are in no class folder"
        )
    return members


def _of_files(paths: Sequence[Path], labels: Labels) -> _Published:
    from PIL import Image

    return _Published(lambda: map(Image.open, paths), labels, lambda index: str(paths[index]))


def _raw(
    sets: dict[str, _Published],
    classes: tuple[str, ...],
    source: str,
    size: int,
    notes: Sequence[str],
) -> Raw:
    decoded = _decode(sets, None) or _decode(sets, (size, size))
    assert decoded is not None
    splits, several = decoded
    if several:
        notes = [*notes, f"of several frames, the first is read: {count(several, 'image')}"]
    val, test = splits.get("validation"), splits.get("test")
    return Raw(splits["train"], test, classes, source, val, tuple(notes))


def _decode(
    sets: dict[str, _Published], fit: tuple[int, int] | None
) -> tuple[dict[str, Split], int] | None:
    """Decode every image, as it is; None at the first one of another size than the others.

    With `fit` (width, height), each has its shorter side resized and its middle cut out.

    Returns:
        The splits, and how many of their files hold several frames.
    """
    import numpy as np
    from PIL import ImageOps

    side = fit
    splits, several = {}, 0
    for part, published in sets.items():
        images: Images | None = None
        done = 0
        try:
            for picture in published.pictures():
                if picture is None:
                    raise ValueError("there is none")
                several += getattr(picture, "n_frames", 1) > 1
                rgb = to_rgb(picture)
                side = side or rgb.size
                if fit is None and rgb.size != side:
                    return None
                if images is None:
                    shape = (len(published.labels), side[1], side[0], 3)
                    images = np.empty(shape, dtype=np.uint8)
                images[done] = np.asarray(ImageOps.fit(rgb, side) if fit else rgb)
                done += 1
        except Exception as error:  # Pillow raises whatever a file's bytes lead it to
            raise InputError(
                f"{published.name(done)} cannot be decoded: {first_line(error)}"
            ) from None
        assert images is not None
        splits[part] = Split(images, published.labels)
    return splits, several
