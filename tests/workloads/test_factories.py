"""Tests of factories: whatever is wrong with one is a line, and what is right is imported again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from pruneflow.errors import InputError
from pruneflow.workloads import factories

FILE = """
from neighbour import NUMBER
def make(classes): return NUMBER, classes
class Holder:
    @staticmethod
    def make(classes): return "held", classes
    @classmethod
    def other(cls, classes): return cls.__name__, classes
def fails(classes): raise OSError("a line\\nand another")
value = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "neighbour.py").write_text("NUMBER = 7\n")
    (tmp_path / "thing.py").write_text(FILE)
    (tmp_path / "broken.py").write_text("import nothing_of_the_kind\n")
    (tmp_path / "unfinished.py").write_text("def make(:\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("neighbour", "thing", "broken", "unfinished"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("package.module:name", True),
        ("net.py:Net", True),
        ("/a folder/net.py:Net", True),
        ("net:Outer.Inner", True),
        ("alexnet", False),
        ("hf:bert-base-uncased", False),
        ("timm:resnet10t", False),
        ("net.py", False),
        ("net.py:", False),
        (":Net", False),
        ("a b:Net", False),
        ("net:3", False),
    ],
)
def test_names_of_factories_are_told_from_others(name: str, is_one: bool) -> None:
    assert factories.is_factory(name) is is_one


@pytest.mark.parametrize("module", ["thing", "thing.py", "./thing.py", "{folder}/thing.py"])
@pytest.mark.parametrize(
    ("attribute", "made"),
    [("make", (7, 3)), ("Holder.make", ("held", 3)), ("Holder.other", ("Holder", 3))],
)
def test_a_factory_is_found_by_module_and_by_file(
    folder: Path, module: str, attribute: str, made: object
) -> None:
    before = list(sys.path)
    assert factories.call("model", f"{module.format(folder=folder)}:{attribute}", 3) == made
    assert sys.path == before


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere:make", "nowhere cannot be imported (ModuleNotFoundError"),
        ("nowhere.py:make", "there is no file nowhere.py"),
        ("thing:nothing", "thing has no nothing"),
        ("thing.py:nothing", "thing.py has no nothing"),
        ("thing:value", "is a int: it should be a function or a class"),
        ("os:system", "is a builtin_function_or_method: it should be"),
        ("thing:fails", "raised OSError: a line"),
        ("broken:make", "broken cannot be imported (ModuleNotFoundError: No module named 'nothing"),
        ("broken.py:make", "broken.py cannot be imported (ModuleNotFoundError: No module named"),
        ("unfinished.py:make", "unfinished.py cannot be imported (SyntaxError"),
        ("unfinished:make", "unfinished cannot be imported (SyntaxError"),
        ("thing:make ", "should be package.module:name or path/to/file.py:name"),
    ],
)
def test_what_is_wrong_is_one_line(folder: Path, name: str, reason: str) -> None:
    with pytest.raises(InputError) as error:
        factories.call("model", name, 3)
    text = str(error.value)
    assert text.startswith(f"model={name!r}")
    assert reason in text
    assert "\n" not in text


def test_a_file_that_was_changed_is_read_again(folder: Path) -> None:
    assert factories.call("model", "thing.py:make", 1) == (7, 1)
    first = factories.source_hash("model", "thing.py:make")
    assert factories.source_hash("model", f"{folder}/thing.py:make") == first
    (folder / "thing.py").write_text("def make(classes): return -classes\n")
    assert factories.call("model", "thing.py:make", 1) == -1
    assert factories.source_hash("model", "thing.py:make") != first


class Outer:
    class Inner(nn.Module):
        pass


def test_callables_have_the_name_that_they_are_imported_by() -> None:
    name = factories.name_of("model", Outer.Inner)
    assert name == f"{__name__}:Outer.Inner"
    assert factories.load_factory("model", name) is Outer.Inner


def inner() -> object:
    class Local(nn.Module):
        pass

    return Local


@pytest.mark.parametrize("factory", [lambda _: None, inner(), nn.Linear(1, 1)])
def test_what_cannot_be_imported_again_is_refused(factory: object) -> None:
    with pytest.raises(InputError, match="cannot be imported again: define it at the top"):
        factories.name_of("model", factory)  # type: ignore[arg-type]


def test_options_are_those_that_a_factory_has_parameters_for(folder: Path) -> None:
    options = {"classes": 3, "other": 4}
    assert factories.accepted("model", "thing:make", options) == {"classes": 3}
    assert factories.accepted("model", "thing:Holder", options) == {}
