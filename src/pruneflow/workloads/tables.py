"""Tables with a text and a label column: CSV and Parquet files of a folder, and what they hold."""

from __future__ import annotations

import csv
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

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
    columns: Mapping[str, Sequence[object]]
    lines: Sequence[int] = ()

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def texts(self, column: str) -> list[str]:
        """Values of a column.

        Raises:
            InputError: one that is missing, or is no text.
        """
        return self._known(column, [_text(value) for value in self.columns[column]], "text")

    def labels(self, column: str) -> list[str]:
        """Values of a column as text, whatever a file has stored them as.

        Raises:
            InputError: one that is missing, or is neither text nor a number.
        """
        return self._known(column, [_label(value) for value in self.columns[column]], "labels")

    def _known(self, column: str, values: list[str | None], kind: str) -> list[str]:
        known = [value for value in values if value and not value.isspace()]
        if len(known) < len(values):
            index = next(i for i, value in enumerate(values) if not value or value.isspace())
            line = f"; line {self.lines[index]}" if self.lines else ""
            where = f"{self.name}: row {index} (of {len(self)}, from 0{line})"
            if values[index] is None:
                odd = type(self.columns[column][index]).__name__
                raise InputError(f"{where}: column {column!r} holds {odd}, not {kind}")
            raise InputError(f"{where} has no {kind.removesuffix('s')}")
        return known


def _text(value: object) -> str | None:
    """None where a value is of another kind, nothing where it is missing."""
    return value if isinstance(value, str) else "" if _missing(value) else None


def _label(value: object) -> str | None:
    import numpy as np

    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str):
        return value.strip()
    if _missing(value):
        return ""
    return str(value) if isinstance(value, bool | int | float | Decimal) else None


def _missing(value: object) -> bool:
    import pandas as pd

    not_a_number = isinstance(value, float) and math.isnan(value)
    return value is None or value is pd.NA or value is pd.NaT or not_a_number


def read(folder: Path) -> tuple[dict[str, list[Table]], list[str]]:
    """Tables of a folder's CSV and Parquet files, by the split they are named after, or `all`.

    Returns:
        The tables, and notes on the files that were left out.

    Raises:
        InputError: files that cannot be read, or whose split cannot be told.
    """
    listing = list_files(folder)
    paths = listing.ending((".csv", ".parquet"))
    if not paths:
        others = "; ".join(listing.left_out([])) or "it is empty"
        raise InputError(f"data_dir={str(folder)!r} holds neither CSV nor Parquet files: {others}")
    splits = by_split(paths, folder)
    tables = {split: [_table(path) for path in found] for split, found in splits.items()}
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
    return Table(name, dict(zip(_header(name, frame.columns), columns, strict=True)))


def _csv(path: Path) -> Table:
    """A CSV file in UTF-8, every value as the text that it is.

    Raises:
        InputError: a row with another number of fields than the header, or quotes that do not
            match.
        ValueError: no header, or not UTF-8.
    """
    rows: list[list[str]] = []
    lines: list[int] = []
    limit = csv.field_size_limit(sys.maxsize)  # a text may be long
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            end = 0
            for row in reader:
                start, end = end + 1, reader.line_num
                if len(row) > 1 or "".join(row).strip():  # not a blank line
                    rows.append(row)
                    lines.append(start)
    except csv.Error as error:
        raise InputError(
            f"{path}: the row that starts at line {end + 1} cannot be read: {error}"
        ) from None
    finally:
        csv.field_size_limit(limit)
    if not rows:
        raise ValueError("No columns: it is empty")
    header, *rows = rows
    for index, row in enumerate(rows):
        where = f"{path}: row {index} (of {len(rows)}, from 0; line {lines[index + 1]})"
        if len(row) != len(header):
            hint = ": a text with a comma needs quotes around it" if len(row) > len(header) else ""
            raise InputError(
                f"{where} has {count(len(row), 'field')}, the header has {len(header)}{hint}"
            )
        if row == header:
            raise InputError(f"{where} is the header again: {', '.join(header)}")
    columns = list(zip(*rows, strict=True)) or [()] * len(header)
    return Table(str(path), dict(zip(_header(str(path), header), columns, strict=True)), lines[1:])


def _header(name: str, columns: Iterable[object]) -> list[str]:
    """Names of columns in small letters; columns without a name have their number."""
    names = [str(column).strip().lower() or f"#{number}" for number, column in enumerate(columns)]
    if twice := sorted({column for column in names if names.count(column) > 1}):
        raise InputError(f"{name} has two columns of one name: {listed(twice)}")
    return names


def text_and_label(table: Table) -> tuple[str, str]:
    """Names of a table's text and label column.

    Raises:
        InputError: they cannot be told.
    """
    label = next((name for name in _LABEL if name in table.columns), None)
    text = next((name for name in _TEXT if name in table.columns), None)
    if text is None:
        others = [name for name in table.columns if name != label and not name.startswith("#")]
        of_text = [name for name in others if _holds_text(table.columns[name])]
        text = of_text[0] if len(of_text) == 1 else None
    if text is None or label is None:
        lacking = "text" if text is None else "label"
        usual = _TEXT if text is None else _LABEL
        raise InputError(
            f"{table.name}: which column is the {lacking} cannot be told from "
            f"{', '.join(table.columns)}: name it one of {', '.join(usual)}"
        )
    return text, label


def _holds_text(values: Sequence[object]) -> bool:
    return all(isinstance(value, str) for value in values) and not all(
        _NO_TEXT.fullmatch(str(value).strip()) for value in values
    )


def class_names(labels: Iterable[str]) -> dict[str, str]:
    """The class of each label: numbers of one value are one class, `1` for `01`, `1` and `1.0`.

    Where some numbers are no whole ones, all are written as those are: `0.5`, `1.0`.

    Returns:
        Label -> name of its class; classes in order, numbers first, by their value.
    """
    distinct = set(labels)
    numbers = {label: Decimal(label) for label in distinct if _NUMBER.fullmatch(label)}
    whole = all(number == number.to_integral_value() for number in numbers.values())
    names = {label: str(int(n) if whole else float(n)) for label, n in numbers.items()}
    names |= {label: label for label in distinct - set(numbers)}
    order = sorted(distinct, key=lambda label: (label not in numbers, numbers.get(label, 0), label))
    return {label: names[label] for label in order}
