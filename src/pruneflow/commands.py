"""Commands: a process that is run to its end, and ended with whoever waits for it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence

PATIENCE_SECONDS = 10.0  # that a process gets to end itself
_POLL_SECONDS = 0.1
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


def run_pruneflow(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    started: Callable[[subprocess.Popen[str]], None] = lambda _: None,
    dies_with_parent: bool = False,
) -> tuple[int, str]:
    """Run `pruneflow` of this Python with variables added to this environment.

    Returns its exit code, and all that it printed. Whatever interrupts the waiting ends it too, and
    with `dies_with_parent` so does the death of this thread, where Linux sees to that.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "pruneflow", *arguments],
            env=os.environ | environment,
            stdout=file,
            stderr=file,
            text=True,
            preexec_fn=_die_with_parent if dies_with_parent and sys.platform == "linux" else None,
        )
        try:
            started(process)
            while process.poll() is None:  # no blocking call, which an interruption had to wait for
                time.sleep(_POLL_SECONDS)
        except BaseException:
            end([process])
            raise
        file.seek(0)
        return process.returncode, file.read()


def end(processes: Sequence[subprocess.Popen[str]]) -> None:
    """End processes, by force where they do not end themselves."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + PATIENCE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
