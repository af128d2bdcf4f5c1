"""Image data sets: readers of folders of images and of Parquet files, decoded once to uint8.

`datasets` lists them; `pictures` says what a picture looks like as RGB.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruneflow.errors import InputError, first_line
from pruneflow.workloads import folders, image_files
from pruneflow.workloads.folders import Listing, count, listed, split_words
from pruneflow.workloads.image_files import opened, place_of
from pruneflow.workloads.pictures import to_rgb, upright_size
from pruneflow.workloads.splits import Raw, Split
from pruneflow.workloads.tables import from_hub, reading

if TYPE_CHECKING:  # imported when used: names and help must not wait for them
    from PIL import Image

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
        raw = read_tables(from_hub("cifar10", hub), hub, image_size, [])
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


def _folder(name: str, data_dir: str, size: int | None) -> Raw:
    """A folder laid out as a hub repository (Parquet files), or of images in class folders."""
    folder = folders.existing(data_dir)
    listing = folders.list_files(folder)
    tables = listing.ending((".parquet",))
    if not tables:
        splits, notes = _class_folders(folder, listing)
        return read_tables(splits, str(folder.resolve()), size, notes)
    files = {  # the library keeps the name `all` for itself
        "train" if split == "all" else split: [str(path) for path in paths]
        for split, paths in folders.by_split(tables, folder).items()
    }
    problem = f"data_dir={data_dir!r} could not be read as {name}"
    with reading(problem, "it should hold the hub repository's files"):
        import datasets

        features = None
        if (folder / "README.md").is_file():  # its card may say what the columns are
            features = datasets.load_dataset_builder(str(folder)).info.features
        splits = datasets.load_dataset("parquet", data_files=files, features=features)
    return read_tables(splits, str(folder.resolve()), size, listing.left_out(tables))


def _class_folders(folder: Path, listing: Listing) -> tuple[dict[str, Any], list[str]]:
    """Tables of the images of `train/<class>/*` and other splits, or of `<class>/*`; and notes."""
    from datasets import ClassLabel, Dataset, Features, Image

    images = listing.ending(ENDINGS)
    if not images:
        raise InputError(
            f"data_dir={str(folder)!r} holds neither Parquet files nor images in class folders "
            f"(train/<class>/<images>): {'; '.join(listing.left_out([])) or 'it is empty'}"
        )
    roots = _roots(folder, images)
    members = {split: _by_class(root, images, split) for split, root in roots.items()}
    classes = sorted(members["train" if "train" in members else "all"])
    tables, empty = {}, []
    for split, by_class in members.items():
        if odd := set(by_class) ^ set(classes):
            problem = f"its train and {split} folders differ in their classes"
            raise InputError(f"{folder}: {problem}: {listed(sorted(odd))}")
        rows = {
            "image": [str(path) for name in classes for path in by_class[name]],
            "label": [name for name in classes for _ in by_class[name]],
        }
        features = Features({"image": Image(), "label": ClassLabel(names=classes)})
        try:
            tables[split] = Dataset.from_dict(rows, features=features)
        except UnicodeEncodeError as error:
            raise InputError(f"{error.object!a}: a file's name has to be UTF-8") from None
        lacking = [path for path in _folders(roots[split]) if path.name not in by_class]
        empty += [str(path.relative_to(folder)) for path in lacking]
    used = [path for by_class in members.values() for paths in by_class.values() for path in paths]
    notes = listing.left_out(used)
    if empty:
        notes.append(f"no classes, as they hold no image: {listed(empty)}")
    return tables, notes


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
    where = f"data_dir={str(folder)!r}"
    if not nested & set(named):
        if glued := folders.glued_train(sorted(nested)):
            raise InputError(
                f"{where}: whether these folders are the training set cannot be told: "
                f"{listed(glued)}; write the word apart from others (my_train)"
            )
        return {"all": folder}
    roots = {split: folder / name for name, words in named.items() for split in words}
    each_once = len(roots) == len(named) == sum(len(words) for words in named.values())
    if not each_once or "train" not in roots or set(named) - nested:
        raise InputError(
            f"{where}: which folders are the training, validation and test set cannot be told "
            f"from {listed(sorted(named))}: there should be a train folder, at most one of each, "
            "and class folders with images in each"
        )
    return roots


def _by_class(root: Path, images: Sequence[Path], split: str) -> dict[str, list[Path]]:
    """Images of each class folder, in the order of torchvision's ImageFolder."""
    members: dict[str, list[Path]] = {}
    for path in sorted(images, key=lambda path: (str(path.parent), path.name)):
        above = path.relative_to(root).parts[:-1] if path.is_relative_to(root) else ()
        if any(set(split_words(name)) - {split} for name in above[1:]):
            raise InputError(
                f"{path}: a folder inside a class folder is named after a split; the layout that "
                "is read is train/<class>/<images>"
            )
        if above:
            members.setdefault(above[0], []).append(path)
    if not members:
        raise InputError(
            f"{root} holds neither Parquet files nor images in class folders "
            "(train/<class>/<images>): its images are in no class folder"
        )
    return members


def read_tables(splits: Any, source: str, size: int | None, notes: Sequence[str]) -> Raw:
    """A data set of tables with an image and a class label column, decoded."""
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
    label = columns["ClassLabel"]
    for key in parts.values():
        values, where = list(splits[key][label]), f"{source}, split {key!r}"
        if not values:
            raise InputError(f"{where} is empty")
        for row, value in enumerate(values):
            if value is None or value < 0:
                raise InputError(f"{where}: row {row} (of {len(values)}, from 0) has no {label}")
    tables = {part: splits[key] for part, key in parts.items()}
    names = {part: f"{source}, split {key!r}" for part, key in parts.items()}
    assert size is not None
    decoded = _decode(tables, names, columns, None) or _decode(tables, names, columns, (size, size))
    assert decoded is not None
    sets, several = decoded
    read = [f"{folders.titled(k, parts[k])}: {count(len(s), 'image')}" for k, s in sets.items()]
    rest = sorted(set(splits) - set(parts.values()))
    notes = [*notes, *([f"splits not read: {listed(rest)}"] if rest else [])]
    if several:
        notes.append(f"of several frames, the first is read: {count(several, 'image')}")
    val, test = sets.get("validation"), sets.get("test")
    return Raw(sets["train"], test, tuple(features[label].names), source, val, (*read, *notes))


def _decode(
    tables: Mapping[str, Any],
    names: Mapping[str, str],
    columns: Mapping[str, str],
    fit: tuple[int, int] | None,
) -> tuple[dict[str, Split], int] | None:
    """Every picture as it is, or its middle as large as `fit`, without which sizes have to agree.

    With the splits, the number of pictures of several frames; None if sizes do not agree.
    """
    import numpy as np
    from PIL import ImageOps

    splits, several, side = {}, 0, fit
    column = columns["Image"]
    for part, table in tables.items():
        labels = np.asarray(table[columns["ClassLabel"]], dtype=np.int64)
        if _is_large(table, column, fit):
            surveyed = image_files.survey(table, column, names[part], fit)
            if surveyed is None or side not in (None, surveyed[0].size):
                return None
            side, several = surveyed[0].size, several + surveyed[1]
            splits[part] = Split(surveyed[0], labels)
            continue
        images = np.empty(0, dtype=np.uint8)
        for row, (rgb, frames) in enumerate(_pictures(table, column, names[part])):
            several += frames > 1
            side = side or rgb.size
            if fit is None and rgb.size != side:
                return None
            if row == 0:
                images = np.empty((len(table), side[1], side[0], 3), dtype=np.uint8)
            images[row] = np.asarray(ImageOps.fit(rgb, side) if fit else rgb)
        splits[part] = Split(images, labels)
    return splits, several


def _is_large(table: Any, column: str, fit: tuple[int, int] | None) -> bool:
    """Whether images, all as large as the first or as `fit`, are too much to be held decoded."""
    import datasets

    file = table.cast_column(column, datasets.Image(decode=False))[0][column]
    width = height = 0
    with suppress(Exception):  # a picture that cannot be decoded is named where it is
        width, height = fit or upright_size(opened(file))
    return 3 * width * height * len(table) > image_files.IN_MEMORY_BYTES


def _pictures(table: Any, column: str, name: str) -> Iterator[tuple[Image.Image, int]]:
    """Pictures as RGB, and their frames; of a table's file, kept decoded in the library's cache."""
    import datasets
    from datasets import Features, Value
    from PIL import Image

    # As files: the library forgets as it decodes how many bits and which colour was transparent.
    files = table.cast_column(column, datasets.Image(decode=False))
    kept = {"width": Value("int32"), "height": Value("int32"), "pixels": Value("binary")}
    decoded = None
    if table.cache_files:
        with suppress(Exception):  # a picture that cannot be decoded is named below
            decoded = files.map(
                _upright_rgb,
                input_columns=[column],
                batched=True,
                remove_columns=files.column_names,
                features=Features(kept),
            ).with_format("arrow")
    for batch in decoded.iter(1_000) if decoded is not None else ():
        for width, height, pixels in zip(*(batch[key] for key in kept), strict=True):
            size = (width.as_py(), height.as_py())
            yield Image.frombytes("RGB", size, pixels.as_buffer()), 1
    for row, file in enumerate(files[column] if decoded is None else ()):
        try:
            picture = opened(file)
            rgb, frames = to_rgb(picture), getattr(picture, "n_frames", 1)
        except Exception as error:  # Pillow raises whatever a file's bytes lead it to
            where = place_of(file, name, row)
            raise InputError(f"{where} cannot be decoded: {first_line(error)}") from None
        yield rgb, frames


def _upright_rgb(files: list[Mapping[str, Any]]) -> dict[str, list[Any]]:
    # The library knows what it has computed before by this function's name: what `to_rgb` makes of
    # a picture cannot change without another name here.
    rgb = [to_rgb(opened(file)) for file in files]
    return {
        "width": [picture.width for picture in rgb],
        "height": [picture.height for picture in rgb],
        "pixels": [picture.tobytes() for picture in rgb],
    }
