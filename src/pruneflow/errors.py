"""What can go wrong by the user's hand, and how it is said: one line, what is valid beside it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class InputError(ValueError):
    """Input that cannot be used. Its text is one line: the value, why, and what is valid."""

    def __init__(self, text: str) -> None:
        super().__init__(one_line(text))


class ExperimentError(RuntimeError):
    """An experiment that cannot go on (a loss that is not finite, say); its text is one line."""

    def __init__(self, text: str) -> None:
        super().__init__(one_line(text))


def one_line(text: str) -> str:
    """Without line breaks, or anything else that a terminal would obey."""
    words = " ".join(text.split())
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in words)


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line; its kind, if it says nothing.

    User and password of an address in it are left out.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if len(lines) > 1 and lines[0].endswith(":"):  # the reason comes after it
        lines[0] += f" {lines[1].strip()}"
    return re.sub(r"(?<=://)[^/\s]*@", "", lines[0])


def user_path(parameter: str, value: str) -> Path:
    """The path that a parameter names, `~` expanded; it need not exist.

    Raises:
        InputError: text that no file system takes for a path, or a place that may not be seen.
    """
    try:
        path = Path(value).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        reason = f"is not a usable path: {first_line(error)}"
        raise InputError(f"{parameter}={value[:80]!r} {reason}") from None
    return path


def output_folder(parameter: str, value: str) -> Path:
    """A folder that a parameter names for what is written; it need not exist, and is not made.

    Raises:
        InputError: it may not be written to, or is no folder.
    """
    folder = user_path(parameter, value)
    parent = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        reason = "may not be written to" if parent.is_dir() else "is not a folder"
        raise InputError(f"{parameter}={value!r} is not valid: {parent} {reason}")
    return folder


def unknown(kind: str, value: object, valid: Iterable[str], *, listed: int = 12) -> InputError:
    """An InputError for a name that is not among the valid ones, the nearest of them first.

    `listed` caps how many valid names are printed.
    """
    names = sorted(valid)
    near = get_close_matches(str(value), names, n=3, cutoff=0.5)
    shown = ", ".join(names[:listed])
    more = f" and {len(names) - listed} more" if len(names) > listed else ""
    hint = f"valid: {shown}{more}"
    if near:
        hint = f"did you mean {' or '.join(near)}?" + ("" if more else f" ({hint})")
    return InputError(f"unknown {kind} {str(value)!r}: {hint}")
