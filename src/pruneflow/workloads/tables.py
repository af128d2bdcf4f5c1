"""Tables of texts and labels: CSV and Parquet files of a folder or a hub, and what they hold."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruneflow.errors import InputError, first_line
from pruneflow.workloads.folders import by_split, count, list_files, listed

if TYPE_CHECKING:  # imported when used: names and help must not wait for it
    import pandas as pd

_TEXT = ("text", "sentence", "review", "content", "comment")
_LABEL = ("label", "labels", "class", "target", "sentiment", "category")
_NUMBER = re.compile(r"[+-]?([0-9]{1,99}\.?[0-9]{0,99}|\.[0-9]{1,99})")
_NO_TEXT = re.compile(rf"({_NUMBER.pattern}|true|false)?", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Table:
    """A table: its name, its columns by their names in small letters, the lines of a CSV's rows."""

    name: str
    columns: Mapping[str, Sequence[Any]]
    lines: Sequence[int] = ()

    def texts(self, column: str) -> list[str]:
        """Values of a column, none of which may be missing or anything but text."""
        return self._strings(column, "text", (str,))

    def labels(self, column: str) -> list[str]:
        """Values of a column as text, whatever a file has stored texts and numbers as."""
        values = self._strings(column, "labels", (str, bool, int, float, Decimal))
        return [value.strip() for value in values]

    def _strings(self, column: str, kind: str, kinds: tuple[type, ...]) -> list[str]:
        import numpy as np
        import pandas as pd

        strings = []
        for row, value in enumerate(self.columns[column]):
            plain = value.item() if isinstance(value, np.generic) else value
            missing = pd.api.types.is_scalar(plain) and pd.isna(plain)
            fits = isinstance(plain, kinds) and not missing
            if not fits or not str(plain).strip():
                line = f"; line {self.lines[row]}" if self.lines else ""
                where = f"{self.name}: row {row} (of {len(self.columns[column])}, from 0{line})"
                if fits or missing:
                    raise InputError(f"{where} has no {kind.removesuffix('s')}")
                odd = type(value).__name__
                raise InputError(f"{where}: column {column!r} holds {odd}, not {kind}")
            strings.append(str(plain))
        return strings


@contextmanager
def reading(problem: str, way_out: str) -> Iterator[None]:
    """Turn whatever the `datasets` library raises into one line."""
    import datasets

    datasets.disable_progress_bars()
    try:
        yield
    except Exception as error:  # its readers raise whatever the network or the bytes lead them to
        raise InputError(f"{problem}: {first_line(error)}; {way_out}") from None


def from_hub(name: str, repository: str, *configuration: str) -> Any:
    """The splits of a data set of the Hugging Face hub."""
    problem = f"{name} could not be read from the Hugging Face hub ({repository})"
    with reading(problem, "pass data_dir=<folder with the hub repository's files>"):
        import datasets

        return datasets.load_dataset(repository, *configuration)


def read(folder: Path) -> tuple[dict[str, list[Table]], list[str]]:
    """Tables of a folder's CSV and Parquet files, by the split they are named after, or `all`.

    With them, notes on the files that were left out.
    """
    listing = list_files(folder)
    paths = listing.ending((".csv", ".parquet"))
    if not paths:
        others = "; ".join(listing.left_out([])) or "it is empty"
        raise InputError(f"data_dir={str(folder)!r} holds neither CSV nor Parquet files: {others}")
    splits = by_split(paths, folder)
    tables = {split: [_table(path) for path in files] for split, files in splits.items()}
    return tables, listing.left_out(paths)


def _table(path: Path) -> Table:
    import pandas as pd

    try:
        if path.suffix.lower() == ".csv":
            return _csv(path)
        return of_frame(str(path), pd.read_parquet(path))
    except InputError:
        raise
    except (OSError, ValueError) as error:  # pandas' and Arrow's own are ValueErrors
        raise InputError(f"{path} cannot be read: {first_line(error)}") from None


def of_frame(name: str, frame: pd.DataFrame) -> Table:
    """A table out of a data frame."""
    columns = [frame.iloc[:, number].tolist() for number in range(frame.shape[1])]
    return Table(name, _by_name(name, frame.columns, columns))


def _csv(path: Path) -> Table:
    """A CSV file in UTF-8, every value as the text that it is."""
    rows: list[list[str]] = []
    lines: list[int] = []
    limit = csv.field_size_limit(sys.maxsize)  # a text may be long
    end = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            for row in reader:
                start, end = end + 1, reader.line_num
                if len(row) > 1 or "".join(row).strip():  # not a blank line
                    rows.append(row)
                    lines.append(start)
    except csv.Error as error:
        problem = f"the row that starts at line {end + 1} cannot be read: {error}"
        raise InputError(f"{path}: {problem}") from None
    finally:
        csv.field_size_limit(limit)
    if not rows:
        raise ValueError("No columns: it is empty")
    header, *rows = rows
    for index, row in enumerate(rows):
        where = f"{path}: row {index} (of {len(rows)}, from 0; line {lines[index + 1]})"
        if len(row) != len(header):
            hint = ": a text with a comma needs quotes around it" if len(row) > len(header) else ""
            fields = f"{count(len(row), 'field')}, the header has {len(header)}{hint}"
            raise InputError(f"{where} has {fields}")
        if row == header:
            raise InputError(f"{where} is the header again: {', '.join(header)}")
    columns = list(zip(*rows, strict=True)) or [()] * len(header)
    return Table(str(path), _by_name(str(path), header, columns), lines[1:])


def _by_name(
    table: str, header: Iterable[object], columns: Sequence[Sequence[Any]]
) -> dict[str, Sequence[Any]]:
    """Columns by their names in small letters, or their number where they have no name."""
    names = [str(name).strip().lower() or f"#{number}" for number, name in enumerate(header)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{table} has two columns of one name: {listed(twice)}")
    return dict(zip(names, columns, strict=True))


def label_column(columns: Collection[str]) -> str | None:
    """The column of labels, by the names that are usual for it."""
    return next((name for name in columns if name.lower() in _LABEL), None)


def text_and_label(table: Table) -> tuple[str, str]:
    """Names of a table's text and label column: usual ones, or that of the only texts."""

    def holds_text(values: Sequence[Any]) -> bool:
        texts = all(isinstance(value, str) for value in values)
        return texts and not all(_NO_TEXT.fullmatch(value.strip()) for value in values)

    label = next((name for name in _LABEL if name in table.columns), None)
    text = next((name for name in _TEXT if name in table.columns), None)
    if text is None:
        others = [name for name in table.columns if name != label and not name.startswith("#")]
        of_text = [name for name in others if holds_text(table.columns[name])]
        text = of_text[0] if len(of_text) == 1 else None
    if text is None or label is None:
        lacking, usual = ("text", _TEXT) if text is None else ("label", _LABEL)
        raise InputError(
            f"{table.name}: which column is the {lacking} cannot be told from "
            f"{', '.join(table.columns)}: name it one of {', '.join(usual)}"
        )
    return text, label


def class_names(labels: Iterable[str]) -> dict[str, str]:
    """The class of each label, in order: numbers first, by their value.

    Numbers of one value are one class, `1` for `01`, `1` and `1.0`; where some are no whole ones,
    all are written as those are: `0.5`, `1.0`.
    """
    distinct = set(labels)
    numbers = {label: Decimal(label) for label in distinct if _NUMBER.fullmatch(label)}
    integral = all(number == number.to_integral_value() for number in numbers.values())
    names = {label: str(int(n) if integral else float(n)) for label, n in numbers.items()}
    order = sorted(distinct, key=lambda label: (label not in numbers, numbers.get(label, 0), label))
    return {label: names.get(label, label) for label in order}
