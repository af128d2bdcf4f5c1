"""The journal: what is written is there, once, whatever happens to the process or the file."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneflow.errors import InputError
from pruneflow.tracking import journal
from pruneflow.tracking.journal import Entry, Journal, Owner

OWNER = Owner("r1", "0", "sqlite:///x.db", "name", "finetune", "here")
ENTRIES = [
    Entry(tags={"a": "é"}, params={"p": "1"}),
    Entry(metrics=(("m", 0.1 + 0.2, 1_700_000_000_000, 3),), part="level 3"),
    Entry(artifact="levels.csv"),
    Entry(status="FINISHED", time=5, tags={"x": None}),
]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRUNEFLOW_STATE", str(tmp_path))
    return tmp_path


def filled() -> Journal:
    own = Journal.make(OWNER)
    for entry in ENTRIES:
        own.append(entry)
    return own


def test_what_was_written_is_read_back(state: Path) -> None:
    filled().close(remove=False)
    again = Journal.make(OWNER)
    assert again.pending() == ENTRIES
    assert replace(again.owner, writer="") == OWNER
    assert again.status == "FINISHED"
    again.close(remove=False)


def test_a_part_is_told_once(state: Path) -> None:
    own = filled()
    own.append(Entry(metrics=(("m", 9.0, 9, 3),), part="level 3"))
    assert own.pending() == ENTRIES
    own.close(remove=False)
    again = Journal.make(OWNER)
    assert again.parts == {None, "level 3"}
    again.close(remove=False)


def test_what_is_acknowledged_is_not_pending(state: Path) -> None:
    own = filled()
    own.acknowledge(3)
    own.close(remove=False)
    again = Journal.make(OWNER)
    assert again.pending() == ENTRIES[3:]
    again.close(remove=True)
    assert not again.folder.exists()


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 400))
def test_a_torn_journal_keeps_what_is_whole(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNEFLOW_STATE", str(tmp_path_factory.mktemp("state")))
        filled().close(remove=False)
        path = journal.folder_of("r1") / "journal.jsonl"
        data = path.read_bytes()
        path.write_bytes(data[:cut])
        again = Journal.make(OWNER)
        ends = [found.start() for found in re.finditer(rb"}\n", data)]
        whole = sum(end < cut for end in ends)
        assert again.pending() == ENTRIES[:whole]
        again.append(ENTRIES[-1])
        again.close(remove=False)
        last = Journal.make(OWNER)
        assert last.pending() == [*ENTRIES[:whole], ENTRIES[-1]]
        last.close(remove=False)


def test_an_altered_line_is_left_out_and_the_others_read(state: Path) -> None:
    filled().close(remove=False)
    path = journal.folder_of("r1") / "journal.jsonl"
    path.write_text(path.read_text("utf-8").replace('"metrics"', 'metrics"'), "utf-8")
    again = Journal.make(OWNER)
    assert again.pending() == [ENTRIES[0], *ENTRIES[2:]]
    again.acknowledge(2)
    assert again.pending() == ENTRIES[3:]
    again.close(remove=False)


def test_a_write_that_is_broken_off_loses_no_other_entry(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = filled()
    own.acknowledge(4)
    with monkeypatch.context() as patch:
        patch.setattr(journal.os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            own.append(Entry(tags={"cut": "off"}))
    own.append(Entry(status="KILLED", time=6))
    assert [entry.status for entry in own.pending()] == [None, "KILLED"]
    own.acknowledge(1)
    own.close(remove=False)
    again = Journal.make(OWNER)
    assert again.pending() == [Entry(status="KILLED", time=6)]
    again.close(remove=False)


def test_only_one_process_has_a_journal(state: Path) -> None:
    own = filled()
    assert journal.is_held(own.folder)
    with pytest.raises(InputError, match="open in another process"):
        Journal(own.folder)
    own.close(remove=False)
    assert not journal.is_held(own.folder)


def test_an_artifact_is_whole_or_not_there(state: Path) -> None:
    own = filled()
    own.stage("a/b.txt", lambda place: place.write_text("one", "utf-8"))

    def half(place: Path) -> None:
        place.write_text("tw", "utf-8")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        own.stage("a/b.txt", half)
    assert [p.name for p in own.artifact("a").iterdir()] == ["b.txt"]
    assert own.artifact("a/b.txt").read_text("utf-8") == "one"
    own.close(remove=True)


def test_a_copy_is_forgotten_only_when_it_was_sent(state: Path) -> None:
    own = Journal.make(OWNER)
    own.stage("checkpoint", lambda place: place.mkdir())
    own.append(Entry(artifact="checkpoint"))
    own.forget("checkpoint")
    assert own.artifact("checkpoint").exists()
    own.acknowledge(1)
    own.forget("checkpoint")
    assert not own.artifact("checkpoint").exists()
    own.close(remove=True)


def test_a_state_folder_that_cannot_be_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PRUNEFLOW_STATE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set PRUNEFLOW_STATE"):
        Journal.make(OWNER)
    with pytest.raises(InputError, match="set PRUNEFLOW_STATE"):
        journal.made_state_folder()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"run_id": 1}', "\x00"])
def test_an_owner_that_cannot_be_read_is_refused(state: Path, text: str) -> None:
    (state / "run.json").write_text(text, "utf-8")
    with pytest.raises(InputError, match="no journal of a run"):
        journal.owner_of(state)


def test_the_state_folder_follows_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRUNEFLOW_STATE", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert journal.state_folder() == Path("/somewhere/pruneflow")
    monkeypatch.delenv("XDG_STATE_HOME")
    assert journal.state_folder() == Path.home() / ".local/state/pruneflow"


def test_lines_are_json_that_others_can_read(state: Path) -> None:
    own = filled()
    lines = (own.folder / "journal.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines if line][1] == {
        "n": 2,
        "metrics": [["m", 0.1 + 0.2, 1_700_000_000_000, 3]],
        "part": "level 3",
    }
    own.close(remove=True)
