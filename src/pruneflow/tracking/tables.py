"""Tables: records of a dataclass as CSV, and read back with the types of its fields."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import astuple, fields
from typing import Any, TypeVar

import pandas as pd

_DTYPES = {"int": "Int64", "float": "float64", "str": "string"}
_UNFIT = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
R = TypeVar("R")


def dtypes(kind: type[Any]) -> dict[str, str]:
    """Field of a dataclass -> pandas' type of its column; each can be missing."""
    return {f.name: _DTYPES[str(f.type).removesuffix(" | None")] for f in fields(kind)}


def to_csv(rows: Iterable[Any], kind: type[Any]) -> str:
    """Records of a dataclass as CSV text, the fields' names as its header."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(field.name for field in fields(kind))
    writer.writerows(astuple(row) for row in rows)
    return out.getvalue()


def cells(text: str) -> pd.DataFrame:
    """The columns of CSV text of records, as text; NA where a cell is empty.

    Raises:
        ValueError: text that is something else, or torn.
    """
    widths = {len(row) for row in csv.reader(io.StringIO(text))}
    if len(widths) != 1 or not text.endswith("\n"):
        raise ValueError("a row is torn")
    # as text: pandas' own parser of numbers rounds some in their last digit
    table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    return table.mask(table == "")


def frame(table: Mapping[str, Any] | pd.DataFrame, kind: type[Any]) -> pd.DataFrame:
    """Columns of a record with the types of its fields; what the table lacks is missing.

    Raises:
        ValueError: values that are not of their fields' types, or a row without its level.
    """
    try:
        found = pd.DataFrame(table).reindex(columns=list(dtypes(kind))).astype(dtypes(kind))
    except _UNFIT as error:
        raise ValueError(f"no {kind.__name__} records: {error}") from None
    if found["level"].isna().any():
        raise ValueError(f"no {kind.__name__} records: a row has no level")
    return found


def from_csv(text: str, kind: type[R]) -> list[R]:
    """Records from the CSV text that `to_csv` made of them, to the last digit.

    Raises:
        ValueError: text that is something else, or torn.
    """
    found = frame(cells(text), kind)
    strings = [f.name for f in fields(kind) if str(f.type) == "str"]  # type: ignore[arg-type]
    found[strings] = found[strings].fillna("")
    plain = found.astype(object).where(found.notna(), None)
    return [kind(*row) for row in plain.itertuples(index=False)]
