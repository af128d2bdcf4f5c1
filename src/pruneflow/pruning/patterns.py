"""Patterns: which layers may be pruned, by names such as `classifier.*` or `conv?`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from pruneflow.errors import InputError

_SHOWN = 8


def choose(
    known: Mapping[str, Iterable[str]],
    shown: Sequence[str],
    *,
    include: Iterable[str],
    exclude: Iterable[str],
) -> set[str]:
    """What patterns choose of what is known.

    Args:
        known: name -> the names that a pattern may match it by.
        shown: names of layers, for messages.
        include, exclude: patterns; no `include` means all.

    Raises:
        InputError: a pattern that matches nothing.
    """

    def matching(pattern: str) -> set[str]:
        names = {n for n, also in known.items() if any(fnmatchcase(a, pattern) for a in also)}
        if not names:
            more = f" and {len(shown) - _SHOWN} more" * (len(shown) > _SHOWN)
            there = ", ".join(shown[:_SHOWN]) + more
            raise InputError(f"pattern {pattern!r} matches no prunable layer; there are: {there}")
        return names

    included = [matching(pattern) for pattern in include] or [set(known)]
    return set().union(*included).difference(*map(matching, exclude))
