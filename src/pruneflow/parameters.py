"""Kinds of parameters: what text is taken for, and what is valid."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from pruneflow.errors import InputError, unknown


def among(kind: str, valid: Collection[str]) -> AfterValidator:
    """Refuses names that are not valid, with the nearest that are."""

    def check(value: Any) -> Any:
        for name in value if isinstance(value, tuple) else (value,):
            if name not in valid:
                raise unknown(kind, name, valid)
        return value

    return AfterValidator(check)


def devices(*others: str) -> AfterValidator:
    """Refuses what is neither `cpu` nor a GPU, `cuda` or `cuda:1`, nor another that is valid."""

    def check(value: Any) -> Any:
        for name in value if isinstance(value, tuple) else (value,):
            if name not in others and not re.fullmatch("cpu|cuda(:(0|[1-9][0-9]?))?", name):
                valid = ", ".join([*others, "cpu", "cuda"])
                raise InputError(
                    f"device={name!r} is not valid: it should be {valid} or cuda:N, a GPU by its "
                    "number"
                )
        return value

    return AfterValidator(check)


def _split(value: object) -> object:
    """'a, b' -> ('a', 'b'); a number is a list of one; lists pass through."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return (value,) if isinstance(value, int | float) else value


def _check_pattern(value: str) -> str:
    """Refuses what is not N:M with 1 <= N < M; leading zeros go."""
    if match := re.fullmatch(r"\s*([0-9]{1,4}):([0-9]{1,4})\s*", value):
        kept, block = map(int, match.groups())
        if 1 <= kept < block:
            return f"{kept}:{block}"
    raise InputError(f"pattern={value!r} is not valid: it should be N:M with 1 <= N < M, as 2:4")


_SPLIT, _EACH_ONCE = BeforeValidator(_split), AfterValidator(lambda v: tuple(dict.fromkeys(v)))
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Pixels = Annotated[int, Field(ge=1, le=4096)]
Positive = Annotated[float, Field(gt=0)]
Pattern = Annotated[str, AfterValidator(_check_pattern)]
Names = Annotated[tuple[str, ...], _SPLIT, _EACH_ONCE]
Fractions = Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], _SPLIT, _EACH_ONCE]
Counts = Annotated[tuple[Count, ...], _SPLIT, _EACH_ONCE]
Numbers = Annotated[tuple[Annotated[int, Field(ge=0)], ...], _SPLIT, _EACH_ONCE]
