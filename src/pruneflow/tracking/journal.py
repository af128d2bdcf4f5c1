"""The folder of a run on this machine: what it records, safe on the disk before MLflow has it.

A folder for each run, under PRUNEFLOW_STATE or the user's state folder:

    run.json       whose folder it is
    journal.jsonl  an entry a line, in the order in which MLflow is to have them
    sent           number of the last one that MLflow has; `copied`: of a run made offline, where
                   it was published to
    artifacts/     files of the run contract, by the path they have in MLflow
    training/      where the training of a level stood when it was last saved, until it is through
    lock           held by the process that has the run
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout
from platformdirs import user_state_path

from pruneflow.errors import InputError, first_line


@dataclass(frozen=True)
class Entry:
    """One thing to tell MLflow; sent twice, it is there once, for its times are fixed.

    Attributes:
        metrics: key, value, time (ms since 1970) and step of each.
        params, tags: by name; a tag that is None is taken away.
        inputs: a data set: name, digest, source_type, source, profile.
        artifact: path of a file or folder under `artifacts/`.
        status: that the run has from here on.
        time: when it ended, ms since 1970; None where it did not.
        part: what of the run this completes ("level 3"), if anything; it is recorded once.
    """

    metrics: tuple[tuple[str, float, int, int], ...] = ()
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str | None] = field(default_factory=dict)
    inputs: Mapping[str, str] | None = None
    artifact: str | None = None
    status: str | None = None
    time: int | None = None
    part: str | None = None


@dataclass(frozen=True)
class Owner:
    """Whose journal it is, as `run.json` says.

    Attributes:
        run_id, experiment_id: of the run in its store.
        store: its address, without credentials.
        name, stage: of the run.
        host: where its process ran.
        writer: the mark that its processes leave on the run: while the run has another one, it has
            been taken over from another journal, and this one is not sent.
    """

    run_id: str
    experiment_id: str
    store: str
    name: str
    stage: str
    host: str
    writer: str = ""


def state_folder() -> Path:
    """Where the folders of runs are: PRUNEFLOW_STATE, or the user's state folder."""
    folder = os.environ.get("PRUNEFLOW_STATE") or user_state_path("pruneflow")
    return Path(folder).expanduser()


def made_state_folder() -> Path:
    """The state folder, made if it is not there.

    Raises:
        InputError: it cannot be.
    """
    folder = state_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"runs cannot keep their records in {folder} ({first_line(error)}): set "
            "PRUNEFLOW_STATE to a folder that can be written to"
        ) from None
    return folder


def offline_uri() -> str:
    """The tracking URI of the store for runs made offline."""
    return f"sqlite:///{state_folder() / 'offline' / 'mlflow.db'}"


def is_offline(folder: Path) -> bool:
    """Whether a folder's run was made offline, and is yet to be published elsewhere."""
    return owner_of(folder).store == offline_uri()


def folder_of(run_id: str) -> Path:
    """Where the journal of a run is, or would be."""
    return state_folder() / "journals" / run_id


def folders(place: Path | None = None) -> list[Path]:
    """Every journal of this machine, or of a folder, oldest first."""
    place = place or state_folder() / "journals"
    found = [path.parent for path in place.glob("*/run.json")]
    if (place / "run.json").is_file():
        found.append(place)
    return sorted(found, key=lambda folder: (folder / "run.json").stat().st_mtime)


def is_held(folder: Path) -> bool:
    """Whether a process of this machine has the journal open."""
    if not (folder / "lock").exists():
        return False
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


class Journal:
    """A journal that is open: no other process can open it until this one closes it or ends.

    Args:
        folder: of the run.
        sent: name of the file that says how much a store has: its own, or one of copies.

    Raises:
        InputError: a folder that cannot be written to, is no journal, or is open elsewhere.
    """

    def __init__(self, folder: Path, *, sent: str = "sent") -> None:
        self.folder = folder
        self._sent_file = folder / sent
        self._lock = FileLock(folder / "lock", thread_local=False)
        try:
            self._lock.acquire(timeout=0)
            self._entries = list(self._read())
            self._file = (folder / "journal.jsonl").open("a", encoding="utf-8")
        except Timeout:
            raise InputError(f"the journal {folder} is open in another process") from None
        self.sent = _number(self._sent_file)
        self._last = max([self.sent, *(number for number, _ in self._entries)])
        self._parts = {entry.part for _, entry in self._entries}

    @classmethod
    def make(cls, owner: Owner) -> Self:
        """The journal of a run, which need not be there yet."""
        folder = folder_of(owner.run_id)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            opened = cls(folder)
            if not writer_of(folder):
                owner = replace(owner, writer=f"{this_host()} {uuid.uuid4().hex}")
                write(folder / "run.json", json.dumps(asdict(owner), indent=1).encode())
            return opened
        except OSError as error:
            raise InputError(
                f"the run's journal cannot be kept in {folder} ({first_line(error)}): set "
                "PRUNEFLOW_STATE to a folder that can be written to"
            ) from None

    @property
    def owner(self) -> Owner:
        """Whose it is.

        Raises:
            InputError: `run.json` does not say.
        """
        return owner_of(self.folder)

    def _read(self) -> Iterator[tuple[int, Entry]]:
        """The entries that are whole, and their numbers; torn and altered ones are left out."""
        path = self.folder / "journal.jsonl"
        data = path.read_bytes() if path.exists() else b""
        known = {field.name for field in fields(Entry)}
        for line in data.split(b"\n"):
            try:
                values = json.loads(line)
                values["metrics"] = tuple(tuple(m) for m in values.get("metrics", ()))
                entry = Entry(**{name: values[name] for name in known & values.keys()})
                yield int(values["n"]), entry
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
                continue

    def has(self, part: str) -> bool:
        """Whether a part of the run is in the journal already."""
        return part in self._parts

    @property
    def status(self) -> str:
        """The status that the run was last given; RUNNING if it was given none."""
        given = [entry.status for _, entry in self._entries if entry.status is not None]
        return given[-1] if given else "RUNNING"

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of each metric."""
        return {m[0]: m[1] for _, entry in self._entries for m in entry.metrics}

    def append(self, entry: Entry) -> None:
        """Write an entry down; it is on the disk when this returns. A part is recorded once.

        Raises:
            OSError: a full disk.
        """
        if entry.part is not None and entry.part in self._parts:
            return
        plain = Entry()
        values = {k: v for k, v in asdict(entry).items() if v != getattr(plain, k)}
        # remembered first: a signal or a full disk that stops the writing stops no sending
        self._last += 1
        self._entries.append((self._last, entry))
        self._parts.add(entry.part)
        # on a line of its own, whatever an earlier one has left
        self._file.write("\n" + json.dumps({"n": self._last} | values) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def stage(self, path: str, make: Callable[[Path], object]) -> Path:
        """Put a file or folder among the artifacts, whole or not at all.

        Args:
            path: that it will have in MLflow.
            make: writes it to the path it is given, which is in an existing folder.
        """
        place = self.artifact(path)
        replace_whole(place, make)
        return place

    def artifact(self, path: str) -> Path:
        """Where an artifact is, or would be.

        Raises:
            InputError: a path that leads out of the journal.
        """
        place = self.folder / "artifacts" / path
        if ".." in place.parts or not place.resolve().is_relative_to(self.folder.resolve()):
            raise InputError(f"{self.folder} names an artifact outside of itself: {path!r}")
        return place

    def forget(self, path: str) -> None:
        """Delete the copy here of an artifact that MLflow has."""
        numbers = [number for number, entry in self._entries if entry.artifact == path]
        if numbers and numbers[-1] <= self.sent:
            shutil.rmtree(self.artifact(path), ignore_errors=True)

    def pending(self) -> list[Entry]:
        """What MLflow does not have yet, in order."""
        return [entry for number, entry in self._entries if number > self.sent]

    def acknowledge(self, count: int) -> None:
        """The next `count` entries are in MLflow."""
        self.sent = [number for number, _ in self._entries if number > self.sent][count - 1]
        write(self._sent_file, str(self.sent).encode(), durable=False)

    def close(self, *, remove: bool) -> None:
        """Close it, and remove it if nothing of it is needed any more."""
        self._file.close()
        if remove:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()


def owner_of(folder: Path) -> Owner:
    """Whose journal a folder is.

    Raises:
        InputError: none that can be read.
    """
    try:
        values: dict[str, Any] = {"writer": ""}  # the version before had none
        values |= json.loads((folder / "run.json").read_text("utf-8"))
        return Owner(**{field.name: str(values[field.name]) for field in fields(Owner)})
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise InputError(f"{folder} is no journal of a run: {first_line(error)}") from None


def writer_of(folder: Path) -> str:
    """The mark of a journal; empty if it has none."""
    try:
        return owner_of(folder).writer
    except InputError:
        return ""


def unsent_metrics(run_id: str) -> dict[str, float] | None:
    """The last metrics of a run whose process left records here that MLflow has not; else None."""
    folder = folder_of(run_id)
    if not folder.exists():
        return None
    records = Journal(folder)
    try:
        return records.metrics if records.pending() else None
    finally:
        records.close(remove=False)


def set_aside(folder: Path) -> Path:
    """Keep a journal that has been overtaken under another name; its new path."""
    place = folder.with_name(f"{folder.name}-{uuid.uuid4().hex[:8]}")
    folder.rename(place)
    return place


def this_host() -> str:
    """The name of this machine."""
    return socket.gethostname()


def _number(path: Path) -> int:
    """The count that a file holds; 0, which only means sending again, if it holds none."""
    try:
        return max(0, int(path.read_text("utf-8")))
    except (OSError, ValueError):
        return 0


# ---------------------------------------------------------------------------- files, whole or not


def write(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file under a temporary name and rename it."""

    def make(place: Path) -> None:
        place.write_bytes(content)

    replace_whole(path, make, durable=durable)


def replace_whole(path: Path, make: Callable[[Path], object], *, durable: bool = True) -> None:
    """Make a file or folder under a temporary name, see that it is on the disk, and rename it.

    Whenever the machine stops, at `path` is what was there, nothing, or all that was made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        make(temporary)
        if durable:
            inside = list(temporary.rglob("*")) if temporary.is_dir() else []
            for place in (*inside, temporary):
                _sync(place)
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
        if durable:
            _sync(path.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
