"""The folder of a run on this machine: what it records, safe on the disk before MLflow has it.

A folder for each run, under PRUNEFLOW_STATE or the user's state folder:

    run.json       whose folder it is
    journal.jsonl  an entry a line, in the order in which MLflow is to have them
    sent           number of the last entry that MLflow has; `copied`, of a run made offline: that
                   the store has which it was published to
    artifacts/     files of the run contract, by the path they have in MLflow
    training/      where the training of a level stood when it was last saved, until it is through
    lock           held by the process that has the run
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout
from platformdirs import user_state_path

from pruneflow.errors import InputError, first_line

HOST = socket.gethostname()
_TORN = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError)


@dataclass(frozen=True)
class Entry:
    """One thing to tell MLflow; sent twice, it is there once, for its times are fixed."""

    metrics: tuple[tuple[str, float, int, int], ...] = ()  # key, value, ms since 1970, step
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str | None] = field(default_factory=dict)  # None takes a tag away
    inputs: Mapping[str, str] | None = None  # a data set, by the fields of MLflow's Dataset
    artifact: str | None = None  # path of a file or folder under `artifacts/`
    model: int | None = None  # level whose checkpoint the metrics are of: it is a logged model
    status: str | None = None  # of the run from here on
    time: int | None = None  # when the run ended, ms since 1970
    part: str | None = None  # of the run that this completes ("level 3"); recorded once


@dataclass(frozen=True)
class Owner:
    """Whose journal it is, as `run.json` says."""

    run_id: str
    experiment_id: str
    store: str  # its address, without credentials
    name: str
    stage: str
    host: str
    writer: str = ""  # mark on the run in MLflow; another one there: this journal is not sent

    @property
    def offline(self) -> bool:
        """Whether the run was made offline, and is yet to be published elsewhere."""
        return self.store == offline_uri()


def state_folder() -> Path:
    """Where the folders of runs are: PRUNEFLOW_STATE, or the user's state folder."""
    return Path(os.environ.get("PRUNEFLOW_STATE") or user_state_path("pruneflow")).expanduser()


def made_state_folder() -> Path:
    """The state folder, made if it is not there."""
    with _writable(state_folder()):
        return state_folder()


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Make a folder for records; what the system refuses is one line that says what to set."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except Timeout:
        raise InputError(f"the journal {folder} is open in another process") from None
    except OSError as error:
        raise InputError(
            f"runs cannot keep their records in {folder} ({first_line(error)}): set "
            "PRUNEFLOW_STATE to a folder that can be written to"
        ) from None


def offline_uri() -> str:
    """The tracking URI of the store for runs made offline."""
    return f"sqlite:///{state_folder() / 'offline' / 'mlflow.db'}"


def folder_of(run_id: str) -> Path:
    """Where the journal of a run is, or would be."""
    return state_folder() / "journals" / run_id


def folders(place: Path | None = None) -> list[Path]:
    """Every journal of this machine, or of a folder, oldest first."""
    place = place or state_folder() / "journals"
    paths = [*place.glob("run.json"), *place.glob("*/run.json")]
    return [path.parent for path in sorted(paths, key=lambda path: path.stat().st_mtime)]


def owner_of(folder: Path) -> Owner:
    """Whose journal a folder is; InputError: it is none, or cannot be read."""
    try:
        values = {"writer": "", **json.loads((folder / "run.json").read_text("utf-8"))}
        return Owner(**{field.name: str(values[field.name]) for field in fields(Owner)})
    except _TORN as error:
        raise InputError(f"{folder} is no journal of a run: {first_line(error)}") from None


def writer_of(folder: Path) -> str:
    """The mark of a journal; empty if it has none."""
    with suppress(InputError):
        return owner_of(folder).writer
    return ""


def is_held(folder: Path) -> bool:
    """Whether a process of this machine has the journal open."""
    if not (folder / "lock").exists():
        return False
    try:
        with FileLock(folder / "lock", timeout=0):
            return False
    except Timeout:
        return True


def unsent_metrics(run_id: str) -> dict[str, float] | None:
    """The last metrics of a run whose process left records here that MLflow has not; else None."""
    if not folder_of(run_id).exists():
        return None
    try:
        with closing(Journal(folder_of(run_id))) as journal:
            entries = journal.entries.values() if journal.pending() else None
    except InputError:  # no journal of a run, or one that is open elsewhere
        return None
    return None if entries is None else {m[0]: m[1] for entry in entries for m in entry.metrics}


class Journal:
    """A journal that is open: no other process can open it until this one closes it or ends.

    It is made if it has an `owner` given. `sent` names the file that says how much a store has:
    the run's own, or one with a copy of the run.

    Raises:
        InputError: a folder that cannot be written to, is no journal, or is open elsewhere.
    """

    def __init__(self, folder: Path, *, sent: str = "sent", owner: Owner | None = None) -> None:
        self.folder, self.sent = folder, 0
        self._sent_file = folder / sent
        self._lock = FileLock(folder / "lock", timeout=0, thread_local=False)
        with _writable(folder):
            self._lock.acquire()
            if owner is not None:
                content = json.dumps(asdict(owner), indent=1)
                replace_whole(folder / "run.json", lambda path: path.write_text(content, "utf-8"))
            self.owner = owner_of(folder)
            self.entries = _read(folder / "journal.jsonl")
            self._file = (folder / "journal.jsonl").open("a", encoding="utf-8")
        with suppress(OSError, ValueError):  # without the count, all is sent again
            self.sent = max(0, int(self._sent_file.read_text("utf-8")))
        self._last = max([self.sent, *self.entries])
        self.parts = {entry.part for entry in self.entries.values()}

    @classmethod
    def make(cls, owner: Owner) -> Self:
        """The journal of a run, which need not be there yet."""
        return cls(folder_of(owner.run_id), owner=owner)

    @property
    def status(self) -> str:
        """The status that the run was last given; RUNNING if it was given none."""
        given = [entry.status for entry in self.entries.values() if entry.status is not None]
        return given[-1] if given else "RUNNING"

    def append(self, entry: Entry) -> None:
        """Write an entry down; it is on the disk when this returns. A part is recorded once."""
        if entry.part is not None and entry.part in self.parts:
            return
        plain = Entry()
        values = {k: v for k, v in asdict(entry).items() if v != getattr(plain, k)}
        # remembered first: a signal or a full disk that stops the writing stops no sending
        self._last += 1
        self.entries[self._last] = entry
        self.parts.add(entry.part)
        # on a line of its own, whatever an earlier one has left
        self._file.write("\n" + json.dumps({"n": self._last} | values) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def pending(self) -> list[Entry]:
        """What MLflow does not have yet, in order."""
        return [entry for number, entry in self.entries.items() if number > self.sent]

    def acknowledge(self, count: int) -> None:
        """The next `count` entries are in MLflow."""
        self.sent = [number for number in self.entries if number > self.sent][count - 1]
        self._sent_file.write_text(str(self.sent), "utf-8")  # torn, it is less: sent again

    def artifact(self, path: str) -> Path:
        """Where an artifact is, or would be; InputError: a path that leads out of the journal."""
        place = self.folder / "artifacts" / path
        if ".." in place.parts or not place.resolve().is_relative_to(self.folder.resolve()):
            raise InputError(f"{self.folder} names an artifact outside of itself: {path!r}")
        return place

    def stage(self, path: str, make: Callable[[Path], object]) -> None:
        """Put among the artifacts the file or folder that `make` writes, whole or not at all."""
        replace_whole(self.artifact(path), make)

    def forget(self, path: str) -> None:
        """Delete the copy here of an artifact that MLflow has."""
        numbers = [number for number, entry in self.entries.items() if entry.artifact == path]
        if numbers and numbers[-1] <= self.sent:
            shutil.rmtree(self.artifact(path), ignore_errors=True)

    def close(self, *, remove: bool = False) -> None:
        """Close it, and remove it if nothing of it is needed any more."""
        self._file.close()
        if remove:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()


def _read(path: Path) -> dict[int, Entry]:
    """The entries that are whole, by number; torn and altered lines are left out."""
    entries = {}
    known = {field.name for field in fields(Entry)}
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        with suppress(*_TORN):
            values = json.loads(line)
            values["metrics"] = tuple(tuple(metric) for metric in values.get("metrics", ()))
            entries[int(values["n"])] = Entry(**{k: values[k] for k in known & values.keys()})
    return entries


def replace_whole(path: Path, make: Callable[[Path], object]) -> None:
    """Make a file or folder under a temporary name, see that it is on the disk, and rename it.

    Whenever the machine stops, at `path` is what was there, nothing, or all that was made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        make(temporary)
        for part in (*temporary.rglob("*"), temporary):
            _sync(part)
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
