"""Tables: records of a dataclass as CSV, read back with the types of its fields, as DataFrames."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
import pandas as pd

_DTYPES = {"int": "Int64", "float": "float64", "str": "string"}
_MALFORMED = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError)
R = TypeVar("R")


def _types(kind: type[Any]) -> dict[str, str]:
    return {field.name: str(field.type).removesuffix(" | None") for field in fields(kind)}


def _value(cell: Any, type_: str) -> int | float | str | None:
    if cell is None or (cell == "" and type_ != "str"):
        return None
    if type_ == "int":  # through text, which takes no fraction
        return int(np.int64(str(cell)))
    return float(cell) if type_ == "float" else str(cell)


def records(columns: Mapping[str, Sequence[Any]], kind: type[R]) -> list[R]:
    """Records of a dataclass, from columns of numbers or of text; None in those that are missing.

    Raises:
        ValueError: columns of unequal length, without levels, or of other types than the fields'.
    """
    try:
        types = _types(kind)
        key = "level" if "level" in types else next(iter(types))  # what no row lacks
        if any(value in (None, "") for value in columns[key]):
            raise ValueError(f"a row has no {key}")
        missing = [None] * len(columns[key])
        table = [
            [_value(cell, type_) for cell in columns.get(name, missing)]
            for name, type_ in types.items()
        ]
        return [kind(*row) for row in zip(*table, strict=True)]
    except _MALFORMED as error:
        raise ValueError(f"no {kind.__name__} records: {error}") from None


def from_csv(text: str, kind: type[R]) -> list[R]:
    """Records from the CSV text that `to_csv` made of them, to the last digit.

    Raises:
        ValueError: text that is something else, or torn.
    """
    try:
        header, *lines = csv.reader(io.StringIO(text))
    except (csv.Error, ValueError) as error:
        raise ValueError(f"a table is torn: {error}") from None
    if any(len(line) != len(header) for line in lines) or not text.endswith("\n"):
        raise ValueError("a table is torn")
    return records({name: [line[i] for line in lines] for i, name in enumerate(header)}, kind)


def to_csv(rows: Iterable[Any], kind: type[Any]) -> str:
    """Records as CSV text, the fields' names as its header."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_types(kind))
    writer.writerows(vars(row).values() for row in rows)
    return out.getvalue()


def frame(rows: Iterable[Any], kind: type[Any]) -> pd.DataFrame:
    """Records as a DataFrame with the types of their fields, each of which can be missing."""
    dtypes = {name: _DTYPES[type_] for name, type_ in _types(kind).items()}
    return pd.DataFrame(list(map(vars, rows)), columns=list(dtypes), dtype=object).astype(dtypes)
