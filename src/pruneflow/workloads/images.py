"""Image data sets: readers of folders of images and of Parquet files, decoded once to uint8.

`datasets` lists them; `pictures` says what a picture looks like as RGB.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruneflow.errors import InputError, first_line
from pruneflow.workloads import folders
from pruneflow.workloads.folders import Listing, count, listed, split_words
from pruneflow.workloads.pictures import to_rgb
from pruneflow.workloads.splits import Raw, Split
from pruneflow.workloads.tables import from_hub, reading

if TYPE_CHECKING:  # imported when used: names and help must not wait for them
    from PIL import Image

    from pruneflow.workloads.splits import Integers

# Those of torchvision's ImageFolder.
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def digits(data_dir: str | None, image_size: int | None) -> Raw:
    """scikit-learn's handwritten digits: 1,797 real images of 8x8, bundled with it."""
    import numpy as np
    from sklearn.datasets import load_digits

    if data_dir is not None:
        raise InputError(f"data_dir={data_dir!r} does not go with digits, which are bundled")
    bunch = load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    split = Split(np.repeat(grey[..., None], 3, axis=3), bunch.target.astype(np.int64))
    return Raw(split, None, tuple(map(str, bunch.target_names)), "sklearn:load_digits")


def cifar10(data_dir: str | None, image_size: int | None) -> Raw:
    """CIFAR-10 (Krizhevsky 2009): from the hub, or a folder with its layout or an ImageFolder."""
    hub = "uoft-cs/cifar10"
    if data_dir is None:
        raw = _table(from_hub("cifar10", hub), hub, image_size)
    else:
        raw = _folder("cifar10", data_dir, image_size)
    if len(raw.classes) != 10:
        raise InputError(
            f"{raw.source} has {len(raw.classes)} classes, CIFAR-10 has 10: "
            "pass dataset=imagefolder for images of your own"
        )
    return raw


def imagefolder(data_dir: str | None, image_size: int | None) -> Raw:
    """Any folder of images: `train/<class>/*`, with `test/` (or `val/`) beside it if there is one.

    A folder without `train` is one set of class folders, from which a test set is held out.
    """
    if data_dir is None:
        raise InputError("dataset=imagefolder needs data_dir=<folder of class folders>")
    return _folder("imagefolder", data_dir, image_size)


@dataclass(frozen=True, eq=False)
class _Stored:
    """A split as it is stored: its pictures from the first on, and how one is called."""

    pictures: Callable[[], Iterable[Image.Image | None]]
    labels: Integers
    name: Callable[[int], str]


def _folder(name: str, data_dir: str, size: int | None) -> Raw:
    """A folder laid out as a hub repository (Parquet files), or of images in class folders."""
    folder = folders.existing(data_dir)
    listing = folders.list_files(folder)
    tables = listing.ending((".parquet",))
    if not tables:
        return _class_folders(folder, listing, size)
    splits = folders.by_split(tables, folder)
    files = {  # the library keeps the name `all` for itself
        "train" if split == "all" else split: [str(path) for path in splits[split]]
        for split in splits
    }
    problem = f"data_dir={data_dir!r} could not be read as {name}"
    with reading(problem, "it should hold the hub repository's files"):
        import datasets

        features = None
        if (folder / "README.md").is_file():  # its card may say what the columns are
            features = datasets.load_dataset_builder(str(folder)).info.features
        read = datasets.load_dataset("parquet", data_files=files, features=features)
    return _table(read, str(folder.resolve()), size, listing.left_out(tables))


# -------------------------------------------------------------------------------------- tables


def _table(splits: Any, source: str, size: int | None, notes: Sequence[str] = ()) -> Raw:
    """A data set of Parquet files with an image and a class label column."""
    parts = folders.roles(splits)
    if "train" not in parts:
        raise InputError(f"{source} has no training split; it has: {', '.join(splits)}")
    features = splits[parts["train"]].features
    kinds = {key: type(feature).__name__ for key, feature in features.items()}
    columns = {kind: key for key, kind in reversed(kinds.items())}  # the first of each kind
    if not {"Image", "ClassLabel"} <= set(columns):
        raise InputError(
            f"{source} is not an image classification set: an image and a class label column are "
            f"needed, there are: {', '.join(f'{k} ({v})' for k, v in kinds.items())}"
        )
    image, label = columns["Image"], columns["ClassLabel"]
    stored = {
        part: _rows(splits[key], f"{source}, split {key!r}", image, label)
        for part, key in parts.items()
    }
    if rest := sorted(set(splits) - set(parts.values())):
        notes = [*notes, f"splits not read: {listed(rest)}"]
    return _raw(stored, parts, features[label].names, source, size, notes)


def _rows(split: Any, where: str, image: str, label: str) -> _Stored:
    import numpy as np

    labels = list(split[label])
    if not labels:
        raise InputError(f"{where} is empty")
    for row, value in enumerate(labels):
        if value is None or value < 0:
            raise InputError(f"{where}: row {row} (of {len(labels)}, from 0) has no {label}")
    numbers = np.asarray(labels, dtype=np.int64)
    return _Stored(lambda: _decoded(split, image), numbers, lambda row: f"{where}, row {row}")


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


# -------------------------------------------------------------------------------------- folders


def _class_folders(folder: Path, listing: Listing, size: int | None) -> Raw:
    """`train/<class>/*` with other splits beside it; or `<class>/*` alone."""
    images = listing.ending(ENDINGS)
    if not images:
        raise InputError(
            f"data_dir={str(folder)!r} holds neither Parquet files nor images in class folders "
            f"(train/<class>/<images>): {'; '.join(listing.left_out([])) or 'it is empty'}"
        )
    roots = _roots(folder, images)
    parts = folders.roles(roots)
    stored: dict[str, _Stored] = {}
    used, empty, classes = list[Path](), list[str](), list[str]()
    for part, split in parts.items():
        members = _by_class(roots[split], images, split)
        classes = classes or sorted(members)  # the training set's, which comes first
        if odd := set(members) ^ set(classes):
            raise InputError(
                f"{folder}: its train and {part} folders differ in their classes: "
                f"{listed(sorted(odd))}"
            )
        stored[part] = _files([members[name] for name in classes])
        used += (path for paths in members.values() for path in paths)
        inside = [path for path in _folders(roots[split]) if path.name not in members]
        empty += [str(path.relative_to(folder)) for path in inside]
    notes = listing.left_out(used)
    if empty:
        notes.append(f"no classes, as they hold no image: {listed(empty)}")
    return _raw(stored, parts, classes, str(folder.resolve()), size, notes)


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not folders.is_hidden(p.name))


def _roots(folder: Path, images: Sequence[Path]) -> dict[str, Path]:
    """The folder of class folders of each split; `all` alone if there are no splits.

    A folder is that of a split if its name says so and it holds folders with images: one that
    holds images itself is a class, whatever its name.
    """
    inside = [path.relative_to(folder).parts for path in images]
    nested = {parts[0] for parts in inside if len(parts) > 2}
    named = {path.name: words for path in _folders(folder) if (words := split_words(path.name))}
    if not nested & set(named):
        if glued := folders.glued_train(sorted(nested)):
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


def _by_class(root: Path, images: Sequence[Path], split: str) -> dict[str, list[Path]]:
    """Images of each class folder, in the order of torchvision's ImageFolder."""
    members: dict[str, list[Path]] = {}
    unclear = []
    inside = [path for path in images if path.is_relative_to(root)]
    for path in sorted(inside, key=lambda path: (str(path.parent), path.name)):
        *above, _ = path.relative_to(root).parts
        if above:
            members.setdefault(above[0], []).append(path)
        if any(set(split_words(name)) - {split} for name in above[1:]):
            unclear.append(str(path.relative_to(root)))
    if unclear:
        raise InputError(
            f"{root}: folders inside class folders are named after a split: {listed(unclear)}; "
            "the layout that is read is train/<class>/<images>"
        )
    if not members:
        raise InputError(
            f"{root} holds neither Parquet files nor images in class folders "
            "(train/<class>/<images>): its images are in no class folder"
        )
    return members


def _files(by_class: Sequence[Sequence[Path]]) -> _Stored:
    import numpy as np
    from PIL import Image

    paths = [path for members in by_class for path in members]
    numbers = np.arange(len(by_class), dtype=np.int64)
    labels = np.repeat(numbers, [len(members) for members in by_class])
    return _Stored(lambda: map(Image.open, paths), labels, lambda index: str(paths[index]))


# ------------------------------------------------------------------------------------- decoding


def _raw(
    stored: Mapping[str, _Stored],
    parts: Mapping[str, str],
    classes: Sequence[str],
    source: str,
    size: int | None,
    notes: Sequence[str],
) -> Raw:
    assert size is not None
    decoded = _decode(stored, None) or _decode(stored, (size, size))
    assert decoded is not None
    splits, several = decoded
    read = [f"{folders.titled(k, parts[k])}: {count(len(s), 'image')}" for k, s in splits.items()]
    if several:
        notes = [*notes, f"of several frames, the first is read: {count(several, 'image')}"]
    val, test = splits.get("validation"), splits.get("test")
    return Raw(splits["train"], test, tuple(classes), source, val, (*read, *notes))


def _decode(
    stored: Mapping[str, _Stored], fit: tuple[int, int] | None
) -> tuple[dict[str, Split], int] | None:
    """Every picture as it is, or its middle fitted into a width and height.

    Returns:
        The splits, and how many pictures have several frames; None if sizes differ without `fit`.
    """
    import numpy as np
    from PIL import ImageOps

    splits, several, side = {}, 0, fit
    for part, split in stored.items():
        images = np.empty(0, dtype=np.uint8)
        done = 0
        try:
            for picture in split.pictures():
                if picture is None:
                    raise ValueError("there is none")
                several += getattr(picture, "n_frames", 1) > 1
                rgb = to_rgb(picture)
                side = side or rgb.size
                if fit is None and rgb.size != side:
                    return None
                if done == 0:
                    images = np.empty((len(split.labels), side[1], side[0], 3), dtype=np.uint8)
                images[done] = np.asarray(ImageOps.fit(rgb, side) if fit else rgb)
                done += 1
        except Exception as error:  # Pillow raises whatever a file's bytes lead it to
            reason = first_line(error)
            raise InputError(f"{split.name(done)} cannot be decoded: {reason}") from None
        splits[part] = Split(images, split.labels)
    return splits, several
