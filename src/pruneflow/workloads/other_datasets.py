"""Data sets that are not listed: those of the Hugging Face hub or its library, and of factories."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pruneflow.errors import InputError, first_line, user_path
from pruneflow.workloads import factories, images, tables, texts
from pruneflow.workloads.folders import count, listed, roles
from pruneflow.workloads.pictures import to_rgb
from pruneflow.workloads.splits import Raw, Split

HUGGING_FACE = "hf:"
_IN_ORDER = {2: ("train", "test"), 3: ("train", "validation", "test")}  # of a tuple of so many
_TOLERANCE = 1e-6  # of floats that are whole numbers over 255


def is_other(name: str) -> bool:
    """Whether a name is `hf:<id or folder>`, or that of a factory."""
    return name.startswith(HUGGING_FACE) or factories.is_factory(name)


def read(name: str, columns: Sequence[str], image_size: int | None) -> Raw:
    """The data set of a name; `columns` are those of inputs and labels, where they are not found.

    Raises:
        InputError: what cannot be read, or is no classification set of images or texts.
    """
    if name.startswith(HUGGING_FACE):
        splits = _from_hub(name)
        return _of_tables(splits, name, columns, image_size)
    splits = _splits(name, factories.call("dataset", name))
    if all(hasattr(split, "features") for split in splits.values()):
        return _of_tables(splits, name, columns, image_size)
    if columns:
        reason = "has no effect with a data set that has no columns: leave it out"
        raise InputError(f"columns={','.join(columns)} {reason}")
    return _of_samples(splits, name, image_size)


def _from_hub(name: str) -> dict[str, Any]:
    """Splits of `hf:<folder>`, saved by the library or files, or `hf:<id>[:<configuration>]`."""
    given = name.removeprefix(HUGGING_FACE)
    if not given:
        raise InputError("dataset='hf:' names nothing: pass hf:<hub id> or hf:<folder>")
    folder = user_path("dataset", given)
    problem = f"dataset={name!r} could not be read"
    way_out = "pass hf:<folder>, with Parquet, CSV or JSON files or as save_to_disk writes it"
    with tables.reading(problem, way_out):
        import datasets

        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            loaded = datasets.load_from_disk(str(folder))
        elif folder.is_dir():
            loaded = datasets.load_dataset(str(folder))
        else:
            repository, _, configuration = given.partition(":")
            loaded = datasets.load_dataset(repository, configuration or None)
    return dict(loaded) if isinstance(loaded, Mapping) else {"train": loaded}


def _splits(name: str, made: Any) -> dict[str, Any]:
    """What a factory has returned, by the names of splits."""
    if isinstance(made, Mapping) and made:
        return {str(split): part for split, part in made.items()}
    if isinstance(made, tuple | list) and len(made) in _IN_ORDER:
        return dict(zip(_IN_ORDER[len(made)], made, strict=True))
    raise InputError(
        f"dataset={name!r} returned {type(made).__name__}: it should return a pair of train and "
        "test, or a mapping with train, test and perhaps validation"
    )


# ------------------------------------------------------------------- tables of Hugging Face


def _of_tables(
    splits: Mapping[str, Any], name: str, columns: Sequence[str], size: int | None
) -> Raw:
    """Images or texts of tables with an input and a label column."""
    first = splits[roles(splits).get("train", next(iter(splits)))]
    kinds = {key: type(feature).__name__ for key, feature in first.features.items()}
    if unknown := [column for column in columns if column not in kinds]:
        raise InputError(f"{name} has no column {unknown[0]!r}; it has {listed(list(kinds))}")
    if columns:
        splits = {key: split.select_columns(list(columns)) for key, split in splits.items()}
        kinds = {column: kinds[column] for column in columns}
    if "Image" not in kinds.values():
        return _texts(splits, name, columns)
    if size is None:
        raise InputError(f"{name} holds images: pass image_size")
    if "ClassLabel" not in kinds.values():
        splits = _with_class_label(splits, name, _label_column(name, kinds, columns))
    return images.read_tables(splits, name, size, [])


def _label_column(name: str, kinds: Mapping[str, str], columns: Sequence[str]) -> str:
    label = columns[1] if columns else tables.label_column(kinds)
    if label is None:
        raise InputError(
            f"{name}: which column is the label cannot be told from {', '.join(kinds)}: pass "
            "columns=<image>,<label>"
        )
    return label


def _with_class_label(splits: Mapping[str, Any], name: str, label: str) -> dict[str, Any]:
    """Tables whose labels, numbers or words, are class numbers, of names that all splits share."""
    from datasets import ClassLabel

    found = {
        split: tables.Table(f"{name}, {split}", {label: list(table[label])}).labels(label)
        for split, table in splits.items()
    }
    names = tables.class_names(value for values in found.values() for value in values)
    classes = list(dict.fromkeys(names.values()))
    numbers = {value: classes.index(class_name) for value, class_name in names.items()}
    labelled = {}
    for split, table in splits.items():
        rest = table.remove_columns(label)
        rows = rest.add_column(label, [numbers[value] for value in found[split]])
        labelled[split] = rows.cast_column(label, ClassLabel(names=classes))
    return labelled


def _texts(splits: Mapping[str, Any], name: str, columns: Sequence[str]) -> Raw:
    """Texts of tables; a split that has no labels (GLUE's tests: -1) is left out."""
    read: dict[str, list[tables.Table]] = {}
    notes = []
    for split, rows in splits.items():
        if columns:
            rows = rows.rename_columns(dict(zip(columns, ("text", "label"), strict=True)))
        frame = rows.to_pandas()
        for column, feature in rows.features.items():
            if type(feature).__name__ == "ClassLabel":
                if len(frame) and (frame[column] < 0).all():
                    notes.append(f"no labels, and not read: {split}")
                    break
                words = dict(enumerate(feature.names))
                frame[column] = frame[column].map(words).where(frame[column] >= 0)
        else:
            read[split] = [tables.of_frame(f"{name}, {split}", frame)]
    return texts.read_tables(read, name, notes)


# --------------------------------------------------------------------- samples of somebody's own


def _of_samples(splits: Mapping[str, Any], name: str, size: int | None) -> Raw:
    """Images or texts of sets that give a sample and its label by number."""
    parts = roles(splits)
    if "train" not in parts:
        raise InputError(f"{name} has no training set; it has: {listed(list(splits))}")
    pairs = {part: list(_pairs(splits[key], f"{name}, {key}")) for part, key in parts.items()}
    for part, key in parts.items():
        if not pairs[part]:
            raise InputError(f"{name}, {key} is empty")
    stated = getattr(splits[parts["train"]], "classes", None)
    labels, classes = _numbered({k: [p[1] for p in v] for k, v in pairs.items()}, stated, name)
    if isinstance(pairs["train"][0][0], str):
        return _raw(
            {k: _text_array(v, f"{name}, {k}") for k, v in pairs.items()}, labels, classes, name
        )
    return _raw(_image_arrays(pairs, name, size), labels, classes, name)


def _pairs(dataset: Any, name: str) -> Iterator[tuple[Any, Any]]:
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        kind = type(dataset).__name__
        raise InputError(f"{name} is a {kind}: it should have a length and give samples by number")
    for number in range(len(dataset)):
        try:
            sample, label = dataset[number]
        except Exception as error:  # somebody's own code
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(f"{name}: sample {number} cannot be read ({reason})") from None
        yield sample, label


def _numbered(
    labels: Mapping[str, list[Any]], stated: Any, name: str
) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    """Labels as class numbers, and the names of classes; `stated` are names by the number."""
    columns = {k: tables.Table(f"{name}, {k}", {"label": _plain(v)}) for k, v in labels.items()}
    words = {part: table.labels("label") for part, table in columns.items()}
    names = tables.class_names(value for values in words.values() for value in values)
    classes = tuple(dict.fromkeys(names.values()))
    if stated is not None:
        given = tuple(map(str, stated))
        numbers = tuple(map(str, range(len(given))))
        if set(classes) <= set(numbers):
            classes = numbers
        elif not set(classes) <= set(given):
            raise InputError(f"{name}: labels {listed(classes)} are none of its classes")
    numbered = {k: [classes.index(names[v]) for v in values] for k, values in words.items()}
    return numbered, tuple(map(str, stated)) if stated is not None else classes


def _plain(labels: list[Any]) -> list[Any]:
    """Labels without tensors and arrays of one number around them."""
    return [label.item() if hasattr(label, "item") else label for label in labels]


def _text_array(pairs: Sequence[tuple[Any, Any]], name: str) -> Any:
    import numpy as np

    table = tables.Table(name, {"text": [sample for sample, _ in pairs]})
    return np.array(table.texts("text"), dtype=object)


def _image_arrays(
    pairs: Mapping[str, Sequence[tuple[Any, Any]]], name: str, size: int | None
) -> dict[str, Any]:
    """Images of every part as (N, H, W, 3), uint8; of several sizes, as squares of `size`."""
    import numpy as np
    from PIL import Image, ImageOps

    if size is None:
        raise InputError(f"{name} holds images: pass image_size")
    arrays = {
        part: [_pixels(sample, f"{name}, {part}: sample {n}") for n, (sample, _) in enumerate(of)]
        for part, of in pairs.items()
    }
    shapes = {array.shape for part in arrays.values() for array in part}
    if len(shapes) > 1:
        side = (size, size)
        arrays = {
            part: [np.asarray(ImageOps.fit(Image.fromarray(array), side)) for array in of]
            for part, of in arrays.items()
        }
    return {part: np.stack(of) for part, of in arrays.items()}


def _pixels(sample: Any, name: str) -> Any:
    """An image (H, W, 3), uint8, of one of Pillow, or of an array or tensor.

    Channels, one or three, may come first or last. Floats are taken where they are whole numbers
    over 255, as torchvision's ToTensor gives them: others may have been normalised.
    """
    import numpy as np
    from PIL import Image

    if isinstance(sample, Image.Image):
        try:
            return np.asarray(to_rgb(sample))
        except (ValueError, OSError) as error:
            raise InputError(f"{name} cannot be decoded: {first_line(error)}") from None
    array = np.asarray(sample)
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim == 3 and array.shape[2] not in (1, 3) and array.shape[0] in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] not in (1, 3):
        kind = f"of shape {array.shape}" if array.ndim else f"a {type(sample).__name__}"
        raise InputError(f"{name} is {kind}: it should be an image of 1 or 3 channels, or a text")
    if np.issubdtype(array.dtype, np.floating):
        whole = np.round(array * 255)
        if not np.isfinite(array).all() or np.abs(whole / 255 - array).max() > _TOLERANCE:
            raise InputError(
                f"{name} has floats that are no pixels over 255: give images before they are "
                "normalised, as uint8 or of Pillow"
            )
        array = whole
    if array.min() < 0 or array.max() > 255 or not (array == array.astype(np.uint8)).all():
        raise InputError(f"{name} has values that are no pixels from 0 to 255")
    return np.ascontiguousarray(np.broadcast_to(array.astype(np.uint8), (*array.shape[:2], 3)))


def _raw(
    arrays: Mapping[str, Any],
    labels: Mapping[str, list[int]],
    classes: tuple[str, ...],
    name: str,
) -> Raw:
    import numpy as np

    sets = {k: Split(a, np.array(labels[k], dtype=np.int64)) for k, a in arrays.items()}
    notes = tuple(f"{part}: {count(len(split), 'sample')}" for part, split in sets.items())
    return Raw(sets["train"], sets.get("test"), classes, name, sets.get("validation"), notes)
